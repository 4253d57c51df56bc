"""Faults in a run of several ranks, at places by name and at random moments: by hand, since it
takes minutes.

    python tests/ranks/faults.py [--only NAME] [--random 10] [--seed 0]

Each time two or four ranks run a recipe on a tiny model, and one of them is killed or stopped, or
its disk takes no more, or the port is another program's, or a recipe is another. All must end
within the silence that is allowed, each with at most one sentence; the run, gone on with by
another number of ranks, must end with the files of one that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ranks.test_ranked_runs import RECIPE, left
from ranks.together import Processes, finished, start_each

SILENCE_S = 3
ROUNDS = 12


@dataclass(frozen=True)
class Fault:
    """One rank of `size` is broken as PYENGINE_TEST_FAULT says; or the variables say how.

    at  "RANK KIND PLACE CALL"
    """

    name: str
    size: int
    at: str = ""
    env: dict[str, str] = field(default_factory=dict)


_ENGINE, _RANKED = "pyengine.engine", "pyengine.engine.infer.ranked"
_LEARNER = f"{_ENGINE}.learn.learning:KernelLearner"
_SUMS = f"{_ENGINE}.optim.shard_sums:ShardSums"
_OPTIMIZER = f"{_ENGINE}.optim.sharded_optimizer:ShardedOptimizer"
_CHECKPOINT = f"{_ENGINE}.persist.checkpoint"
_RUNNER = "pyengine.recipes.run.runner"
NAMED = [
    Fault("killed while joining", 2, "1 kill torch.distributed:init_process_group 1"),
    Fault("killed while loading", 4, f"2 kill {_ENGINE}:Engine.from_pretrained 1"),
    Fault(
        "killed while sampling", 2, f"1 kill {_ENGINE}.infer.inference:SessionInference.generate 5"
    ),
    Fault(
        "stopped while sampling", 4, f"3 stop {_ENGINE}.infer.inference:SessionInference.generate 4"
    ),
    Fault("killed before it tells samples", 4, f"1 kill {_RANKED}:told 3"),
    Fault("killed while judging", 2, "0 kill pyengine.recipes.run.verdicts:Verdicts.__call__ 4"),
    Fault("killed at the reference", 4, f"3 kill {_LEARNER}.reference_logps 3"),
    Fault("killed on the way forward", 2, f"1 kill {_LEARNER}.policy_pass 7"),
    Fault("killed on the way back", 4, f"0 kill {_SUMS}.layer_done 6"),
    Fault("stopped on the way back", 2, f"0 stop {_SUMS}.layer_done 5"),
    Fault("killed while adding up", 2, f"0 kill {_SUMS}.add_up 3"),
    Fault("killed at the norm", 4, f"2 kill {_OPTIMIZER}._step_norm 5"),
    Fault("killed before it tells masters", 4, f"1 kill {_OPTIMIZER}._spread 5"),
    Fault("killed as moments are collected", 2, f"1 kill {_OPTIMIZER}.state_tensors 4"),
    Fault("killed within a checkpoint", 2, f"0 kill {_CHECKPOINT}:_save_tensors 8"),
    Fault("killed before a checkpoint is in place", 4, "0 kill pyengine.files:_put_in_place 3"),
    Fault("stopped within a checkpoint", 2, f"0 stop {_CHECKPOINT}:_save_tensors 6"),
    Fault("killed before pruning", 2, f"0 kill {_CHECKPOINT}:prune {ROUNDS}"),
    Fault("killed while evaluating", 4, "3 kill pyengine.loops.online:Online.evaluate 2"),
    Fault("killed while it notes a round", 2, f"0 kill {_RUNNER}:append_lines 9"),
    Fault("killed while the model is saved", 2, f"0 kill {_ENGINE}:Engine.save_pretrained 1"),
    Fault("a full disk under a checkpoint", 2, "0 full pyengine.files:fsync_tree 3"),
    Fault("a full disk under any file", 4, "0 full os:fsync 60"),
    Fault("files that may not grow", 4, env={"PYENGINE_TEST_FILE_BYTES": "60000"}),
    Fault("a port that is taken", 2, env={"PYENGINE_RANK_DEADLINE_S": "5"}),
    Fault("unequal recipes", 4),
]


class Runs:
    """Of one recipe in a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        from conftest import write_tiny_model  # under pytest another file may have that name

        (scratch / "model").mkdir()
        write_tiny_model(scratch / "model")
        rows = (json.dumps({"prompt": f"Say something of {i}."}) + "\n" for i in range(6))
        (scratch / "prompts.jsonl").write_text("".join(rows))
        self.recipe = scratch / "r.yaml"
        text = RECIPE.format(model=scratch / "model").replace("rounds: 8", f"rounds: {ROUNDS}")
        self.recipe.write_text(text)
        self.alone = scratch / "alone"
        self.whole(self.alone, 1)

    def start(
        self, out: Path, size: int, *more: str, unequal: bool = False, **env: str
    ) -> Processes:
        faulty = Path(__file__).with_name("faulty.py")
        command = [faulty, "pyengine", "align", self.recipe, "--out", out, *more]
        commands = [list(command) for _ in range(size)]
        if unequal:
            commands[-1] += ["--set", "objective.beta=0.5"]
        return start_each(commands, PYENGINE_RANK_SILENCE_S=str(SILENCE_S), **env)

    def whole(self, out: Path, size: int, *more: str) -> None:
        ended = finished(self.start(out, size, *more))
        assert all(status == 0 for status, _, _ in ended), ended

    def check(self, out: Path, draw: random.Random, size: int) -> str:
        """The run goes on with another number of ranks, to the files of the one of one rank."""
        again = draw.choice([n for n in (1, 2, 4) if n != size])
        if not (out / "result.json").exists():
            self.whole(out, again, "--resume")
        here, there = left(out), left(self.alone)
        other = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
        assert not other, f"other bits of {other}"
        return f"{size} -> {again} ranks"


