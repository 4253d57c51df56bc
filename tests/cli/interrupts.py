"""Breaks runs off in every way at random moments, resumes them, and compares all they leave.

As a program, on a tiny random model:
    python tests/cli/interrupts.py --interrupts 30 --seed 0 [--disk FOLDER]

Ways: SIGINT, SIGINT twice, SIGTERM, a judge that fails from some call on, a disk that is full from
some moment on (files cannot grow beyond a size; with --disk, a file system of its own that may be
filled, such as a tmpfs of 64 MB, there is also no space left on it), SIGKILL. Runs are forked off a
process that has imported pyengine and never computed: a start takes no import, so that moments fall
into the run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROUNDS, SAMPLES, PROMPTS_PER_ROUND = 8, 3, 2
ONLINE = f"""\
model: model
dtype: float32
learning_rate: 1e-3
prompts: prompts.jsonl
reward: rewards.py:spread
sampling: {{n: {SAMPLES}, max_tokens: 6}}
pairing: all_pairs
rounds: {ROUNDS}
prompts_per_round: {PROMPTS_PER_ROUND}
updates_per_round: 2
checkpoint_every: 5
eval: {{prompts: held_out.jsonl, n: 1, max_tokens: 4, every: 3}}
"""
OFFLINE = """\
loop: offline
model: model
dtype: float32
learning_rate: 1e-3
data: {file: pairs.jsonl}
epochs: 2
batch_size: 2
checkpoint_every: 5
eval: {split: 0.2, every: 3}
"""
# Says in a pipe which training round's samples it judges, and fails from call FAIL_FROM on.
REWARDS = f"""\
import hashlib, json, os
calls = 0
def spread(prompts, prompt_ids, completion_ids):
    global calls
    calls += 1
    if calls >= int(os.environ.get("FAIL_FROM", "1000000")):
        raise ConnectionError("the judge is away")
    if "CALLS" in os.environ and not prompts[0].startswith("held out"):
        n = {SAMPLES}
        starts = range(0, len(prompt_ids), n)
        ids = [[prompt_ids[i], *completion_ids[i : i + n]] for i in starts]
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        os.write(int(os.environ["CALLS"]), (digest + "\\n").encode())
    return [float(sum(i * t for i, t in enumerate(ids)) % 997) for ids in completion_ids]
"""
WAYS = ("sigint", "sigint twice", "sigterm", "judge", "full disk", "sigkill")
NO_SPACE = "no space"  # a full disk on a file system of its own
# What `pyengine align` exits with, by the way a run was broken off; 0: it ended before.
CODES = {
    "sigint": {0, 130},
    "sigint twice": {0, 130},
    "sigterm": {0, 130, -signal.SIGTERM},  # before its handler is there, nothing is done
    "judge": {0, 2},
    "full disk": {0, 2},
    NO_SPACE: {0, 2},
    "sigkill": {0, -signal.SIGKILL},
}


@dataclass
class Left:
    """What a run left when it was broken off.

    reported   rounds whose metrics are on file
    judged     rounds whose verdicts are on file
    saved      round of the newest whole checkpoint; -1 without one
    """

    reported: int
    judged: int
    saved: int

    @property
    def lost(self) -> int:
        """Complete rounds that are to be gone through again."""
        return max(0, self.reported - max(self.saved, 0))


@dataclass
class Child:
    """A run in a process of its own."""

    pid: int
    output: int
    calls: int
    code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit code, -N of a signal; None when it still runs after the time."""
        end = time.monotonic() + (1e9 if timeout_s is None else timeout_s)
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def read(self) -> tuple[str, list[str]]:
        """(what it printed, digests of the samples that its judge was asked about)."""
        texts = []
        for descriptor in (self.output, self.calls):
            with os.fdopen(descriptor, encoding="utf-8") as file:
                texts.append(file.read())
        return texts[0], texts[1].splitlines()


