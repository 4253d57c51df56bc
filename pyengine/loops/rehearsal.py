"""Whether the parts of a loop fit together, found out before a model is loaded.

The objective is tried on a made-up round: what the source says it gives, made into a batch as the
loop makes one. What it would refuse in the first update it refuses here, in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from pyengine.engine.learn.training import rehearsed
from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.groups import Group, Preferences, Response
from pyengine.preferences.sources.source import gives

if TYPE_CHECKING:
    from pyengine.models.lora import LoraConfig
    from pyengine.objectives.core.objective import Objective
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.sources.source import Source

_TOKENS = 4


@dataclass(frozen=True)
class EngineToCome:
    """What a loop reads of an engine when it is made: with it, its parts are checked before a model
    is loaded.

    has_reference  whether it will have one
    lora           the adapters that it will train; None: the weights
    """

    has_reference: bool
    lora: LoraConfig | str | None = None
    step_count: int = 0
    snapshots: tuple[str, ...] = ()
    tokenizer: None = None
    config: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", SimpleNamespace(lora=self.lora))


class Rehearses(Protocol):
    """What is rehearsed of a loop."""

    source: Source
    objective: Objective
    prompts_per_round: int

    @property
    def has_reference(self) -> bool: ...

    @property
    def part_names(self) -> Mapping[str, Any]: ...

    def rehearsed_batch(self, groups: Sequence[Group], feedback: Feedback) -> Preferences: ...


def rehearse(loop: Rehearses, groups: Sequence[Group]) -> Preferences:
    """What such a round would learn from.

    groups  made up as the loop would sample them
    Raises ConfigError, naming the parts, where the objective lacks something.
    """
    objective = loop.objective
    parts = " and ".join(f"{kind} {_name(part)}" for kind, part in loop.part_names.items())
    who = f"{objective.name} does not fit {parts}"
    if objective.needs_mismatched and loop.prompts_per_round < 2:
        raise ConfigError(
            f"[loop] {who}: it estimates a KL over responses of other prompts, so that "
            f"prompts_per_round must be >= 2 but is {loop.prompts_per_round}"
        )
    try:
        batch = loop.rehearsed_batch(groups, gives(loop.source).example(groups))
        if objective.unit == "comparison" and not batch.comparisons:
            raise RequestError(_no_comparisons(groups, loop))
        rehearsed(batch, objective, loop.has_reference)
    except (RequestError, ValueError) as error:
        raise ConfigError(f"[loop] {who}: {error}") from error
    return batch


def _no_comparisons(groups: Sequence[Group], loop: Rehearses) -> str:
    name = getattr(type(loop), "name", "")
    if "pairing" not in loop.part_names:
        return f"it learns from comparisons but the loop {name} makes none"
    sizes = {len(group.responses) for group in groups}
    return f"it learns from comparisons but of {sizes} responses a prompt none is made"


def tried(part: Any) -> Any:
    """A part as it is tried on made-up rounds: without what depends on numbers or asks anybody."""
    return getattr(part, "rehearsal", part)


def made_up_group(index: int, samples: int) -> Group:
    """A prompt with different sampled responses."""
    responses = [
        Response([index, *([k] * (_TOKENS - 1))], [-1.0] * _TOKENS, [-1.0] * _TOKENS)
        for k in range(samples)
    ]
    return Group([index], responses)


def sampled_group(index: int, sampler: Any, params: Any) -> Group:
    """One as a sampler would draw it: of its size and origins, with log-probs where its have some.

    sampler  None: params.n samples of the policy
    """
    size = getattr(sampler, "size", None)
    group = made_up_group(index, params.n if size is None else size(params))
    origins = getattr(sampler, "origins", None)
    for k, origin in enumerate([] if origins is None else origins(params)):
        group.responses[k].origin = origin
    if not getattr(sampler, "has_logprobs", True):
        for response in group.responses:
            response.logprobs = None
    return group


def _name(part: Any) -> str:
    return getattr(part, "name", None) or type(part).__name__
