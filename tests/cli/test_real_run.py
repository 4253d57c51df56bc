"""The command line on a real engine with a tiny random model, from a recipe to a saved model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pyengine.cli.main import main
from pyengine.reports.writers.jsonl import read_lines

RECIPE = """\
model: {model}
prompts: p.jsonl
reward: rewards.py:vowels
sampling: {{n: 3, max_tokens: 8}}
rounds: 5
prompts_per_round: 2
dtype: float32
learning_rate: 1e-3
schedule: cosine
warmup_steps: 1
checkpoint_every: 2
eval: {{prompts: p.jsonl, n: 2, max_tokens: 6}}
"""
REWARDS = """\
def vowels(completions):
    texts = [messages[0]["content"] for messages in completions]
    return [sum(t.count(v) for v in "aeiou") - len(t) / 9 for t in texts]
"""


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_model):
    rows = [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in range(5)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=tiny_model))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def align(out, *more):
    return main(["align", "r.yaml", "--out", out, "--allow-code", *more])


def weights(folder: Path):
    return {k: v.numpy().tobytes() for k, v in load_file(folder / "model.safetensors").items()}


def untimed(path: Path):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))}
        for row in read_lines(path)
    ]


def test_align_writes_a_model_that_loads_and_differs(here, tiny_model, capsys):
    assert align("o") == 0
    assert "5 rounds, 5 updates" in capsys.readouterr().out
    before, after = weights(tiny_model), weights(here / "o" / "model")
    assert before.keys() == after.keys()
    assert before != after
    rows = read_lines(here / "o" / "metrics.jsonl")
    assert [row["round"] for row in rows] == list(range(6))
    # fresh weights equal the reference, so the first loss is log 2 and the first margin 0
    assert rows[1]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert rows[1]["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[5]["objective/kl"] != 0.0
    assert main(["generate", "--model", "o/model", "--max-tokens", "4", "hello"]) == 0


def test_killed_at_any_moment_and_resumed_gives_the_same_weights(here):
    assert align("whole") == 0
    command = [sys.executable, "-m", "pyengine", "align", "r.yaml", "--out", "cut", "--allow-code"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = False
    for last_round in (0, 3):
        process = subprocess.Popen(
            [*command, "--resume"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        done = kill_after_round(process, here / "cut" / "metrics.jsonl", last_round)
        if done:
            break
    assert align("cut", "--resume") == 0
    assert weights(here / "cut" / "model") == weights(here / "whole" / "model")
    assert untimed(here / "cut" / "metrics.jsonl") == untimed(here / "whole" / "metrics.jsonl")
    assert (here / "cut" / "samples.jsonl").read_bytes() == (
        here / "whole" / "samples.jsonl"
    ).read_bytes()


def kill_after_round(process: subprocess.Popen[bytes], metrics: Path, last_round: int) -> bool:
    """Kill -9 as soon as the round's line is there; True if the process ended before."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        rows = read_lines(metrics) if metrics.exists() else []
        if rows and rows[-1]["round"] >= last_round:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
        time.sleep(0.005)
    process.kill()
    return process.wait() == 0


def test_generate_prints_json_with_log_probs(here, tiny_model, capsys):
    argv = ["generate", "--model", str(tiny_model), "--file", "p.jsonl", "--n", "2", "--json"]
    assert main([*argv, "--max-tokens", "5", "--seed", "3", "--dtype", "float32"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["prompt_index"], r["sample_index"]) for r in rows] == [
        (i, k) for i in range(5) for k in range(2)
    ]
    for row in rows:
        assert len(row["token_ids"]) == len(row["logprobs"]) <= 5
        assert row["finish_reason"] in ("stop", "length")


def test_generate_from_stdin_without_the_template(tiny_model, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n"))
    argv = [
        "generate",
        "--model",
        str(tiny_model),
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "3",
    ]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "abc"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--file", "p.jsonl", "x"],
            "must come from the command line or --file but both are given",
        ),
        ([""], "prompts[0] must not be empty but is ''"),
        (["--top-p", "2", "x"], "[SamplingParams] top_p must be in (0, 1] but is 2.0"),
        (["--file", "none.jsonl"], "none.jsonl] must be a file but does not exist"),
    ],
)
def test_generate_errors(here, tiny_model, capsys, argv, message):
    assert main(["generate", "--model", str(tiny_model), *argv]) == 2
    assert message in capsys.readouterr().err


def test_generate_needs_a_model_that_exists(capsys):
    assert main(["generate", "--model", "no-such-model", "x"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no-such-model" in error


def test_score_keeps_the_order_of_rows_and_shares_prompts(here, tiny_model, capsys):
    rows = [("p", "xy"), ("q", "x"), ("p", "zzz"), ("p", "xy")]
    text = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
    (here / "s.jsonl").write_text(text)
    argv = ["score", "--model", str(tiny_model), "--dtype", "float32", "s.jsonl"]
    assert main([*argv, "--tokens"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["tokens"] for line in lines] == [len(line["token_ids"]) for line in lines]
    assert lines[0] == lines[3]
    for line in lines:
        assert line["logprob"] == pytest.approx(sum(line["token_logprobs"]), abs=1e-4)
    one = json.dumps({"prompt": "q", "completion": "x"}) + "\n"
    (here / "s.jsonl").write_text(one)
    assert main(argv) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone == {"logprob": pytest.approx(lines[1]["logprob"], abs=1e-5), "tokens": 2}


def test_score_names_the_bad_row(here, tiny_model, capsys):
    (here / "s.jsonl").write_text('{"prompt": "p", "completion": "x"}\n{"prompt": "p"}\n')
    assert main(["score", "--model", str(tiny_model), "s.jsonl"]) == 2
    message = "s.jsonl:2] completion must be a column but the columns are prompt\n"
    assert message in capsys.readouterr().err
