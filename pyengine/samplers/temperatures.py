"""Samples at several temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import Rule, check_fields, checked
from pyengine.samplers.joining import joined
from pyengine.samplers.sampler import Generates, derived_ids


def _is_temperature(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


TEMPERATURES = Rule(
    "a list of different numbers >= 0",
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(map(_is_temperature, value))
        and len(set(value)) == len(value)
    ),
)


@dataclass(frozen=True)
class Temperatures:
    """n samples of the policy at each of several temperatures.

    temperatures  in the order of the responses; they stand in for that of the sampling parameters
    The groups' column "temperatures" has one a response.
    Source: Zeng et al., arXiv:2412.17256 (B-STaR), section 4.
    """

    name: ClassVar[str] = "temperatures"
    needs_source: ClassVar[bool] = False
    adds_columns: ClassVar[tuple[str, ...]] = ("temperatures",)
    temperatures: Sequence[float] = checked((0.7, 1.0), TEMPERATURES)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group."""
        return params.n * len(self.temperatures)

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate call; a prompt is computed once for all temperatures."""
        places = range(len(self.temperatures))
        drawn = engine.generate(
            [prompt for _ in places for prompt in prompts],
            [replace(params, temperature=t) for t in self.temperatures for _ in prompts],
            request_ids=[each for i in places for each in derived_ids(request_ids, i)],
        )
        n = len(prompts)
        groups = joined(*(drawn[i * n : (i + 1) * n] for i in places))
        of_responses = [t for t in self.temperatures for _ in range(params.n)]
        for group in groups:
            group.columns["temperatures"] = list(of_responses)
        return groups