@dataclass
class Trial:
    """Runs of one recipe in one folder, and what went wrong with them."""

    folder: Path
    recipe: str
    faults: list[str] = field(default_factory=list)
    asked: collections.Counter[str] = field(default_factory=collections.Counter)

    def start(self, out: str, fail_from: int | None = None) -> Child:
        output, calls = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            self._run(out, output[1], calls[1], fail_from)
        os.close(output[1])
        os.close(calls[1])
        return Child(pid, output[0], calls[0])

    def _run(self, out: str, output: int, calls: int, fail_from: int | None) -> None:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.folder)
            os.environ["CALLS"] = str(calls)
            if fail_from is not None:
                os.environ["FAIL_FROM"] = str(fail_from)
            from pyengine.cli.main import main

            code = main(["align", self.recipe, "--out", out, "--resume", "--allow-code"])
            sys.stdout.flush()
        finally:
            os._exit(code)

    def left(self, out: str) -> Left:
        from pyengine.engine.persist.checkpoint import newest_verified

        newest = newest_verified(self.folder / out / "checkpoints")
        saved = -1 if newest is None else int(newest.name.removeprefix("step-"))
        metrics = self.rows(out, "metrics.jsonl")
        verdicts = self.rows(out, "verdicts.jsonl")
        return Left(
            metrics[-1]["round"] if metrics else -1,
            verdicts[-1]["round"] if verdicts else 0,
            saved,
        )

    def rows(self, out: str, name: str) -> list[dict]:
        """Whole lines of a line file, without the times in them."""
        path = self.folder / out / name
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        timed = ("time/", "tokens_per_s")
        return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]

    def finish(self, out: str) -> float:
        """Lets a run go to its end; returns its seconds."""
        began, known = time.monotonic(), self.digests(out)
        child = self.start(out)
        code = child.wait()
        text, asked = child.read()
        self.expect(code == 0, f"{out} ended with {code}: {text[-500:]}")
        self.check_judge(out, known, asked)
        return time.monotonic() - began

    def break_off(self, out: str, way: str, rng: random.Random, whole_s: float) -> int | None:
        """One interrupt; the exit code."""
        known, calls = self.digests(out), rng.randint(1, ROUNDS + 3)
        child = self.start(out, calls if way == "judge" else None)
        if way != "judge":
            child.wait(rng.uniform(0.02, 1.0) * whole_s)
        if way == "full disk" and child.code is None:
            size = int(10 ** rng.uniform(2, 5))
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        if way == NO_SPACE and child.code is None:
            with filled(self.folder):
                code = child.wait()
        elif way.startswith("sig"):
            number = {"sigterm": signal.SIGTERM, "sigkill": signal.SIGKILL}.get(way, signal.SIGINT)
            child.signal(number)
            if way == "sigint twice":
                child.wait(rng.uniform(0, 0.03))
                child.signal(number)
        code = child.wait()
        text, asked = child.read()
        self.expect(code in CODES[way], f"{way}: ended with {code}: {text[-800:]}")
        self.check_judge(out, known, asked)
        if code:
            self.check_left(out, way)
        return code

    def digests(self, out: str) -> set[str]:
        return {row["digest"] for row in self.rows(out, "verdicts.jsonl")}

    def check_judge(self, out: str, known: set[str], asked: list[str]) -> None:
        again = known.intersection(asked)
        self.expect(
            not again, f"{out}: the judge was asked again about {len(again)} rounds on file"
        )
        self.asked.update([out] * len(asked))

    def check_left(self, out: str, way: str) -> None:
        """No complete round may be lost, unless one was broken off within its updates, or nothing
        could be written."""
        left = self.left(out)
        print(f"  {way}: {left}", flush=True)
        if way in ("sigint", "sigterm", "judge"):
            self.expect(left.lost == 0, f"{way}: {left.lost} complete rounds were lost: {left}")
        if way == "sigint twice" and left.lost and self.recipe == "online.yaml":
            within = left.judged > left.reported
            self.expect(within, f"{way}: rounds were lost with no update begun: {left}")
        if way != "sigkill":
            found = [p.name for p in (self.folder / out).rglob("*.tmp-*")]
            killed = (self.folder / f"{out}.killed").exists()
            self.expect(killed or not found, f"{way}: {found} were left")
        else:
            (self.folder / f"{out}.killed").touch()

    def compare(self, out: str) -> None:
        """With the run that nothing interrupted."""
        for name in ("model/model.safetensors", "samples.jsonl", "samples.md", "recipe.yaml"):
            whole, cut = (self.folder / run / name for run in ("whole", out))
            same = whole.exists() == cut.exists()
            same = same and (not whole.exists() or whole.read_bytes() == cut.read_bytes())
            self.expect(same, f"{out}: {name} differs")
        for name in ("metrics.jsonl", "verdicts.jsonl"):
            whole, cut = self.rows("whole", name), self.rows(out, name)
            numbers = [row["round"] for row in cut]
            self.expect(len(set(numbers)) == len(numbers), f"{out}: {name} has {numbers}")
            self.expect(whole == cut, f"{out}: {name} differs")

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            print(f"  FAULT {otherwise}", flush=True)
            self.faults.append(otherwise)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No space is left on the folder's file system for a while."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    try:
        yield
    finally:
        filler.unlink()


