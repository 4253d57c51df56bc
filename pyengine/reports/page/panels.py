"""Which figures are drawn over rounds, under which heading, and what each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.reports.page.curves import COLORS, DASHES, Plot, Series, plot_of
from pyengine.reports.page.record import Points, RunRecord


@dataclass(frozen=True)
class Line:
    """A metric as a curve of a panel.

    over    a metric that it is divided by
    errors  the metric that has its standard errors
    """

    label: str
    metric: str
    over: str | None = None
    errors: str | None = None

    def points(self, run: RunRecord) -> Points:
        """Of a run."""
        if self.over is not None:
            return run.ratio(self.metric, self.over)
        return run.points(self.metric)


@dataclass(frozen=True)
class Panel:
    """A heading, its unit, one sentence on what is drawn, and the curves."""

    title: str
    unit: str
    note: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Figure:
    """A panel with the plot of some runs."""

    title: str
    unit: str
    note: str
    plot: Plot


HELD_OUT = "held out"
PANELS = (
    Panel(
        "Reward", "mean of a response",
        "Of each round's training samples; held out with standard errors over prompts.",
        (
            Line("training", "objective/scores"),
            Line(HELD_OUT, "eval/objective/scores", errors="eval/objective/scores_stderr"),
        ),
    ),
    Panel(
        "KL to the reference", "nats a response",
        "Mean log-ratio of the policy to the reference over its own samples.",
        (Line("training", "objective/kl"),),
    ),
    Panel(
        "Loss", "of the objective", "Mean over a round's updates; held out without an update.",
        (Line("training", "loss"), Line(HELD_OUT, "eval/loss")),
    ),
    Panel(
        "Margin", "rewards/chosen less rewards/rejected",
        "What a loss of pairs makes grow. It is not of what the judge gave.",
        (Line("training", "rewards/margins"), Line(HELD_OUT, "eval/rewards/margins")),
    ),
    Panel(
        "Rewards of chosen and rejected", "rewards/*",
        "Scaled log-ratios where the loss reads a reference (below 0: less likely than under it), "
        "else scaled log-probs; of a reward model its own.",
        (
            Line("chosen", "rewards/chosen"), Line("rejected", "rewards/rejected"),
            Line("chosen, held out", "eval/rewards/chosen"),
            Line("rejected, held out", "eval/rewards/rejected"),
        ),
    ),
    Panel(
        "Log-probs of chosen and rejected", "nats a response",
        "Sums over tokens. Of fresh samples they go with length; of given data, with training.",
        (
            Line("chosen", "logps/chosen"), Line("rejected", "logps/rejected"),
            Line("chosen, held out", "eval/logps/chosen"),
            Line("rejected, held out", "eval/logps/rejected"),
        ),
    ),
    Panel(
        "Pairs in order", "share", "How often the chosen response has the larger rewards/*.",
        (Line("training", "rewards/accuracies"), Line(HELD_OUT, "eval/rewards/accuracies")),
    ),
    Panel(
        "Win rate", "share", "Of the policy's samples against the opponent's.",
        (Line("training", "two_player/win_rate"),),
    ),
    Panel(
        "Length", "tokens", "Means of samples, and of the responses that updates compare.",
        (
            Line("training", "completions/mean_length"),
            Line(HELD_OUT, "eval/completions/mean_length"),
            Line("chosen", "completions/chosen_length"),
            Line("rejected", "completions/rejected_length"),
        ),
    ),
    Panel(
        "Length and reward", "correlation",
        "Within a prompt: above 0 the longer of two answers to it gets more.",
        (Line("training", "objective/length_correlation"),),
    ),
    Panel(
        "Entropy", "nats a token",
        "Mean -log p of the tokens that were sampled. Towards 0 the policy always says the same.",
        (Line("training", "objective/entropy", over="completions/mean_length"),),
    ),
    Panel(
        "Ended by itself", "share",
        "Samples that ended with an end token or a stop string; others were cut.",
        (Line("training", "val/contain_eos_token"),),
    ),
    Panel(
        "Prompts without spread", "share",
        "All responses got the same reward: nothing to learn from these prompts.",
        (Line("training", "frac_reward_zero_std"),),
    ),
    Panel(
        "Ties", "count", "Pairs whose rewards, or verdicts of the judge, are too close to call.",
        (Line("in pairing", "pairs/ties"), Line("of the judge", "judge/ties")),
    ),
    Panel(
        "Comparisons", "count", "Made by the judge, and learned from.",
        (Line("judged", "judge/comparisons"), Line("learned from", "pairs/pairs")),
    ),
    Panel(
        "Gradient norm", "before clipping", "Mean over a round's updates.",
        (Line("training", "grad_norm"),),
    ),
    Panel(
        "Time of a round", "seconds", "Evaluations are not part of it.",
        (Line("training", "time/round_s"),),
    ),
)  # fmt: skip


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """The panels of which a run has something, and one for each further measure of evaluations."""
    found = []
    for panel in [*PANELS, *_measures(runs)]:
        plot = plot_of(styled(runs, panel.lines))
        if plot is not None:
            found.append(Figure(panel.title, panel.unit, panel.note, plot))
    return found


def styled(runs: Sequence[RunRecord], lines: Sequence[Line]) -> list[Series]:
    """A series of each line and run that has points. Lines differ by dashes, and of one run by
    colour; of several runs those do.
    """
    made = []
    for i, run in enumerate(runs):
        for k, line in enumerate(lines):
            points = line.points(run)
            if not points:
                continue
            alone = len(runs) == 1
            color = COLORS[(k if alone else i) % len(COLORS)]
            dash = DASHES[k % len(DASHES)]  # of one run too: what lies beneath shows through
            errors = dict(run.points(line.errors)) if line.errors else {}
            label = line.label if alone else f"{run.name}: {line.label}"
            made.append(Series(label, points, errors, None, color, dash))
    return made


def _measures(runs: Sequence[RunRecord]) -> list[Panel]:
    """Of what else evaluations measured, by name: it has a standard error beside it."""
    drawn = {line.metric for panel in PANELS for line in panel.lines}
    drawn.add("eval/reward")  # reward_kl's own name for eval/objective/scores
    names = {
        name
        for run in runs
        for row in run.rows
        for name in row
        if name.startswith("eval/") and f"{name}_stderr" in row and name not in drawn
    }
    return [
        Panel(
            name.removeprefix("eval/"),
            HELD_OUT,
            "A measure of the evaluations, with its standard error.",
            (Line(HELD_OUT, name, errors=f"{name}_stderr"),),
        )
        for name in sorted(names)
    ]
