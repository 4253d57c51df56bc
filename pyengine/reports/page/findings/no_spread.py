"""Whether rewards differ at all: without that the loss is 0 and there is nothing to learn."""

from __future__ import annotations

from pyengine.reports.page.findings.finding import Finding, percent
from pyengine.reports.page.record import RunRecord
from pyengine.reports.page.trend import end_of

TITLE = "Spread of rewards"
WORRY = 0.5  # of the prompts, or of the rounds
RULE = (
    f"A worry where in the last fifth of the rounds {percent(WORRY)} or more of the prompts have "
    f"responses of equal reward, or {percent(WORRY)} or more of all rounds made no update."
)


def no_spread(run: RunRecord) -> Finding | None:
    """Of prompts at the end of the run, and of rounds in all."""
    equal = end_of(run.points("frac_reward_zero_std"))
    idle = run.points("rounds_without_update")
    without = int(idle[-1][1]) if idle else 0
    if equal is None and not without:
        return None
    parts = []
    if equal is not None:
        parts.append(
            f"{equal.rounds[0].upper()}{equal.rounds[1:]}, {percent(equal.mean)} of the prompts "
            "had responses of equal reward"
        )
    if idle:
        parts.append(f"{without} of {run.rounds} rounds made no update")
    text = "; ".join(parts) + "."
    if equal is not None and equal.mean >= WORRY:
        text += (
            " Equal rewards have neither a better response nor an advantage: loss 0, nothing to "
            "learn. More samples a prompt, a finer reward, or prompts that are neither too easy "
            "nor too hard make a difference."
        )
        return Finding("worry", TITLE, text, RULE)
    if run.rounds and without >= WORRY * run.rounds:
        return Finding("worry", TITLE, f"{text} Those taught nothing.", RULE)
    return Finding("fine", TITLE, text, RULE)
