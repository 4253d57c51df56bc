"""The page as a whole: complete, self-contained, and without markup of a model's."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from reports.page.recorded import HOSTILE, evaluated, record, write_run

from pyengine.cli.main import main
from pyengine.errors import ConfigError
from pyengine.reports.page.examples import evaluations, training_rounds
from pyengine.reports.page.layout import page, printable
from pyengine.reports.page.panels import PANELS
from pyengine.reports.page.record import read_runs
from pyengine.reports.page.tables import counts_table
from pyengine.reports.page.time_split import seconds_of

LOADS = ("src", "href", "srcset", "data", "action", "xlink:href", "background", "poster")
EMPTY = {"meta", "link", "br", "hr", "img", "input"}


class Elements(HTMLParser):
    """Every element with its attributes; `open` is empty where all are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return read_runs([write_run(folder / "a<b>&c"), write_run(folder / "other", 3, 0.5)])


@pytest.fixture(scope="module", params=[1, 2])
def elements(request, runs):
    return Elements(page(runs[: request.param])), request.param


def test_nothing_is_loaded_and_nothing_of_a_model_is_markup(elements):
    elements, _ = elements
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "object", "embed", "video", "audio", "base"}
    assert not [a for _, attributes in elements.found for a in attributes if a.startswith("on")]
    loaded = [a[n] for _, a in elements.found for n in LOADS if n in a]
    assert loaded == ["data:,"]  # that there is no icon
    assert {a.get("http-equiv") for a in elements.all("meta")} >= {"Content-Security-Policy"}
    style = "".join(re.findall(r"url\([^)]*\)|@import|@font-face", "".join(elements.text)))
    assert style == ""


def test_hostile_text_is_there_as_text(elements):
    elements, _ = elements
    text = "".join(elements.text)
    harmless = HOSTILE.replace("\u202e", "\ufffd").replace("\0", "\ufffd")
    assert harmless in text
    assert "\0" not in text
    assert "\u202e" not in text
    assert "a<b>&c" in text


def test_every_figure_is_drawn(elements, runs):
    elements, count = elements
    drawn = [a for a in elements.all("svg") if a["class"] == "plot"]
    titles = [a["aria-label"] for a in drawn]
    missing = [panel.title for panel in PANELS if panel.title not in titles]
    assert missing == ["Win rate"]
    assert titles[:3] == ["Reward", "KL to the reference", "Reward for KL"]
    assert titles[-1] == "pass@1"
    for name in ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "width", "height"):
        for _, attributes in elements.found:
            if name in attributes:
                assert re.fullmatch(r"\d+(\.\d+)?", attributes[name]), attributes
    assert f"--runs: {count}" in elements.all("body")[0]["style"]


def test_findings_and_samples_are_there_for_each_run(elements):
    elements, count = elements
    text = "".join(elements.text)
    assert text.count("The judge disagreed with itself on") == count
    assert text.count("Most changed since training began") == count
    assert "after round 12" in text
    assert "8 of 12 rounds are shown" in text
    assert "judge/comparisons" in text


def test_what_there_is_not_is_not_drawn():
    text = page([record([{"round": 1, "step": 1}])])
    assert "Nothing: no rule finds" in text
    assert "No round has a figure yet" in text
    assert text.count("None were kept.") == 2
    with pytest.raises(ConfigError, match="must be 1 to 6 side by side but are 7"):
        page([record()] * 7)


def test_which_samples_are_shown():
    rows = evaluated(0, (0.0,), (1.0,), (2.0,)) + evaluated(2, (5.0,), (1.0,), (1.5,))
    stages = evaluations(record(samples=rows)).shown
    assert [stage.title for stage in stages] == ["Before training", "After round 2"]
    top, bottom, changed = stages[1].shelves
    assert [e.responses[0].text for e in top.examples] == ["text 2.0.0", "text 2.2.0"]
    assert [e.responses[0].text for e in bottom.examples] == ["text 2.1.0"]
    assert [e.prompt for e in changed.examples] == ["prompt 0", "prompt 2"]  # by 5 and by 0.5
    assert [(s.when, s.reward) for s in changed.examples[0].responses] == [
        ("before training", "+0"), ("after round 2", "+5"),
    ]  # fmt: skip


def test_long_texts_and_many_rounds_are_cut_and_it_is_said():
    kept = [{"round": r, "side": "top", "completion": "x" * 1500} for r in range(1, 101)]
    stages = training_rounds(record(round_samples=kept))
    assert [s.title for s in stages.shown] == [
        f"Round {r}" for r in (1, 15, 29, 43, 58, 72, 86, 100)
    ]
    assert stages.left_out == 92
    text = stages.shown[0].shelves[0].examples[0].responses[0].text
    assert text == "x" * 1200 + " … (300 characters more)"


def test_sums_over_rounds(runs):
    assert seconds_of(runs[1]) == pytest.approx(
        {"generate": 6.0, "judge": 1.5, "score": 0.9, "update": 3.0, "evaluate": 3.0, "other": 0.6}
    )
    assert ["judge/comparisons", "192", "48"] in counts_table(runs).rows


def test_characters_that_no_page_may_hold():
    assert printable("a\tb\nc\x1b\ud800é") == "a\tb\nc\ufffd\ufffdé"
    assert printable(3) == 3


def test_the_command_writes_the_page_and_prints_the_findings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", 3)
    assert main(["report", "a", "--no-plot"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("round ")
    assert "watch: The judge disagreed with itself on 36 of 192 pairs (19 %)" in out
    assert out.endswith("page  a/report.html\n")
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out.endswith("page  report.html\n")
    assert "<h1>a and b</h1>" in (tmp_path / "report.html").read_text()
    assert main(["report", "a", "--no-html", "--no-plot"]) == 0
    assert "page" not in capsys.readouterr().out
    assert main(["report", "a", "./a"]) == 2
    assert "[report] runs must differ but a is named twice" in capsys.readouterr().err
    assert main(["report", "a", "b", "--plot", "p.png"]) == 2
    assert "--plot must be given with one run but there are 2" in capsys.readouterr().err
