"""All rules, in the order of the page."""

from __future__ import annotations

from pyengine.reports.page.findings.chosen_falls import chosen_falls
from pyengine.reports.page.findings.finding import Finding, Rule
from pyengine.reports.page.findings.kl_runs_away import kl_runs_away
from pyengine.reports.page.findings.length_hacking import length_hacking
from pyengine.reports.page.findings.no_spread import no_spread
from pyengine.reports.page.findings.reward_moved import reward_moved
from pyengine.reports.page.findings.swapped_judge import swapped_judge
from pyengine.reports.page.record import RunRecord

RULES: tuple[Rule, ...] = (
    reward_moved,
    no_spread,
    kl_runs_away,
    chosen_falls,
    length_hacking,
    swapped_judge,
)


def findings_of(run: RunRecord) -> list[Finding]:
    """What the rules say of a run; one without figures for any has none."""
    said = [rule(run) for rule in RULES]
    return [finding for finding in said if finding is not None]
