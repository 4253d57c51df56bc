"""Updates until RAFT's accuracy on sums, samples divided evenly and by GVM, five seeds.

    python benchmarks/gvm_beside_raft.py --out FOLDER [--seeds 5] [--write FILE]

The half-taught models of benchmarks/arithmetic_improvement.py learn from their own right answers,
an update a round on 64 questions with 1,024 samples: 16 of each question, or 8 of each and the rest
where gradient norms are large and right answers rare (arXiv:2505.02391). Every fifth round accuracy
is measured on 500 held-out sums, four samples each.

RAFT's level is the mean of its last three measurements. The claim is shown for a seed where RAFT
needs at least 1.3 times the updates that GVM-RAFT does to first reach it.

Every run adds a line to FOLDER/rows.jsonl, and runs that have one are not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adding_model import Sums, sums
from arithmetic_improvement import TAUGHT, Row, accuracies, base, kept, sampling

import pyengine as pe
from pyengine.loops import ExpertIteration
from pyengine.objectives import NLL
from pyengine.preferences.allocations.gvm import Gvm
from pyengine.preferences.sources.verifiers import ExactMatch

ROUNDS, EVERY, QUESTIONS, SAMPLES, RATE = 60, 5, 64, 16, 5e-4
LAST, FACTOR = 3, 1.3  # measurements that are RAFT's level; the claim's criterion
ARMS: dict[str, Any] = {"raft": None, "gvm": Gvm(first=8, measured=2)}


def run(folder: Path, data: Sums, arm: str, seed: int) -> Row:
    """One arm from one taught model: accuracy after every fifth update."""
    engine: Any = pe.Engine.from_pretrained(
        folder / f"base-{seed}" / "model", dtype="float32", reference="none",
        learning_rate=RATE, seed=seed,
    )  # fmt: skip
    prompts, answers = (list(each) for each in zip(*data.train, strict=True))
    loop = ExpertIteration(
        engine, prompts, ExactMatch(), NLL(average="example"), sampling(seed, n=SAMPLES),
        columns={"answer": answers}, allocation=ARMS[arm], accepted_above=0.5, above=0.5,
        best=None, dedupe=False, prompts_per_round=QUESTIONS, seed=seed,
    )  # fmt: skip
    began, measuring = time.perf_counter(), 0.0
    curve = {0: accuracies(engine, data.held_out)["sampled"]}
    for report in loop.run(ROUNDS):
        if report["round"] % EVERY == 0:
            paused = time.perf_counter()
            curve[report["round"]] = accuracies(engine, data.held_out)["sampled"]
            measuring += time.perf_counter() - paused
    seconds = time.perf_counter() - began - measuring
    return {
        "method": arm, "seed": seed, "curve": curve, "updates": engine.step_count,
        "seconds": seconds,
    }  # fmt: skip


def curve(row: Row) -> list[tuple[int, float]]:
    """(updates, accuracy), as JSON may have it."""
    return [(int(updates), accuracy) for updates, accuracy in row["curve"].items()]


def reached(row: Row, level: float) -> int | None:
    """Updates after which a level is first measured."""
    return next((updates for updates, accuracy in curve(row) if accuracy >= level), None)


def table(rows: dict[tuple[str, int], Row]) -> str:
    """Markdown: a line a seed, and whether the claim is shown."""
    lines = [
        "| seed | before | RAFT's level | GVM's | updates to it, RAFT | GVM-RAFT | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    met, seeds = 0, sorted({seed for method, seed in rows if method == "gvm"})
    for seed in seeds:
        one, other = rows["raft", seed], rows["gvm", seed]
        ends = [statistics.mean(a for _, a in curve(row)[-LAST:]) for row in (one, other)]
        updates = [reached(row, ends[0]) for row in (one, other)]
        assert updates[0]  # a mean is not above all of what it is the mean of
        ratio = updates[0] / updates[1] if updates[1] else None
        met += ratio is not None and ratio >= FACTOR
        said = f"{ratio:.2f}" if ratio else "not reached"
        lines.append(
            f"| {seed} | {curve(one)[0][1]:.3f} | {ends[0]:.3f} | {ends[1]:.3f} | {updates[0]} | "
            f"{updates[1] or '-'} | {said} |"
        )
    shown = "shown" if met >= len(seeds) * 4 / 5 else "not shown"
    seconds = [statistics.mean(rows[arm, s]["seconds"] for s in seeds) for arm in ARMS]
    lines += ["", f"At least {FACTOR} times for {met} of {len(seeds)} seeds: {shown}."]
    lines += [f"Seconds of the updates: {seconds[0]:.0f} and {seconds[1]:.0f}."]
    return "\n".join(lines)


def done(file: Path, rows: dict[tuple[str, int], Row], row: Row) -> None:
    rows[row["method"], row["seed"]] = row
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a copy of the rows")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "rows.jsonl"
    rows = kept(file)
    for seed in range(args.seeds):
        data = sums(seed, TAUGHT)
        if ("base", seed) not in rows:
            done(file, rows, base(args.out, data, seed))
        for arm in ARMS:
            if (arm, seed) not in rows:
                done(file, rows, run(args.out, data, arm, seed))
    if args.write:
        shutil.copyfile(file, args.write)
    print(table(rows))


if __name__ == "__main__":
    main()