def write_inputs(folder: Path) -> None:
    """A tiny random model, prompts, pairs, a judge and both recipes."""
    from conftest import write_tiny_model

    (folder / "model").mkdir()
    write_tiny_model(folder / "model")
    words = ("sea", "train", "bread", "moon", "rain")
    prompts = [{"prompt": f"The {word}"} for word in words]
    held_out = [{"prompt": f"held out: {word}"} for word in words[:2]]
    pairs = [
        {"prompt": f"{w} and {v}", "chosen": f" {w}.", "rejected": f" {v}!"}
        for w in words for v in words if w < v
    ]  # fmt: skip
    for name, rows in (("prompts", prompts), ("held_out", held_out), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "online.yaml").write_text(ONLINE)
    (folder / "offline.yaml").write_text(OFFLINE)


def interrupt_and_resume(folder: Path, recipe: str, ways: list[str], seed: int) -> list[str]:
    """Breaks runs of a recipe off in these ways, one after the other; returns what went wrong."""
    rng = random.Random(f"{recipe} {seed}")
    trial = Trial(folder, recipe)
    whole_s = trial.finish("whole")
    print(f"{recipe}: uninterrupted {whole_s:.1f} s", flush=True)
    runs = broken = 0
    ways = list(ways)
    while ways:
        out = f"cut-{runs}"
        for _ in range(rng.randint(1, 3)):
            if not ways or not trial.break_off(out, ways[0], rng, whole_s):
                break  # it ended before its moment came
            ways.pop(0)
            broken += 1
        trial.finish(out)
        trial.compare(out)
        runs += 1
    asked = sum(trial.asked.values())
    print(
        f"{recipe}: {broken} interrupts in {runs} runs, {asked} calls of the judge, "
        f"{len(trial.faults)} faults",
        flush=True,
    )
    return trial.faults


def import_once() -> None:
    """For all the runs."""
    import pyengine.cli.main  # noqa: F401

    with contextlib.suppress(ImportError):
        import matplotlib.figure  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--interrupts", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="a file system of its own, which is filled")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    import_once()
    faults = []
    offline = args.interrupts // 3
    every = WAYS if args.disk is None else (*WAYS, NO_SPACE)
    for recipe, ways, count in (
        ("online.yaml", every, args.interrupts - offline),
        ("offline.yaml", [way for way in every if way != "judge"], offline),
    ):
        share = [ways[i % len(ways)] for i in range(count)]
        with tempfile.TemporaryDirectory(dir=args.disk) as name:
            folder = Path(name)
            write_inputs(folder)
            faults += interrupt_and_resume(folder, recipe, share, args.seed)
    print(f"{args.interrupts} interrupts: {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
