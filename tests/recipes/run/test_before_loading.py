"""What sources and samplers need is refused by name before a model is loaded: columns, packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from loops.loop_cases import make
from recipes.run.fake_runs import RECIPE, run

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.loops import Online
from pyengine.objectives import DPO
from pyengine.preferences.sources.verifiers import ExactMatch, JsonSchema
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe

REWARDS = """\
def by_answer(completions, answer):
    return [float(c == a) for c, a in zip(completions, answer)]
def by_temperature(completions, temperatures):
    return [len(c) * t[0] for c, t in zip(completions, temperatures)]
def weights(completions, completion_ids, weight):
    return [[w] * len(ids) for ids, w in zip(completion_ids, weight)]
"""


def recipe_of(folder: Path, judge: str, held_out: dict[str, Any] | None = None) -> Any:
    """Rows to learn from have `answer`."""
    rows = [{"prompt": f"p{i}", "answer": "a"} for i in range(5)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"prompt": "h"} | (held_out or {})
    (folder / "h.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "rewards.py").write_text(REWARDS)
    text = RECIPE.replace("reward: rewards.py:happiness", judge).replace("rounds: 6", "rounds: 1")
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml")


OF_TRAINING = r"must be in the rows of .*p\.jsonl but their columns are \['answer'\]"
OF_HELD_OUT = r"must be in the rows of .*h\.jsonl but their columns are \[\]"
MISNAMED = {
    "a verifier": (
        "source: {name: exact_match, answer: gold}",
        rf"\[exact_match\] column 'gold' {OF_TRAINING}",
    ),
    "a verifier within": (
        "source: {name: derived, label_threshold: 0.5, source: {name: numeric, answer: n}}",
        rf"\[numeric\] column 'n' {OF_TRAINING}",
    ),
    "a task's item": (
        "source: {name: reasoning_gym, scorer: task}",
        rf"\[reasoning_gym\] column 'task' {OF_TRAINING}",
    ),
    "held-out rows": (
        "source: {name: exact_match}",
        rf"\[exact_match\] column 'answer' {OF_HELD_OUT}",
    ),
    "a function": ("reward: rewards.py:by_answer", rf"\[by_answer\] column 'answer' {OF_HELD_OUT}"),
    "a function of tokens": (
        "reward: {function: vader, token_columns: {token_weight: rewards.py:weights}}",
        rf"\[weights\] column 'weight' {OF_TRAINING}",
    ),
    "a function by name": (
        "source: {name: function, function: rewards.py:by_answer}",
        rf"\[function\] column 'answer' {OF_HELD_OUT}",
    ),
    "a judge's criteria": (
        "source: {name: judge_matrix, comparator: {name: pairwise_judge, criteria_column: rubric}}",
        rf"\[pairwise_judge\] column 'rubric' {OF_TRAINING}",
    ),
    "given answers": (
        "source: by_origin\nsampler: {name: gold, column: best}",
        rf"\[gold\] column 'best' {OF_TRAINING}",
    ),
}


@pytest.mark.parametrize("case", MISNAMED)
def test_a_misnamed_column_is_refused(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(runner, "Engine", None)
    if case == "a task's item":
        monkeypatch.setitem(sys.modules, "reasoning_gym", object())
    judge, message = MISNAMED[case]
    with pytest.raises(ConfigError, match=message):
        run(recipe_of(tmp_path, judge), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("package", "extra", "judge"),
    [
        ("jsonschema", "verify", "source: {name: json_schema, answer: answer}"),
        ("reasoning_gym", "gym", "source: {name: reasoning_gym, scorer: task}"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, package: str, extra: str,
    judge: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "Engine", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install \"pyengine\[{extra}\]\""):
        run(recipe_of(tmp_path, judge), tmp_path / "run")


def test_what_a_sampler_adds_is_no_column_of_the_rows(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    recipe_of(tmp_path, "reward: rewards.py:by_temperature\nsampler: temperatures")
    file = tmp_path / "r.yaml"  # evaluations sample without it
    file.write_text(file.read_text().replace("eval: {prompts: h.jsonl, n: 2, every: 3}\n", ""))
    assert run(load_recipe(file), tmp_path / "run").steps == 1


def test_loops_refuse_the_same() -> None:
    columns, settings = {"answer": ["a"] * 6}, {"eval_prompts": ["h"]}
    assert make(Online, DPO(), source=ExactMatch(), columns=columns)
    with pytest.raises(ConfigError, match=r"'gold' must be in the rows but their columns are \['a"):
        make(Online, DPO(), source=ExactMatch(answer="gold"), columns=columns)
    with pytest.raises(ConfigError, match=r"'answer' must be in the held-out rows but their col"):
        make(Online, DPO(), source=ExactMatch(), columns=columns, **settings)
    assert make(Online, DPO(), source=JsonSchema(answer=None))