def ended(ranks: Processes, stopped: bool) -> str:
    """Waits for all but who was stopped; how long, and why they say that they ended."""
    began = time.monotonic()
    while stopped and not any(state_of(rank.pid) == "T" for rank in ranks):
        time.sleep(0.05)
        assert time.monotonic() - began < 60, "nobody was stopped"
    others = [r for r in ranks if not stopped or state_of(r.pid) != "T"]
    try:
        while all(rank.poll() is None for rank in ranks) and not stopped:
            time.sleep(0.02)
        began = time.monotonic()
        said = finished(others, timeout_s=60)
    finally:
        for rank in ranks:
            rank.kill()
    for status, _, err in said:
        sentences = [line for line in err.splitlines() if line.startswith("pyengine: ")]
        assert len(sentences) <= 1, err
        assert "Traceback" not in err, err
        assert status in (0, 2, -signal.SIGKILL), (status, err)
    reasons = {err.splitlines()[-1][:160] for status, _, err in said if status == 2}
    took = time.monotonic() - began
    return f"{took:.1f} s to end all; {' | '.join(sorted(reasons)) or 'all done'}"


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def named(runs: Runs, fault: Fault, out: Path) -> str:
    env, taken = dict(fault.env), None
    # A rank that never began is waited for until the deadline.
    env.setdefault("PYENGINE_RANK_DEADLINE_S", "20")
    if fault.at:
        env["PYENGINE_TEST_FAULT"] = fault.at
    if "port" in fault.name:
        taken = socket.create_server(("127.0.0.1", 0))
        env["MASTER_PORT"] = str(taken.getsockname()[1])
    ranks = runs.start(out, fault.size, unequal=fault.name == "unequal recipes", **env)
    said = ended(ranks, " stop " in fault.at)
    if taken is not None:
        taken.close()
    assert not (out / "result.json").exists(), "nothing happened"
    return said


def at_random(runs: Runs, draw: random.Random, size: int, out: Path) -> str:
    """SIGKILL to a rank some time after a round's line of the metrics."""
    ranks = runs.start(out, size)
    number, victim, moment = draw.randrange(ROUNDS), draw.randrange(size), draw.random()
    seen: list[float] = []
    while len(seen) <= number and all(rank.poll() is None for rank in ranks):
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") > len(seen):
            seen.append(time.monotonic())
        time.sleep(0.002)
    time.sleep(moment * (seen[-1] - seen[0]) / max(len(seen) - 1, 1))
    ranks[victim].kill()
    return f"rank {victim} after round {number} and {moment:.2f}: {ended(ranks, False)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="part of a name")
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    todo: list[tuple[str, int, Callable[[Runs, Path], str]]] = [
        (fault.name, fault.size, lambda runs, out, fault=fault: named(runs, fault, out))  # type: ignore[misc]
        for fault in NAMED
        if asked.only is None or asked.only in fault.name
    ]
    for _ in range(asked.random):
        size = draw.choice([2, 4])
        todo.append(
            ("killed", size, lambda runs, out, size=size: at_random(runs, draw, size, out))  # type: ignore[misc]
        )
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(Path(scratch))
        for i, (name, size, work) in enumerate(todo):
            out = Path(scratch) / f"run-{i}"
            try:
                said = work(runs, out)
                print(f"{name}: {runs.check(out, draw, size)}; {said}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name}: FAILED: {error}", flush=True)
    print(f"{len(todo)} faults, nothing was lost" if not failed else f"{failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
