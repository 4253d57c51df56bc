"""A model that gives a response points, and the mean of the points it might give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pyengine.errors import ConfigError
from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.questions import TEXT, Asker, check_template
from pyengine.preferences.sources.label_answers import ask_of_each
from pyengine.preferences.sources.source import Gives
from pyengine.rules import COUNT, FRACTION, POSITIVE, WHOLE, check_fields, checked, or_none

TEMPLATE = (
    "Read a prompt and a response to it.\n\n"
    "[Prompt]\n{prompt}\n\n"
    "[Response]\n{response}\n\n"
    "How good is the response? Answer with a number from {low}, useless, to {high}, perfect."
)


@dataclass(frozen=True)
class ScoreTokens:
    """Rewards a response by the expectation of a model's points over the numbers it may answer.

    The reward is sum k P(k), in [low, high]; the column "reward_std" is the spread of the same
    distribution. What cannot be asked has no reward.

    model        what is asked; it needs a tokenizer
    template     the question, with {prompt} and {response}, and {low} and {high} where it says them
    low, high    the least and the most points, integers >= 0
    temperature  of the numbers among themselves; > 0
    min_mass     an answer whose numbers together are less likely than this is none; in [0, 1]
    max_tokens   of a question with its answer; None: what the model takes
    Source: Liu et al., arXiv:2303.16634, section 2, equation 1; points 0 to 5, Yuan et al.,
    arXiv:2401.10020, section 2.
    """

    name: ClassVar[str] = "score_tokens"
    gives: ClassVar[Gives] = Gives(columns=("reward_std",))
    model: AsksModel | str = bound("model", "policy")
    template: str = checked(TEMPLATE, TEXT)
    low: int = checked(0, WHOLE)
    high: int = checked(5, COUNT)
    temperature: float = checked(1.0, POSITIVE)
    min_mass: float = checked(0.0, FRACTION)
    max_tokens: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.low < self.high:
            raise ConfigError(
                f"[{self.name}] low must be less than high but is {self.low} with {self.high}"
            )
        check_template(self.name, self.template, ("prompt", "response"), ("low", "high"))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The expected points of each response. Raises RequestError where the model has no
        tokenizer."""
        check_bound(self)
        points = range(self.low, self.high + 1)
        scale = {"low": str(self.low), "high": str(self.high)}
        asker = Asker(self.name, cast(AsksModel, self.model), self.template, self.max_tokens, scale)
        labels = [str(k) for k in points]
        found = ask_of_each(asker, groups, labels, self.temperature, self.min_mass)
        rewards: list[list[float | None]] = []
        spreads: list[list[float | None]] = []
        for row in found.probabilities:
            both = [(None, None) if p is None else moments(points, p) for p in row]
            rewards.append([mean for mean, _ in both])
            spreads.append([spread for _, spread in both])
        return Feedback(
            rewards,
            found.status,
            found.errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            columns={"reward_std": spreads},
            counts_by_name=found.counts,
        )


def moments(values: Sequence[int], weights: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of values with these probabilities."""
    mean = math.fsum(v * w for v, w in zip(values, weights, strict=True))
    variance = math.fsum((v - mean) ** 2 * w for v, w in zip(values, weights, strict=True))
    return mean, math.sqrt(variance)
