"""Reward against KL: where each round stands, and the most reward that was had for so much KL."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.reports.page.curves import COLORS, Series, plot_of
from pyengine.reports.page.panels import Figure
from pyengine.reports.page.record import Points, RunRecord

# (KL, reward): of held-out samples where evaluations measure both, else of training samples.
_METRICS = (("eval/kl_k1", "eval/objective/scores"), ("objective/kl", "objective/scores"))


def frontier_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """A point a round and the steps above them; None where no run has reward and KL.

    All runs are read alike: held out only where each of them has it.
    """
    for kl, reward in _METRICS:
        points = [_points(run, kl, reward) for run in runs]
        held_out = kl.startswith("eval/")
        if any(points) and not (held_out and not all(points)):
            break
    else:
        return None
    series = [
        Series(run.name, own, {}, frontier(own), COLORS[i % len(COLORS)])
        for i, (run, own) in enumerate(zip(runs, points, strict=True))
        if own
    ]
    plot = plot_of(series, "KL, nats a response", whole=False)
    assert plot is not None
    note = "A point a round; the line is the largest reward so far at that KL or less. "
    note += "Held out." if held_out else "Of training samples, whose prompts differ by round."
    return Figure("Reward for KL", "frontier", note, plot)


def frontier(points: Points) -> Points:
    """Corners of the steps: the largest reward among the points of no more KL."""
    corners: Points = []
    for kl, reward in sorted(points):
        if not corners:
            corners.append((kl, reward))
        elif reward > corners[-1][1]:
            corners += [(kl, corners[-1][1]), (kl, reward)]
    if corners and (last := max(kl for kl, _ in points)) > corners[-1][0]:
        corners.append((last, corners[-1][1]))
    return corners


def _points(run: RunRecord, kl: str, reward: str) -> Points:
    rewards = dict(run.points(reward))
    return [(value, rewards[place]) for place, value in run.points(kl) if place in rewards]
