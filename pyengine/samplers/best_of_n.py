"""The best of n samples, as a source rewards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, check_fields, checked
from pyengine.samplers.joining import chosen
from pyengine.samplers.judging import best_first, rewards_of
from pyengine.samplers.sampler import Generates


@dataclass(frozen=True)
class BestOfN:
    """The k responses that a source rewards most, of n samples of the policy.

    keep  k, at most `n` of the sampling parameters, which is how many are drawn
    The best comes first, of equals the one that was drawn first. What the source abstains from or
    fails on is not kept: a group may have fewer than k responses, and its column "unjudged" says
    how many were passed over. Raises ConfigError for keep > n or no source.
    Source: Nakano et al., arXiv:2112.09332, section 3.2; Dong et al., arXiv:2304.06767, section 3.
    """

    name: ClassVar[str] = "best_of_n"
    needs_source: ClassVar[bool] = True
    adds_columns: ClassVar[tuple[str, ...]] = ("unjudged",)
    keep: int = checked(1, COUNT)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most. Raises ConfigError."""
        if self.keep > params.n:
            raise ConfigError(f"[best_of_n] keep must be at most n ({params.n}) but is {self.keep}")
        return self.keep

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """The kept responses of each prompt."""
        self.size(params)
        groups = engine.generate(prompts, params, request_ids=request_ids)
        kept = []
        for group, rewards in zip(groups, rewards_of("best_of_n", judge, groups), strict=True):
            order = best_first(rewards)
            group.columns["unjudged"] = len(rewards) - len(order)
            kept.append(chosen(group, order[: self.keep]))
        return kept
