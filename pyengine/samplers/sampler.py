"""What a sampler is: from prompts to groups, by one or more calls of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source

_STRIDE = 1 << 32  # request ids of loops stay below


class Generates(Protocol):
    """What a sampler needs of an Engine."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def max_positions(self) -> int: ...

    def generate(
        self,
        prompts: Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        request_ids: Sequence[int] | None = None,
        *,
        models: Mapping[str, float] | None = None,
    ) -> list[Group]: ...


class Sampler(Protocol):
    """A way to sample.

    needs_source  whether it asks a source which of its samples are good
    One whose call also takes `columns`, name -> a value for each prompt, is given those of the
    rows. One of whose responses some have no `logprobs` says `has_logprobs = False`: an objective
    that needs them is then refused beforehand. One that says where each of its responses
    is from, before it draws, in `origins(params)`, lets pairings by origin be tried beforehand.
    `adds_columns` names what it adds to the groups' columns, which a source may read; `reads` what
    rows must have for it.
    """

    name: ClassVar[str]
    needs_source: ClassVar[bool]

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most. Raises ConfigError for parameters it cannot take."""

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """A group for each prompt. What is drawn depends on the prompt, `params.seed` and its
        request id, never on the other prompts."""


def derived_ids(request_ids: Sequence[int], draw: int) -> list[int]:
    """Request ids of a sampler's draw number `draw` >= 0, none of which another draw has; draw 0
    has those given."""
    return [draw * _STRIDE + i for i in request_ids]
