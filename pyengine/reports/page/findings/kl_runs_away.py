"""Whether the policy leaves its reference without an end.

Source: reward that falls while KL grows is past the peak of Gao et al., arXiv:2210.10760.
"""

from __future__ import annotations

from pyengine.reports.page.findings.finding import Finding, amount, signed
from pyengine.reports.page.record import RunRecord
from pyengine.reports.page.trend import End, end_of

TITLE = "KL to the reference"
PER_TOKEN = 0.5  # nats: a token is on average e^0.5 = 1.6 times as likely as under the reference
GROWTH = 1.5  # of the KL since the middle of the run
FASTER = 3.0  # the same where reward did not fall; growth at an even pace is twofold
ROUNDS = 4  # of which the first half has an end that is not the start
LEAST = 1.0  # nats a response, below which growth is no matter
RULE = (
    f"A worry where it ends above {PER_TOKEN:g} nats a token, or where since the middle of the run "
    f"it grew {GROWTH:g} times or more while reward fell; to watch where it grew {FASTER:g} times "
    f"or more. Growth counts from {LEAST:g} nat a response and {ROUNDS} rounds on."
)


def kl_runs_away(run: RunRecord) -> Finding | None:
    """Of the policy's training samples."""
    points = run.points("objective/kl")
    last = end_of(points)
    if last is None or len(points) < 2:
        return None
    text = f"KL to the reference is {amount(last.mean)} nats a response {last.rounds}"
    per_token = end_of(run.ratio("objective/kl", "completions/mean_length"))
    if per_token is not None:
        text += f", {amount(per_token.mean)} a token"
    if per_token is not None and per_token.mean > PER_TOKEN:
        text += (
            ": the policy has left it far behind. A larger beta, a smaller "
            "learning rate, or fewer rounds keep it nearer."
        )
        return Finding("worry", TITLE, text, RULE)
    middle = end_of(points[: (len(points) + 1) // 2]) if len(points) >= ROUNDS else None
    rewards = _rewards(run, middle)
    if middle is None or last.mean < LEAST or last.mean < GROWTH * middle.mean:
        return Finding("fine", TITLE, f"{text}, and is not running away.", RULE)
    text += f", after {amount(middle.mean)} {middle.rounds}"
    if rewards is not None and rewards[1] < rewards[0]:
        text += (
            f", and reward fell from {signed(rewards[0])} to {signed(rewards[1])}: the policy buys "
            "distance that no longer pays. An earlier round may be the best (early_stop)."
        )
        return Finding("worry", TITLE, text, RULE)
    if rewards is not None:
        text += f", and reward went from {signed(rewards[0])} to {signed(rewards[1])}"
    fast = last.mean >= FASTER * middle.mean
    text += ": it grows faster and faster." if fast else ": it is not running away."
    return Finding("watch" if fast else "fine", TITLE, text, RULE)


def _rewards(run: RunRecord, middle: End | None) -> tuple[float, float] | None:
    """Mean reward of training samples in the middle of the run and at its end."""
    rewards = run.points("objective/scores")
    half = [(r, v) for r, v in rewards if middle is not None and r <= middle.last]
    before, after = end_of(half), end_of(rewards)
    return None if before is None or after is None else (before.mean, after.mean)
