"""Held-out responses have a judge of their own where a recipe says so; rows are inputs of a run."""

from __future__ import annotations

import json

import pytest
from recipes.run.fake_runs import run, untimed

from pyengine.errors import ConfigError, DataError
from pyengine.recipes.run.available import run_of
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import load_recipe

OTHER = """
def length(completions):
    return [float(len(c)) for c in completions]
"""


@pytest.fixture
def load(tmp_path, recipe):
    code = tmp_path / "rewards.py"
    code.write_text(code.read_text() + OTHER)
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(**changes):
        return load_recipe(tmp_path / "r.yaml", {"rounds": 1, **changes})

    return made


def test_what_is_held_out_has_a_judge_of_its_own(load, tmp_path):
    own = {"name": "function", "function": "rewards.py:length"}
    run(load(**{"eval.source": own}), tmp_path / "run")
    rows = untimed(RunFolder(tmp_path / "run").metrics)
    assert rows[0]["eval/objective/scores"] > 5  # letters
    assert rows[1]["objective/scores"] < 5  # happy words
    run(load(), tmp_path / "same")
    assert untimed(RunFolder(tmp_path / "same").metrics)[0]["eval/objective/scores"] < 5


def test_a_judge_of_what_is_held_out_is_checked(load, tmp_path):
    with pytest.raises(ConfigError, match=r"eval.source: .*name must be one of"):
        load(**{"eval.source": "lenght"})
    given = load(**{"eval.source": {"name": "function", "function": "rewards.py:length"}})
    with pytest.raises(ConfigError, match="runs only where it is allowed"):
        run_of(given, False)

    needs = load(**{"eval.source": "numeric"})
    with pytest.raises(ConfigError, match=r"column 'answer' must be in the rows of .*h.jsonl"):
        run_of(needs, True)


def probe(load, tmp_path, rows="pairs.jsonl"):
    source = {"name": "reward_probe", "rows": rows, "heads": 2}
    return run_of(load(reward=None, source=source), True)


def test_rows_that_a_part_reads_are_inputs_of_the_run(load, tmp_path):
    place = f"rows of {tmp_path / 'pairs.jsonl'}"
    before = probe(load, tmp_path).inputs()[place]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p"}) + "\n")
    assert probe(load, tmp_path).inputs()[place] != before
    with pytest.raises((ConfigError, DataError), match=r"missing.jsonl"):
        probe(load, tmp_path, "missing.jsonl")
