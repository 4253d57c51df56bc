"""Whether chosen responses become less likely, and whether that is a worry.

Losses of margins may lower both log-probs: the rejected one by more. Source: Pal et al.,
arXiv:2402.13228; Razin et al., arXiv:2410.08847.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyengine.reports.page.findings.finding import Finding, amount, signed
from pyengine.reports.page.record import RunRecord
from pyengine.reports.page.trend import NOISE, change, end_of

TITLE = "Log-prob of the chosen responses"
WORRY = 1.0  # a fall of more than so many times the gain in margin: more is lost than is won
RULE = (
    f"They fall where the change exceeds {NOISE:g} standard errors; a worry where the fall exceeds "
    f"the margin's gain times {WORRY:g}. Against the reference (rewards/*, the scaled log-ratio) "
    "where the loss reads one, else between the first and the last fifth of the steps on given "
    "data (logps/*)."
)


@dataclass(frozen=True)
class _Moved:
    """Changes of log-prob, and what they are against.

    noise  that a change of the chosen ones' must exceed; None where it is not known: of a single
           round of training
    """

    chosen: float
    rejected: float
    noise: float | None
    since: str
    where: str

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected

    @property
    def figures(self) -> str:
        return f"({self.where}: {signed(self.chosen)}, rejected {signed(self.rejected)})"


def chosen_falls(run: RunRecord) -> Finding | None:
    """Of rewards/*, the scaled change against the reference, or of logps/* on given data."""
    moved = _against_reference(run) if run.compares_to_reference else _since_the_first_steps(run)
    if moved is None:
        return None
    if moved.noise is None and moved.chosen < 0:
        text = (
            f"Chosen responses are less likely than {moved.since} {moved.figures}, by what may be "
            "the noise of a single round."
        )
        return Finding("watch", TITLE, text, RULE)
    if moved.chosen >= -(moved.noise or 0.0):
        more = "" if moved.chosen >= 0 else " by more than noise explains"
        text = f"Chosen responses are not less likely than {moved.since}{more} {moved.figures}."
        return Finding("fine", TITLE, text, RULE)
    lost, won = amount(-moved.chosen), amount(moved.margin)
    if -moved.chosen <= WORRY * moved.margin:
        text = (
            f"Chosen responses are less likely than {moved.since}, and rejected ones more so "
            f"{moved.figures}. Losses of margins do that; no worry while the margin's gain, {won}, "
            f"exceeds the fall, {lost}."
        )
        return Finding("watch", TITLE, text, RULE)
    text = (
        f"Chosen responses are less likely than {moved.since} by more than the margin gained "
        f"{moved.figures}: {lost} lost, {won} of margin. Their probability goes to other "
        "responses. A smaller learning rate, a larger beta, or an objective with a likelihood "
        "term (dpo_nll, dpop; orpo without a reference) holds them."
    )
    return Finding("worry", TITLE, text, RULE)


def _against_reference(run: RunRecord) -> _Moved | None:
    held_out = len(run.points("eval/rewards/chosen")) > 1
    prefix = "eval/" if held_out else ""
    chosen = end_of(run.points(f"{prefix}rewards/chosen"))
    rejected = end_of(run.points(f"{prefix}rewards/rejected"))
    if chosen is None or rejected is None:
        return None
    when = chosen.after_rounds if held_out else chosen.rounds
    where = f"{prefix}rewards/chosen {when}"
    # Of held-out examples, the same each time, the change is theirs.
    noise = 0.0 if held_out else None
    if chosen.error is not None:
        noise = NOISE * chosen.error
    return _Moved(chosen.mean, rejected.mean, noise, "under the reference", where)


def _since_the_first_steps(run: RunRecord) -> _Moved | None:
    """Fresh samples have a log-prob that goes with their length: of those nothing is said."""
    if not run.is_offline:
        return None
    chosen, rejected = change(run.points("logps/chosen")), change(run.points("logps/rejected"))
    if chosen is None or rejected is None:
        return None
    first, last = chosen.before, chosen.after
    where = f"change of logps/chosen {last.rounds} against {first.rounds.removeprefix('in ')}"
    noise = None if first.error is None or last.error is None else chosen.noise
    return _Moved(chosen.difference, rejected.difference, noise, "in the first steps", where)
