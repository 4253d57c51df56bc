"""`pyengine align` as several ranks: what it leaves, and how it ends where a rank does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks.together import ELSEWHERE, Processes, finished, start_each, start_ranks

RECIPE = """
model: {model}
prompts: {{file: prompts.jsonl, column: prompt}}
reward: brevity
objective: {{name: dpo, beta: 0.1}}
sampling: {{n: 2, max_tokens: 24}}
rounds: 8
prompts_per_round: 4
checkpoint_every: 1
keep_checkpoints: 2
eval: {{prompts: prompts.jsonl, every: 3}}
engine: {{learning_rate: 1e-3, shards: 4, kv_tokens: 4096, dtype: float32}}
"""
TIMES = ("time/", "tokens_per_s", "s_per_")


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked")
    rows = (json.dumps({"prompt": f"Say something of {i}."}) + "\n" for i in range(6))
    (folder / "prompts.jsonl").write_text("".join(rows))
    (folder / "r.yaml").write_text(RECIPE.format(model=tiny_model))
    return folder / "r.yaml"


def start(recipe: Path, out: Path, size: int, *more: str) -> Processes:
    return start_ranks(size, ["-m", "pyengine", "align", recipe, "--out", out, *more])


def left(out: Path) -> dict[str, object]:
    """All that a run leaves but times."""
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.safetensors"))
    }
    for name in ("metrics.jsonl", "samples.jsonl", "verdicts.jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        found[name] = [
            {k: v for k, v in row.items() if not any(time in k for time in TIMES)} for row in rows
        ]
    return found


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    out = recipe.parent / "alone"
    [(status, _, err)] = finished(start(recipe, out, 1))
    assert status == 0, err
    return out


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_ranks(recipe: Path, alone: Path) -> None:
    out = recipe.parent / "killed"
    ranks = start(recipe, out, 2)
    wait_for_round(out, 2)
    ranks[1].send_signal(signal.SIGKILL)
    [(status, _, err), _] = finished(ranks)
    assert status == 2
    assert "rank 1 has gone or is stopped" in err
    assert err.count("\npyengine: ") + err.startswith("pyengine: ") == 1
    ended = finished(start(recipe, out, 4, "--resume"))
    assert [status for status, _, _ in ended] == [0, 0, 0, 0], ended
    assert left(out) == left(alone)
    assert [out for _, out, _ in ended[1:]] == ["", "", ""]  # the first rank alone speaks


@pytest.mark.slow
def test_torchrun_starts_it_and_a_signal_ends_all(recipe: Path, alone: Path) -> None:
    out = recipe.parent / "torchrun"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "pyengine", "align", recipe, "--out", out),
    ]
    begun = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ELSEWHERE,
    )
    wait_for_round(out, 1)
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    assert "stopped after round" in said or "saving the model" in said
    [(status, _, err)] = finished(start(recipe, out, 1, "--resume"))
    assert status == 0, err
    assert left(out) == left(alone)


def wait_for_round(out: Path, number: int) -> None:
    for _ in range(1200):
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") > number:
            return
        time.sleep(0.05)
    raise AssertionError(f"no round {number} in {out}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stopped", "why"),
    [
        (1, "rank 1 has gone or is stopped: no sign of life in 3 s"),
        (0, "the store of the ranks has not answered in 3 s"),  # which rank 0 keeps here
    ],
)
def test_a_rank_that_is_stopped_ends_the_others(recipe: Path, stopped: int, why: str) -> None:
    out = recipe.parent / f"stopped-{stopped}"
    command = ["-m", "pyengine", "align", recipe, "--out", out]
    ranks = start_ranks(2, command, PYENGINE_RANK_SILENCE_S="3")
    wait_for_round(out, 0)
    ranks[stopped].send_signal(signal.SIGSTOP)
    other = ranks[1 - stopped]
    try:
        _, err = other.communicate(timeout=60)
    finally:
        ranks[stopped].kill()
        ranks[stopped].communicate()
    assert other.returncode == 2
    assert err.endswith(f"pyengine: [ranks] {why}\n")


@pytest.mark.slow
def test_ranks_with_unequal_recipes_say_so(recipe: Path) -> None:
    out = recipe.parent / "unequal"
    same = ["-m", "pyengine", "align", recipe, "--out", out]
    ranks = start_each([same, [*same, "--set", "objective.beta=0.5"]])
    (_, _, said), (status, _, err) = finished(ranks)
    assert status == 2
    assert "recipe must be that of rank 0" in err, (err, said)
    assert "beta: 0.5" in err
    assert "rank 1 cannot go on" in said
    assert not out.exists()


@pytest.mark.slow
def test_shards_that_the_ranks_do_not_divide_are_refused(recipe: Path) -> None:
    out = recipe.parent / "undivided"
    ended = finished(start(recipe, out, 2, "--set", "engine.shards=1"))
    for status, _, err in ended:
        assert status == 2
        assert "shards must be a multiple of the number of ranks, 2, but is 1" in err
    assert not out.exists()
