"""The page in a real browser: it loads nothing, logs nothing, runs nothing, and everything fits.

    python -m pytest tests/reports/page/test_page_in_browser.py

Without a Chromium on PATH it is skipped; .ci/run says so in large letters.
"""

from __future__ import annotations

import pytest
from reports.browser import Browser, installed
from reports.page.recorded import write_run

from pyengine.reports.page.layout import write_page
from pyengine.reports.page.record import read_runs

WIDTH = 1280
pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium on PATH")

SIZES = """
[...document.querySelectorAll("svg.plot")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const outside = [...svg.querySelectorAll("text, circle, rect, polyline")].filter((part) => {
    const own = part.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1
      || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  });
  return [svg.getAttribute("aria-label"), box.width, box.height,
          svg.querySelectorAll("polyline, rect").length, outside.length];
})
"""
TOO_WIDE = """
[...document.body.querySelectorAll("*")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0)
  .map((e) => e.tagName + " " + e.textContent.slice(0, 40))
"""
CUT = """
[...document.body.querySelectorAll("p, td, th, h1, h2, h3, h4, summary, figcaption")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 40))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(installed(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("count", [1, 2])
def test_page_is_whole_silent_and_fits(tmp_path, browser, count):
    runs = [write_run(tmp_path / name, rounds) for name, rounds in (("a" * 60, 12), ("b", 3))]
    write_page(read_runs(runs[:count]), tmp_path / "page.html")
    url = (tmp_path / "page.html").as_uri()
    browser.open(url, WIDTH)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") == WIDTH
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate(CUT) == []
    sizes = browser.evaluate(SIZES)
    assert len(sizes) == 19
    for label, width, height, curves, outside in sizes:
        assert width > 400, label
        assert height > 30, label
        assert curves > 0, label
        assert outside == 0, label
    assert browser.evaluate("document.title").startswith("a" * 60)
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert "document.title = 'owned'" in browser.evaluate("document.body.textContent")
    asked = [
        params["request"]["url"]
        for name, params in browser.events
        if name == "Network.requestWillBeSent"
    ]
    assert {address for address in asked if not address.startswith("data:")} == {url}
    said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert [params for name, params in browser.events if name in said] == []
