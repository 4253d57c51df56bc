"""Where a run's time went: sampling, judging, scoring, updating, evaluating, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.reports.page.curves import COLORS
from pyengine.reports.page.findings.finding import amount
from pyengine.reports.page.record import RunRecord

WIDTH, LINE = 1200, 34
_PHASES = (
    ("generate", "time/generate_s"),
    ("judge", "time/reward_s"),
    ("score", "time/score_s"),
    ("update", "time/update_s"),
    ("evaluate", "time/eval_s"),
)
_REST_COLOR = "#999999"


@dataclass(frozen=True)
class Part:
    """A phase of a bar.

    text  inside it where there is room
    told   to a pointer over it
    short  in the line below
    """

    x: float
    width: float
    color: str
    text: str
    told: str
    short: str


@dataclass(frozen=True)
class Bar:
    """A run's time.

    row  counted from 0, from above
    """

    name: str
    row: int
    total: str
    parts: list[Part]


@dataclass(frozen=True)
class TimeSplit:
    """legend  (phase, colour)"""

    legend: list[tuple[str, str]]
    bars: list[Bar]
    width: int = WIDTH
    line: int = LINE


def seconds_of(run: RunRecord) -> dict[str, float]:
    """Phase -> seconds over all rounds; what a round's phases leave is "other". Empty where no
    round was timed.
    """
    rounds = run.total("time/round_s")
    found = {name: run.total(metric) for name, metric in _PHASES}
    known = {name: value for name, value in found.items() if value is not None}
    if rounds is not None:
        phases = sum(value for name, value in known.items() if name != "evaluate")
        known["other"] = max(rounds - phases, 0.0)
    return known


def time_split(runs: Sequence[RunRecord]) -> TimeSplit | None:
    """A bar for each run on one scale of seconds; None where no run was timed."""
    spent = [seconds_of(run) for run in runs]
    longest = max((sum(phases.values()) for phases in spent), default=0.0)
    if longest <= 0:
        return None
    names = [name for name, _ in _PHASES] + ["other"]
    colors = dict(zip(names, [*COLORS[: len(_PHASES)], _REST_COLOR], strict=True))
    bars = []
    for row, (run, phases) in enumerate(zip(runs, spent, strict=True)):
        total, x, parts = sum(phases.values()), 0.0, []
        for name in names:
            if (seconds := phases.get(name, 0.0)) <= 0:
                continue
            width = WIDTH * seconds / longest
            share = f"{100 * seconds / total:.0f} %"
            text = share if width > 40 else ""
            short = f"{name} {amount(seconds)} s"
            told = f"{run.name}: {short}, {share}"
            parts.append(Part(round(x, 2), round(width, 2), colors[name], text, told, short))
            x += width
        bars.append(Bar(run.name, row, f"{amount(total)} s", parts))
    used = [name for name in names if any(phases.get(name, 0.0) > 0 for phases in spent)]
    return TimeSplit([(name, colors[name]) for name in used], bars)
