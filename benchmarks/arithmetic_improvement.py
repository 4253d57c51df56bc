"""Held-out accuracy on sums before and after ReST-EM, GRPO and iterative DPO, three seeds each.

    python benchmarks/arithmetic_improvement.py --out FOLDER [--seeds 3] [--only grpo]

A small model (benchmarks/adding_model.py) is taught for a while on a part of all sums, one model a
seed. Each method then learns from other sums, whose answers are only checked, never shown. Measured
is the accuracy on sums that neither has seen in either order, of sampled answers (temperature 1)
and of the likeliest ones, with the tokens sampled and learned from and the seconds.

Every run adds a line to FOLDER/rows.jsonl, and runs that have one are not done again. The table
comes at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adding_model import Sums, sums, teach

import pyengine as pe
from pyengine.loops import ExpertIteration, Iterative, OnPolicyRL, evaluate
from pyengine.objectives import DPO, GRPO, NLL
from pyengine.preferences import BestWorst
from pyengine.preferences.sources.verifiers import ExactMatch

TAUGHT, STEPS, BATCH, RATE = 1500, 140, 128, 2e-3
MAX_TOKENS, SAMPLES, EVAL_SAMPLES = 4, 8, 4
Row = dict[str, Any]


def sampling(seed: int, **options: Any) -> pe.SamplingParams:
    return pe.SamplingParams(**{"n": SAMPLES, "max_tokens": MAX_TOKENS, "seed": seed} | options)


def rest_em(engine: Any, given: Row) -> tuple[Any, int]:
    """Right samples, at most ten a question, learned from the taught model on, three times."""
    loop = ExpertIteration(
        engine, **given, objective=NLL(average="batch"), sampling=sampling(given["seed"], n=16),
        prompts_per_round=853, above=0.5, best=10, start="base", epochs=2, batch_size=128,
    )  # fmt: skip
    return loop, 3


def grpo(engine: Any, given: Row) -> tuple[Any, int]:
    """A step on 64 questions a round, all samples, with a penalty to the taught model."""
    loop = OnPolicyRL(
        engine, **given, objective=GRPO(beta=0.01), sampling=sampling(given["seed"]),
        prompts_per_round=64,
    )  # fmt: skip
    return loop, 80


def iterative_dpo(engine: Any, given: Row) -> tuple[Any, int]:
    """A right sample against a wrong one of each question, two epochs, five times, each time
    against the model that sampled."""
    loop = Iterative(
        engine, **given, pairing=BestWorst(), objective=DPO(beta=0.1),
        sampling=sampling(given["seed"]), prompts_per_round=1024, reference_policy="last",
        epochs=2, batch_size=64,
    )  # fmt: skip
    return loop, 5


# method -> (its loop, learning rate, reference)
METHODS: dict[str, tuple[Callable[[Any, Row], tuple[Any, int]], float, str]] = {
    "rest_em": (rest_em, 5e-4, "none"),
    "grpo": (grpo, 2e-4, "frozen"),
    "iterative_dpo": (iterative_dpo, 3e-5, "frozen"),
}


def accuracies(engine: Any, questions: Sequence[tuple[str, str]]) -> Row:
    """Of sampled and of likeliest answers to held-out questions, with errors over questions."""
    prompts, answers = (list(each) for each in zip(*questions, strict=True))
    found: Row = {}
    for name, params in (
        ("sampled", sampling(1, n=EVAL_SAMPLES)), ("likeliest", sampling(1, n=1, temperature=0.0)),
    ):  # fmt: skip
        result = evaluate(engine, prompts, ExactMatch(), params, {"answer": answers})
        found |= {name: result.mean, f"{name}_error": result.standard_error}
    return found


class Counting:
    """An engine that counts the tokens that it samples and learns from, prompts once a group."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.sampled, self.learned = engine, 0, 0
        self._generate, self._update = engine.generate, engine.update
        engine.generate, engine.update = self._generating, self._updating

    def _generating(self, *args: Any, **options: Any) -> Any:
        groups = self._generate(*args, **options)
        self.sampled += sum(len(r.token_ids) for g in groups for r in g.responses)
        return groups

    def _updating(self, batch: pe.Preferences, objective: Any) -> Any:
        used: dict[int, set[int]] = {}
        for c in batch.comparisons:
            used.setdefault(c.group, set()).update((c.winner, c.loser))
        if objective.unit != "comparison" and batch.feedback is not None:
            for g, row in enumerate(batch.feedback.status):
                used[g] = {k for k, status in enumerate(row) if status == "value"}
        for g, ks in used.items():
            group = batch.groups[g]
            self.learned += bool(ks) * len(group.prompt_ids)
            self.learned += sum(len(group.responses[k].token_ids) for k in ks)
        return self._update(batch, objective)


