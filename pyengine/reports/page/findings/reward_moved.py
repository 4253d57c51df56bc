"""Whether reward rose, by more than chance."""

from __future__ import annotations

from pyengine.evaluation.standard_errors import mean_and_error
from pyengine.reports.page.findings.finding import Finding, Level, amount, signed
from pyengine.reports.page.record import RunRecord, number
from pyengine.reports.page.trend import NOISE, change

TITLE = "Reward"
RULE = (
    f"Held out, prompt by prompt, where samples are kept; else of training prompts, first fifth of "
    f"the rounds against last. A change counts beyond {NOISE:g} standard errors."
)


def reward_moved(run: RunRecord) -> Finding | None:
    """Of the held-out prompts, paired, or of the training prompts."""
    return _held_out(run) or _in_training(run)


def _held_out(run: RunRecord) -> Finding | None:
    means: dict[int, dict[int, float]] = {}
    for row in run.samples:
        mean = number(row.get("mean"))
        if mean is not None:
            means.setdefault(row["round"], {})[row["index"]] = mean
    if len(means) < 2:
        return None
    first, last = min(means), max(means)
    both = sorted(means[first].keys() & means[last].keys())
    if not both:
        return None
    gain, error = mean_and_error([means[last][i] - means[first][i] for i in both])
    before, after = (mean_and_error([means[r][i] for i in both])[0] for r in (first, last))
    level, verb = _said(gain, NOISE * (error or 0.0), error is not None)
    place = "before training" if first == 0 else f"after round {first}"
    margin = "" if error is None else f" ± {amount(error)}"
    text = (
        f"Held-out reward {verb}: {signed(before)} {place}, {signed(after)} after round {last}, a "
        f"change of {signed(gain)}{margin} over {len(both)} prompts, each paired with itself."
    )
    return Finding(level, TITLE, text, RULE)


def _in_training(run: RunRecord) -> Finding | None:
    moved = change(run.points("objective/scores"))
    if moved is None:
        return None
    known = moved.before.error is not None and moved.after.error is not None
    level, verb = _said(moved.difference, moved.noise, known)
    text = (
        f"Reward of training prompts, which differ from round to round, {verb}: "
        f"{signed(moved.before.mean)} {moved.before.rounds}, {signed(moved.after.mean)} "
        f"{moved.after.rounds}. No two evaluations of held-out samples are there to compare."
    )
    return Finding(level, TITLE, text, RULE)


def _said(difference: float, noise: float, known: bool) -> tuple[Level, str]:
    """known  whether the noise is"""
    if not known:
        return "watch", "changed by what may be chance"
    if abs(difference) <= noise:
        return "watch", "did not change by more than chance explains"
    return ("fine", "rose") if difference > 0 else ("worry", "fell")
