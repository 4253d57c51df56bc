"""Samples of the policy beside those of other models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import Rule, check_fields
from pyengine.samplers.joining import joined, with_origin
from pyengine.samplers.model_names import MODEL
from pyengine.samplers.sampler import Generates, derived_ids

_COUNTS = Rule(
    "a mapping of the names of other models to integers >= 1",
    lambda value: (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(MODEL.holds(name) and type(n) is int and n >= 1 for name, n in value.items())
    ),
)
_TEMPERATURES = Rule(
    "a mapping of names in `others` to numbers >= 0",
    lambda value: (
        isinstance(value, Mapping)
        and all(
            isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 1e30
            for t in value.values()
        )
    ),
)


@dataclass(frozen=True)
class SeveralModels:
    """n samples of the policy and some of other models, such as the reference or past snapshots.

    others        model -> how many of its responses join each group: "reference", a snapshot's name
    temperatures  model -> its temperature, where it is not that of the sampling parameters
    `Response.origin` is the model's name, and `logprobs` are that model's. The policy's responses
    come first, then each model's in the order of their names. Raises ConfigError for a temperature
    of a model that is not asked.
    Source: Dong et al., arXiv:2405.07863, section 3.2; Xie et al., arXiv:2405.21046, algorithm 1.
    """

    name: ClassVar[str] = "several_models"
    needs_source: ClassVar[bool] = False
    others: Mapping[str, int] = field(
        default_factory=lambda: {"reference": 1}, metadata={"rule": _COUNTS}, hash=False
    )
    temperatures: Mapping[str, float] = field(
        default_factory=dict, metadata={"rule": _TEMPERATURES}, hash=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.temperatures:
            if name not in self.others:
                raise ConfigError(
                    f"[several_models] temperatures must be of models in others, "
                    f"{sorted(self.others)}, but one is of {name!r}"
                )

    def size(self, params: SamplingParams) -> int:
        """Responses of a group."""
        return params.n + sum(self.others.values())

    def origins(self, params: SamplingParams) -> list[str]:
        """Of a group's responses."""
        theirs = [name for name in sorted(self.others) for _ in range(self.others[name])]
        return ["policy"] * params.n + theirs

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate call a model, over all prompts."""
        drawn = engine.generate(prompts, params, request_ids=request_ids)
        parts = [with_origin(drawn, "policy")]
        for draw, name in enumerate(sorted(self.others), 1):
            temperature = self.temperatures.get(name, params.temperature)
            drawn = engine.generate(
                prompts,
                dataclasses.replace(params, n=self.others[name], temperature=temperature),
                request_ids=derived_ids(request_ids, draw),
                models={name: 1.0},
            )
            parts.append(with_origin(drawn, name))
        return joined(*parts)
