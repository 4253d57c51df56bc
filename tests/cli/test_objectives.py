"""`pyengine objectives`, and the page that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyengine import objectives
from pyengine.cli.main import main
from pyengine.objectives.catalogue import catalogue

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def test_every_objective_is_listed(capsys):
    assert main(["objectives"]) == 0
    printed = capsys.readouterr().out
    names = [block.split()[0] for block in printed.split("\n\n")]
    assert names == objectives.available()


@pytest.mark.parametrize("name", objectives.available())
def test_every_objective_says_what_it_is(capsys, name):
    """Formula, a sentence for each hyperparameter and input, a source."""
    assert main(["objectives", name]) == 0
    printed = capsys.readouterr().out
    [entry] = [e for e in catalogue() if e.name == name]
    assert entry.formula
    assert entry.source
    assert entry.source in printed
    for field, _, rule in entry.hyperparameters:
        assert rule in printed
        assert field in entry.text, f"the docstring must say what {field} is"
    for keyword, _ in entry.inputs:
        assert keyword in entry.text, f"the docstring must say what {keyword} is"


def test_an_unknown_name_is_refused(capsys):
    assert main(["objectives", "dop"]) == 2
    assert "name must be one of" in capsys.readouterr().err


def test_the_page_is_the_one_that_the_classes_make(capsys):
    """Else: pyengine objectives --markdown > docs/objectives.md"""
    assert main(["objectives", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()
