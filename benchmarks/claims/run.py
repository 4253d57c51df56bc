"""Published claims in miniature, through the project's own objectives.

    python benchmarks/claims/run.py [--write docs/claims.md]

Tables of a few arms and linear rewards in float64; minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import estimation
import exploration
import iteration
from claim import Outcome, outcome
from tqdm import tqdm

CLAIMS = [*iteration.CLAIMS, *estimation.CLAIMS, *exploration.CLAIMS]


def page(outcomes: list[Outcome]) -> str:
    """docs/claims.md."""
    lines = [
        "# Claims",
        "",
        "What papers promise, in miniature and through the project's own objectives: printed by",
        "`python benchmarks/claims/run.py --write docs/claims.md`. A claim with random seeds is",
        "shown where four of five meet the criterion; what does not hold is in the table as well.",
        "",
        "| claim | criterion | shown | figures (means over seeds) |",
        "|---|---|---|---|",
    ]
    for o in outcomes:
        shown = "yes" if o.passed else "**no**"
        seeds = f" ({o.met} of {len(o.figures)} seeds)" if len(o.figures) > 1 else ""
        note = f" ({o.claim.note})" if o.claim.note else ""
        criterion = o.claim.criterion.replace("|", "\\|")
        figures = o.line().replace("|", "\\|")
        title = f"{o.claim.title} ({o.claim.paper})"
        lines.append(f"| {title} | {criterion} | {shown}{seeds} | {figures}{note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the page that is made of the outcomes")
    path = parser.parse_args().write
    outcomes = []
    for claim in tqdm(CLAIMS, unit="claim"):
        start = time.perf_counter()
        outcomes.append(outcome(claim))
        seconds = time.perf_counter() - start
        word = "shown" if outcomes[-1].passed else "NOT SHOWN"
        tqdm.write(f"{word}: {claim.title} ({seconds:.0f} s)\n    {outcomes[-1].line()}")
    if path is not None:
        path.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
