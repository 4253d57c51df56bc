"""Packaged recipes say whose method they are; small runs broken off and resumed keep their bits."""

from __future__ import annotations

import json
import os

import pytest

from pyengine.cli.recipes import described
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe
from pyengine.recipes.schema.packaged import packaged_path, packaged_recipes
from pyengine.recipes.schema.strict_yaml import read_document
from pyengine.recipes.schema.summary import summary_of

PACKAGED = packaged_recipes()
MAX_TOKENS = 4  # of a sample: bits do not depend on how long it is, the test's time does


class BrokenOffError(Exception):
    pass


@pytest.mark.parametrize("name", PACKAGED)
def test_says_whose_method_it_is(name):
    summary = summary_of(name)
    assert packaged_path(name).parent.name == summary.loop
    assert summary.system
    assert summary.claim
    assert summary.claim.endswith(".")
    assert summary.paper is None or summary.paper.startswith("arXiv:")
    assert summary.does.endswith((".", ".)"))
    assert summary.data
    shown = " ".join(described(summary).split())
    assert all(part in shown for part in summary.parts.values())


@pytest.fixture
def small(tiny_model, monkeypatch):
    """A packaged recipe's small run on a tiny model."""
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power of this test

    def recipe(name):
        given = read_document(packaged_path(name)).data
        changes = {"model": str(tiny_model), "dtype": "float32", "checkpoint_every": 1}
        if "sampling" in given:
            changes["sampling.max_tokens"] = MAX_TOKENS
        return load_recipe(name, changes, small=True)

    return recipe


@pytest.mark.parametrize("name", PACKAGED)
def test_broken_off_and_resumed(name, small, tmp_path):
    recipe = small(name)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def break_off(row):
        if row["round"] == 1:
            raise BrokenOffError

    runner.run(recipe, whole)
    with pytest.raises(BrokenOffError):
        runner.run(recipe, cut, on_report=break_off)
    runner.run(recipe, cut, resume=True)
    for file in ("model.safetensors", "config.json"):
        assert (cut / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    assert rows(cut) == rows(whole)


def rows(run):
    """What the rounds recorded, but for their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_s"))}
        for line in lines
    ]
