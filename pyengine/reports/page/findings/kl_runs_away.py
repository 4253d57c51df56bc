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
LEAST = 1.0  # nats a response, below which growth is no matter
RULE = (
    f"A worry where it ends above {PER_TOKEN:g} nats a token, or where since the middle of the run "
    f"it grew {GROWTH:g} times or more, to {LEAST:g} nat a response at least, while reward fell."
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
    middle = end_of(points[: (len(points) + 1) // 2])
    worse = _reward_fell(run, middle)
    if middle is not None and worse and last.mean >= max(LEAST, GROWTH * middle.mean):
        text += (
            f", after {amount(middle.mean)} {middle.rounds}, and {worse}: the policy buys distance "
            "that no longer pays. An earlier round may be the best (early_stop)."
        )
        return Finding("worry", TITLE, text, RULE)
    return Finding("fine", TITLE, f"{text}, and is not running away.", RULE)


def _reward_fell(run: RunRecord, middle: End | None) -> str:
    """In words by how much since the middle; empty where it did not, or is not known."""
    rewards = run.points("objective/scores")
    half = [(r, v) for r, v in rewards if middle is not None and r <= middle.last]
    before, after = end_of(half), end_of(rewards)
    if before is None or after is None or after.mean >= before.mean:
        return ""
    return f"reward fell from {signed(before.mean)} to {signed(after.mean)}"
