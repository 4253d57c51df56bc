"""B-STaR: the temperature, and the reward from which on a sample is good, that teach most now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, FINITE, Rule, check_fields, checked
from pyengine.samplers.sampler import Generates, derived_ids
from pyengine.samplers.temperatures import TEMPERATURES

_THRESHOLDS = Rule(
    "a list of different finite numbers",
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(map(FINITE.holds, value))
        and len(set(value)) == len(value)
    ),
)
Setting = tuple[float, float]  # temperature, threshold


def balance_score(good: int, right: int, wanted: int) -> float:
    """min(n' / n*, 1) * n' / n of one prompt: enough good samples, and most of them right.

    good    n: different samples above the threshold; 0 gives 0
    right   n': those of them that are right
    wanted  n*
    Source: Zeng et al., arXiv:2412.17256, eq. 4.
    """
    return min(right / wanted, 1.0) * right / good if good else 0.0


@dataclass(frozen=True)
class Balanced:
    """n samples at the temperature that balances exploring and exploiting best, and a threshold.

    Both are chosen on a few of the round's prompts.

    temperatures   tried, each with n samples a prompt; the chosen one stands in for that of the
                   sampling parameters
    thresholds     tried: a sample is good where its reward is greater
    prompts        of a round on which the settings are tried, the first ones
    wanted         n*: right samples of a prompt that are enough
    correct_above  a sample is right where its reward is greater; where the source gives labels,
                   those say it
    The score of a setting is the mean of `balance_score` over those prompts; of equal ones the
    first temperature, then the first threshold is taken. The groups' columns: "temperature",
    "threshold" (which `above_column` of the loop expert_iteration takes) and "balance", its score.
    Which setting is taken depends on the round's first prompts; what a prompt's samples are with it
    does not. Raises ConfigError without a source.
    Source: Zeng et al., arXiv:2412.17256 (B-STaR), section 4, with n* = 8.
    """

    name: ClassVar[str] = "balanced"
    needs_source: ClassVar[bool] = True
    adds_columns: ClassVar[tuple[str, ...]] = ("temperature", "threshold", "balance")
    temperatures: Sequence[float] = checked((0.5, 0.7, 0.9, 1.1), TEMPERATURES)
    thresholds: Sequence[float] = checked((0.0, 0.5), _THRESHOLDS)
    prompts: int = checked(8, COUNT)
    wanted: int = checked(8, COUNT)
    correct_above: float = checked(0.5, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group."""
        return params.n

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """Two generate calls and one of the judge."""
        if judge is None:
            raise ConfigError(f"[{self.name}] judge must be a source of rewards but is None")
        few, ids = list(prompts[: self.prompts]), request_ids[: self.prompts]
        tried = engine.generate(
            [prompt for _ in self.temperatures for prompt in few],
            [replace(params, temperature=t) for t in self.temperatures for _ in few],
            request_ids=[
                each for i in range(1, len(self.temperatures) + 1) for each in derived_ids(ids, i)
            ],
        )
        scores = self._scores(tried, judge(tried), len(few))
        temperature, threshold = setting = max(scores, key=lambda each: scores[each])
        groups = engine.generate(
            list(prompts), replace(params, temperature=temperature), request_ids=request_ids
        )
        chosen = {"temperature": temperature, "threshold": threshold, "balance": scores[setting]}
        for group in groups:
            group.columns |= chosen
        return groups

    def _scores(
        self, tried: Sequence[Group], feedback: Feedback, size: int
    ) -> dict[Setting, float]:
        """Of every setting, in the order in which equal ones are taken.

        tried  `size` prompts for each temperature in turn
        """
        found: dict[Setting, float] = {}
        for i, temperature in enumerate(self.temperatures):
            places = range(i * size, (i + 1) * size)
            for threshold in self.thresholds:
                each = [self._balance(tried[g], g, feedback, threshold) for g in places]
                found[temperature, threshold] = math.fsum(each) / size
        return found

    def _balance(self, group: Group, g: int, feedback: Feedback, threshold: float) -> float:
        good: dict[tuple[int, ...], bool] = {}
        for k, (response, reward) in enumerate(
            zip(group.responses, feedback.rewards[g], strict=True)
        ):
            if reward is None or not reward > threshold:
                continue
            labels = feedback.labels
            right = reward > self.correct_above if labels is None else labels[g][k]
            good.setdefault(tuple(response.token_ids), right)
        return balance_score(len(good), sum(good.values()), self.wanted)
