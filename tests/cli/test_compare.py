"""`pyengine compare`: two tiny models as a user compares them, against arithmetic of our own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
from fresh_python import package_folder

from pyengine.cli import compare
from pyengine.cli.main import main
from pyengine.engine import Engine, SamplingParams

ENVIRONMENT = os.environ | {"PYTHONPATH": str(package_folder().parent), "PYTHONUTF8": "1"}
TOPICS = ["sea", "train", "bread", "rain"]
# Letters less what the row asks for; a text with a digit fails, one without a letter abstains.
REWARDS = """\
def letters(completions, wanted):
    rewards = []
    for messages, number in zip(completions, wanted):
        text = messages[0]["content"]
        count = sum(c.isascii() and c.isalpha() for c in text)
        judged = None if count == 0 else -abs(count - number)
        rewards.append(float("nan") if "7" in text else judged)
    return rewards
"""
FLAGS = ["--dtype", "float32", "--n", "3", "--max-tokens", "10", "--seed", "4"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    rows = [{"prompt": f"Say {t}.", "wanted": len(t)} for t in TOPICS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pyengine", "compare", *map(str, argv), *FLAGS],
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        check=False,
    )


def samples(model):
    engine = Engine.from_pretrained(model, dtype="float32", reference="none")
    prompts = [[{"role": "user", "content": f"Say {t}."}] for t in TOPICS]
    groups = engine.generate(prompts, SamplingParams(n=3, max_tokens=10, seed=4))
    return [[r.text for r in group.responses] for group in groups]


def reward(text, topic):
    count = sum(c.isascii() and c.isalpha() for c in text)
    return None if "7" in text or count == 0 else -abs(count - len(topic))


def test_json_has_the_samples_of_both_and_who_wins(here, tiny_model, other_tiny_model):
    done = run(
        tiny_model, other_tiny_model, "--prompts", "p.jsonl", "--json", "--out", "c.md",
        "--source", "rewards.py:letters", "--allow-code",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    ours, theirs = samples(tiny_model), samples(other_tiny_model)
    assert [[s["text"] for s in row["a"]] for row in data["samples"]] == ours
    assert [[s["text"] for s in row["b"]] for row in data["samples"]] == theirs
    pairs = [
        [(reward(a, t), reward(b, t)) for a, b in zip(*both, strict=True)]
        for t, *both in zip(TOPICS, ours, theirs, strict=True)
    ]
    known = [[(a, b) for a, b in row if None not in (a, b)] for row in pairs]
    flat = [pair for row in known for pair in row]
    shares = [sum((a > b) + (a == b) / 2 for a, b in row) / len(row) for row in known if row]
    result = data["result"]
    assert result["wins"] == sum(a > b for a, b in flat)
    assert result["losses"] == sum(a < b for a, b in flat)
    assert result["ties"] == sum(a == b for a, b in flat)
    assert result["failed"] == 12 - len(flat)
    assert result["win_rate"] == pytest.approx(sum(shares) / len(shares))
    assert min(result["wins"], result["losses"]) > 0  # or this test says little
    assert data["a"]["no_reward"] == sum(a is None for row in pairs for a, _ in row)
    assert data["sampling"]["seed"] == 4
    assert (here / "c.md").read_text().count("\n## Prompt ") == 4


def test_a_table_without_a_source(here, tiny_model, other_tiny_model):
    done = run(tiny_model, other_tiny_model, "--prompts", "p.jsonl", "--show", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("prompt  Say sea.\n")
    assert f"model             {tiny_model}" in done.stdout
    assert "wins" not in done.stdout
    assert done.stderr == f"loading {tiny_model}\nloading {other_tiny_model}\n"


def test_a_model_ties_with_itself_by_vader(here, tiny_model, capsys):
    pytest.importorskip("vaderSentiment")
    argv = ["compare", str(tiny_model), str(tiny_model), "--prompts", "p.jsonl", *FLAGS]
    assert main([*argv, "--source", "vader"]) == 0
    said = "A wins 50.0 ± 0.0 % by vader: of 12 pairs 0 won, 0 lost, 12 tied (half a win each), 0 f"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("fits", [True, False])
def test_models_come_one_after_the_other_unless_both_fit(
    here, tiny_model, other_tiny_model, monkeypatch, capsys, fits
):
    monkeypatch.setattr(compare, "_fits_beside", lambda *_: fits)
    engines, alive = [], []
    load = Engine.from_pretrained.__func__

    def from_pretrained(cls, *args, **options):
        alive.append([e() is not None for e in engines])
        engine = load(cls, *args, **options)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(Engine, "from_pretrained", classmethod(from_pretrained))
    gc.disable()  # nothing but the command itself may free the first
    try:
        argv = ["compare", str(tiny_model), str(other_tiny_model), "--prompts", "p.jsonl", *FLAGS]
        assert main(argv) == 0
    finally:
        gc.enable()
    assert alive == [[], [fits]]


def test_a_second_model_fits_where_its_weights_take_half_of_what_is_left(tiny_model):
    """In float32 8 bytes a number, stored and packed, beside what the first packs and caches."""
    engine = Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    parts = {"weights": 7, "packed": 1000, "KV cache": 2000, "optimizer": 10**12}
    numbers = sum(w.numel() for _, w in engine.named_weights())
    for free, fits in ((3000 + 16 * numbers, True), (3000 + 16 * numbers - 1, False)):
        plan = SimpleNamespace(parts=list(parts.items()), available=free)
        engine.memory_plan = lambda plan=plan: plan
        assert compare._fits_beside(engine, engine.spec) == fits


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--source", "rewards.py:letters"], "allow it with --allow-code"),
        (["--source", "nobody"], "[reward] function must be one of brevity, vader, "),
        (["--out", "no/c.md"], "[compare] --out must be in a folder that exists but is no/c.md"),
        (["--out", "."], "[compare] --out must be a file but . is a folder"),
        (["--show", "-1"], "[compare] --show must be >= 0 but is -1"),
        (["--prompts", "none.jsonl"], "none.jsonl] must be a file but does not exist"),
        (["--column", "question"], "question must be a column but the columns are prompt, wanted"),
        (["--max-tokens", "500"], "must take every prompt but: [generate] prompts[0]"),
        (["--temperature", "-1"], "temperature must be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_before_a_model_is_loaded(
    here, tiny_model, monkeypatch, capsys, more, sentence
):
    monkeypatch.setattr(Engine, "from_pretrained", None)
    argv = ["compare", str(tiny_model), str(tiny_model), "--prompts", "p.jsonl", *FLAGS, *more]
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sentence in printed.err


def test_a_second_model_of_the_hub_is_refused_before_the_first_is_loaded(here, tiny_model, capsys):
    assert main(["compare", str(tiny_model), "org/tiny", "--prompts", "p.jsonl"]) == 2
    printed = capsys.readouterr().err
    assert "`hf download org/tiny" in printed
    assert "loading" not in printed
