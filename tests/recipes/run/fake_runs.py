"""Runs on an engine without a model, broken off where a test wants it, and what is left of them."""

from __future__ import annotations

import shutil

from pyengine.recipes.run import runner
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.reports.writers.jsonl import read_lines

RECIPE = """\
model: pypi:none
prompts: p.jsonl
reward: rewards.py:happiness
sampling: {n: 4, max_tokens: 6}
rounds: 6
prompts_per_round: 3
checkpoint_every: 2
keep_checkpoints: 2
eval: {prompts: h.jsonl, n: 2, every: 3}
"""
REWARDS = """\
def happiness(completions):
    return [float(c.count("good") + c.count("happy") - c.count("bad")) for c in completions]
def silent(completions):
    return [None] * len(completions)
"""


def numbered(folder):
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(paths, key=lambda p: int(p.name.removeprefix("step-")))


def newest(folder):
    return next(reversed(numbered(folder)), None)


def prune(folder, keep, spared=None):
    for path in numbered(folder)[:-keep]:
        if path != spared:
            shutil.rmtree(path)


def run(recipe, out, **options):
    return runner.run(recipe, out, allow_code=True, **options)


def untimed(path):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))}
        for row in read_lines(path)
    ]


class Kill(BaseException):
    """What a kill does: nothing after it runs."""


def killer(at):
    def on_report(row):
        if row["round"] == at:
            raise Kill

    return on_report


def checkpoints_of(run_folder):
    return [p.name for p in numbered(run_folder / "checkpoints")]


def same_ends(a, b):
    whole, cut = RunFolder(a), RunFolder(b)
    assert (cut.model / "weight.json").read_text() == (whole.model / "weight.json").read_text()
    assert untimed(cut.metrics) == untimed(whole.metrics)
    assert cut.samples.read_bytes() == whole.samples.read_bytes()
    assert cut.round_samples.read_bytes() == whole.round_samples.read_bytes()


class Once:
    """Calls `work`, but raises at call number `at`, once."""

    def __init__(self, work, at, error):
        self.work, self.at, self.error, self.calls = work, at, error, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.work(*args, **options)
