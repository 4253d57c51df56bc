"""Whether reward is got by length: it rises with reward, and within a prompt the longer answer is
rewarded. Source: Singhal et al., arXiv:2310.03716.
"""

from __future__ import annotations

import math

from pyengine.reports.page.findings.finding import Finding, amount, percent, signed
from pyengine.reports.page.record import RunRecord
from pyengine.reports.page.trend import Change, change

TITLE = "Length"
RISE = 0.2  # of the mean length, below which nobody would call it longer
CORRELATION = 0.3  # of length and reward within a prompt; from here on it is no longer weak
RULE = (
    f"A worry where length rises by {percent(RISE)} or more, reward rises, and their correlation "
    f"within a prompt is {CORRELATION:g} or more on the mean of the rounds."
)


def length_hacking(run: RunRecord) -> Finding | None:
    """Of held-out samples where there are two evaluations, else of training samples."""
    held_out = len(run.points("eval/completions/mean_length")) > 1
    prefix, kind = ("eval/", "Held-out") if held_out else ("", "Training")
    length = change(run.points(f"{prefix}completions/mean_length"))
    errors = dict(run.points("eval/objective/scores_stderr")) if held_out else None
    reward = change(run.points(f"{prefix}objective/scores"), errors)
    if length is None or reward is None or length.before.mean <= 0:
        return None
    growth = length.difference / length.before.mean
    correlations = [value for _, value in run.points("objective/length_correlation")]
    mean = math.fsum(correlations) / len(correlations) if correlations else None
    first, last = length.before, length.after
    whens = (first.after_rounds, last.after_rounds) if held_out else (first.rounds, last.rounds)
    what = (
        f"{kind} responses went from {amount(first.mean)} tokens {whens[0]} to "
        f"{amount(last.mean)} {whens[1]} ({signed(100 * growth)} %), reward "
        f"from {signed(reward.before.mean)} to {signed(reward.after.mean)}"
    )
    if growth < RISE or not length.rises or not reward.rises:
        return Finding("fine", TITLE, f"{what}: {_not_both(growth, length, reward)}.", RULE)
    if mean is None:
        text = f"{what}. Whether longer answers to the same prompt get more is not on file."
        return Finding("watch", TITLE, text, RULE)
    if mean < CORRELATION:
        text = (
            f"{what}, but longer answers to the same prompt get little more, or less: correlation "
            f"{signed(mean)}, mean of {len(correlations)} rounds."
        )
        return Finding("watch", TITLE, text, RULE)
    text = (
        f"{what}, and longer answers to the same prompt get more: correlation {signed(mean)}, mean "
        f"of {len(correlations)} rounds. Read the samples: length itself may be what is learned. "
        "A reward less a price of length, or a loss normalised by length (simpo, ld_dpo), helps."
    )
    return Finding("worry", TITLE, text, RULE)


def _not_both(growth: float, length: Change, reward: Change) -> str:
    if growth < RISE or not length.rises:
        return "length has not grown much"
    return "length grew, but reward did not rise with it"
