"""Samples of the policy as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import check_fields
from pyengine.samplers.sampler import Generates


@dataclass(frozen=True)
class Plain:
    """n independent samples of the policy: `Engine.generate` and nothing else."""

    name: ClassVar[str] = "plain"
    needs_source: ClassVar[bool] = False

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
        """params.n responses a prompt."""
        groups: list[Group] = engine.generate(prompts, params, request_ids=request_ids)
        return groups
