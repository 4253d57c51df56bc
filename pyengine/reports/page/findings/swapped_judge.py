"""Whether a judge says the same when two responses change places.

Source: Zheng et al., arXiv:2306.05685, section 3.3: position bias.
"""

from __future__ import annotations

from pyengine.reports.page.findings.finding import Finding, Level, amount, percent
from pyengine.reports.page.record import RunRecord

TITLE = "Judge, asked in both orders"
WATCH, WORRY = 0.1, 0.3  # shares of the pairs; a judge that goes by place alone disagrees on all
RULE = (
    f"The share of the pairs answered in both orders whose verdict turned with the order: to watch "
    f"from {percent(WATCH)}, a worry from {percent(WORRY)}. Nothing is said of a judge that was "
    "asked in one order."
)


def swapped_judge(run: RunRecord) -> Finding | None:
    """Of all rounds together."""
    asked = run.total("judge/both_orders")
    turned = run.total("judge/swap_disagreements")
    if not asked or turned is None:
        return None
    share = turned / asked
    level: Level = "worry" if share >= WORRY else "watch" if share >= WATCH else "fine"
    text = (
        f"The judge disagreed with itself on {amount(turned)} of {amount(asked)} pairs "
        f"({percent(share)}) when the two responses changed places."
    )
    if level == "worry":
        text += (
            " Its verdict on those is its taste for a place. A larger judge, clearer criteria, or "
            "leaving out pairs near 1/2 (min_margin) makes them fewer."
        )
    return Finding(level, TITLE, text, RULE)
