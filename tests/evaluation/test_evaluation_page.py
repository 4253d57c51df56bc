"""The page on evaluation: its Python runs, and its tables name every part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyengine as pe
from pyengine.evaluation.available import EVALUATIONS
from pyengine.registry import Registry
from pyengine.samplers.available import SAMPLERS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_python_of_the_page_runs(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"engine": pe.Engine.from_pretrained(tiny_model, dtype="float32")}
    text = (DOCS / "evaluation.md").read_text()
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(code, names)
    # of two prompts; a fit to three points that gain less and less; two rows that hold a 4
    *_, prompts = capsys.readouterr().out.splitlines()[0].split()
    assert prompts == "2"
    assert names["fit"].b > 0
    assert names["figures"]["accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("page", "registry"), [("evaluation.md", EVALUATIONS), ("samplers.md", SAMPLERS)]
)
def test_tables_name_every_part(page: str, registry: Registry) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / page).read_text(), re.MULTILINE)
    assert sorted(rows) == registry.names()
