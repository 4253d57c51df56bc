"""A round's samples in stages: some of every prompt, then more where an allocation says so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pyengine.preferences.allocations.allocation import PromptStats

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group, Response

# (counts=samples of each prompt, draw=its number) -> a group of each prompt that gets any
Draw = Callable[..., "list[Group]"]
Judge = Callable[["Sequence[Group]"], "Feedback"]
Divide = Callable[[Sequence[PromptStats], int], "list[int]"]


def sampled_in_stages(
    allocation: Any,
    prompts: int,
    each: int,
    accepted_above: float,
    draw: Draw,
    judge: Judge,
    divide: Divide,
    engine: Any,
) -> list[Group]:
    """A group for each prompt, of the samples of all stages one after the other.

    allocation      with `first` samples of each prompt, see InStages
    each            samples a prompt on average: the budget is prompts * each
    accepted_above  a response whose reward is greater is accepted
    judge           of a stage's new samples; those without a reward are not tried, and not accepted
    divide          the allocation, its answer checked
    engine          whose gradients are measured, where the allocation asks for their norms

    Draw 0 makes the first samples, draw s those of stage s: so what a prompt's stage holds depends
    on its request, and how many on the verdicts. Another prompt changes no token.
    """
    counts, whole = [allocation.first] * prompts, prompts * each
    groups: list[Group] = []
    seen: list[_Seen] = [_Seen() for _ in range(prompts)]
    for stage in range(allocation.stages + 1):
        drawn = draw(counts=counts, draw=stage)
        places = [i for i, count in enumerate(counts) if count]
        if not groups:
            groups = drawn
        else:
            _join(groups, drawn, places)
        if stage == allocation.stages:
            break
        for i, group, rewards in zip(places, drawn, judge(drawn).rewards, strict=True):
            seen[i].add(group, rewards, accepted_above)
        stats = _stats(allocation, seen, groups, engine)
        spent = sum(len(group.responses) for group in groups)
        counts = divide(stats, whole - spent)
        if not any(counts):
            break
    return groups


class _Seen:
    """What one prompt's samples have shown."""

    def __init__(self) -> None:
        self.tried = 0
        self.accepted: list[Response] = []

    def add(self, group: Group, rewards: Sequence[float | None], above: float) -> None:
        self.tried += sum(reward is not None for reward in rewards)
        for response, reward in zip(group.responses, rewards, strict=True):
            if reward is not None and reward > above:
                self.accepted.append(response)


def _join(groups: list[Group], drawn: Sequence[Group], places: Sequence[int]) -> None:
    """The new responses after those that are there."""
    for i, group in zip(places, drawn, strict=True):
        together = [*groups[i].responses, *group.responses]
        groups[i] = dataclasses.replace(groups[i], responses=together)


def _stats(
    allocation: Any, seen: Sequence[_Seen], groups: Sequence[Group], engine: Any
) -> list[PromptStats]:
    """With gradient norms where they are asked for. A prompt none of whose samples was judged has
    been tried in vain."""
    norms: list[float | None] = [None] * len(seen)
    if allocation.needs_gradients:
        measured = [s.accepted[: allocation.measured] for s in seen]
        asked = [
            dataclasses.replace(group, responses=list(responses))
            for group, responses in zip(groups, measured, strict=True)
            if responses
        ]
        found = iter(engine.gradient_norms(asked, per_token=allocation.per_token) if asked else ())
        norms = [_mean(next(found)) if responses else None for responses in measured]
    return [
        PromptStats(max(s.tried, 1), len(s.accepted), norm)
        for s, norm in zip(seen, norms, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def division(prompts: int, each: int, groups: Sequence[Group]) -> dict[str, float]:
    """How a round's samples were divided, for its report."""
    sizes = [len(group.responses) for group in groups]
    return {
        "allocation/samples": float(sum(sizes)),
        "allocation/unspent": float(max(prompts * each - sum(sizes), 0)),
        "allocation/least": float(min(sizes, default=0)),
        "allocation/most": float(max(sizes, default=0)),
    }