def base(folder: Path, data: Sums, seed: int) -> Row:
    """The taught model of a seed, and what it cost."""
    began = time.perf_counter()

    def say(step: int, loss: float) -> None:
        if step % 100 == 99:
            print(f"base {seed}: step {step + 1} of {STEPS}, loss {loss:.3f}", flush=True)

    tokens = teach(folder / f"base-{seed}", data.taught, STEPS, BATCH, RATE, seed, say)
    seconds = time.perf_counter() - began
    return {"method": "base", "seed": seed, "learned_tokens": tokens, "seconds": seconds}


def run(folder: Path, data: Sums, method: str, seed: int) -> Row:
    """One method from one taught model."""
    make, rate, reference = METHODS[method]
    engine: Any = pe.Engine.from_pretrained(
        folder / f"base-{seed}" / "model", dtype="float32", reference=reference,
        learning_rate=rate, seed=seed,
    )  # fmt: skip
    before = accuracies(engine, data.held_out)
    prompts, answers = (list(each) for each in zip(*data.train, strict=True))
    given = {
        "prompts": prompts,
        "columns": {"answer": answers},
        "source": ExactMatch(),
        "seed": seed,
    }
    counting = Counting(engine)
    began = time.perf_counter()
    loop, rounds = make(engine, given)
    scores = [report["objective/scores"] for report in loop.run(rounds)]
    seconds = time.perf_counter() - began
    sampled, learned = counting.sampled, counting.learned
    return {
        "method": method,
        "seed": seed,
        "rounds": rounds,
        "steps": engine.step_count,
        "before": before,
        "after": accuracies(engine, data.held_out),
        "train_scores": [scores[0], scores[-1]],
        "sampled_tokens": sampled,
        "learned_tokens": learned,
        "seconds": seconds,
    }


def kept(file: Path) -> dict[tuple[str, int], Row]:
    """The runs that are done."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return {(row["method"], row["seed"]): row for row in rows}


def table(rows: dict[tuple[str, int], Row]) -> str:
    """Markdown: means over the seeds and their sample standard deviation."""
    lines = [
        "| method | seeds | sampled, before | after | gain | likeliest, before | after | gain | "
        "tokens sampled | learned from | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        mine = [row for (name, _), row in sorted(rows.items()) if name == method]
        if not mine:
            continue
        cells = [method, str(len(mine))]
        for kind in ("sampled", "likeliest"):
            before, after = ([row[when][kind] for row in mine] for when in ("before", "after"))
            gains = [b - a for a, b in zip(before, after, strict=True)]
            cells += [spread(before), spread(after), spread(gains, sign="+")]
        for name in ("sampled_tokens", "learned_tokens"):
            cells.append(f"{statistics.mean(row[name] for row in mine):,.0f}")
        cells.append(spread([row["seconds"] for row in mine], digits=0))
        lines.append(f"| {' | '.join(cells)} |")
    bases = [row for (name, _), row in rows.items() if name == "base"]
    if bases:
        lines += ["", (
            f"Teaching a base model: {statistics.mean(b['learned_tokens'] for b in bases):,.0f} "
            f"tokens, {spread([b['seconds'] for b in bases], digits=0)} s."
        )]  # fmt: skip
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean ± standard deviation; the mean alone of one."""
    text = f"{statistics.mean(values):{sign}.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def smallest_gain(rows: dict[tuple[str, int], Row]) -> str:
    """The least gain of any run in units of its error over the held-out questions, unpaired."""
    found = []
    for (method, seed), row in rows.items():
        if method != "base":
            a, b = row["before"], row["after"]
            error = math.hypot(a["sampled_error"], b["sampled_error"])
            found.append(((b["sampled"] - a["sampled"]) / error, method, seed))
    if not found:
        return ""
    least, method, seed = min(found)
    return f"Least gain of a run, sampled: {least:.1f} standard errors ({method}, seed {seed})."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=[*METHODS, "none"], help="one method, or the table alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "rows.jsonl"
    rows = kept(file)

    def add(row: Row) -> None:
        rows[row["method"], row["seed"]] = row
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    for seed in range(args.seeds if args.only != "none" else 0):
        data = sums(seed, TAUGHT)
        if ("base", seed) not in rows:
            add(base(args.out, data, seed))
        for method in METHODS if args.only is None else [args.only]:
            if (method, seed) not in rows:
                add(run(args.out, data, method, seed))
    print(table(rows))
    print(smallest_gain(rows))


if __name__ == "__main__":
    main()
