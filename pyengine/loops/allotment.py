"""How many samples each prompt of a round gets, by what was seen of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.loops.stages import Draw, Judge, division, sampled_in_stages
from pyengine.preferences.allocations.allocation import PromptStats

if TYPE_CHECKING:
    from pyengine.preferences.allocations.allocation import Allocation
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group

_STATE = "allotment"


class Allotment:
    """An allocation, and what it is told of every prompt: samples judged and accepted so far, in
    earlier rounds or, where it has first samples, in the round's own stages.

    allocation      None: every prompt gets as many
    accepted_above  a response whose reward is greater is accepted
    prompts         of the loop
    stats           [prompt]: (judged, accepted)
    """

    def __init__(self, allocation: Allocation | None, accepted_above: float, prompts: int) -> None:
        if not math.isfinite(accepted_above):
            raise ConfigError(f"[loop] accepted_above must be finite but is {accepted_above}")
        self.allocation: Any = allocation
        self.accepted_above = accepted_above
        self.stats = [(0, 0)] * prompts

    def rehearse(self, each: int) -> None:
        """Raises ConfigError where the allocation asks for what is not known of prompts here."""
        if self.allocation is None:
            return
        norm = None
        if self.in_stages:
            first = self.allocation.first
            if first >= each:
                raise ConfigError(
                    f"[loop] first of {self.allocation.name} must be less than sampling.n, which "
                    f"is {each}, so that there is something left to divide, but is {first}"
                )
            norm = 1.0 if self.allocation.needs_gradients else None
        try:
            self.allocation([PromptStats(each, each, norm), PromptStats(each, 0)], 2 * each)
        except RequestError as error:
            raise ConfigError(f"[loop] {self.allocation.name} does not fit: {error}") from error

    @property
    def in_stages(self) -> bool:
        """Whether a round begins with first samples of its own."""
        return getattr(self.allocation, "first", None) is not None

    def sampled(
        self, prompts: int, each: int, draw: Draw, judge: Judge, engine: Any
    ) -> list[Group]:
        """A round's groups, sampled in stages: see sampled_in_stages."""
        return sampled_in_stages(
            self.allocation, prompts, each, self.accepted_above, draw, judge, self._divided, engine
        )

    def counts(self, indices: Sequence[int], each: int) -> list[int] | None:
        """Samples of each of the prompts `indices`; None: alike.

        each  samples of a prompt that was never tried, and of the others on average
        """
        if self.allocation is None:
            return None
        counts = [each] * len(indices)
        tried = [k for k, i in enumerate(indices) if self.stats[i][0]]
        known = [PromptStats(*self.stats[indices[k]]) for k in tried]
        divided = self._divided(known, each * len(tried)) if tried else []
        for k, count in zip(tried, divided, strict=True):
            counts[k] = count
        return counts

    def _divided(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """Raises ConfigError for an answer that is no division of the budget."""
        assert self.allocation is not None
        divided: list[int] = self.allocation(stats, budget)
        if len(divided) != len(stats) or any(type(c) is not int or c < 0 for c in divided):
            raise ConfigError(
                f"[{self.allocation.name}] samples must be {len(stats)} integers >= 0 but are "
                f"{divided!r:.200}"
            )
        return divided

    def report(self, prompts: int, each: int, groups: Sequence[Group]) -> dict[str, float]:
        """How a round's samples were divided; empty without an allocation."""
        return {} if self.allocation is None else division(prompts, each, groups)

    def seen(self, indices: Sequence[int], feedback: Feedback) -> list[Callable[[], object]]:
        """The call that takes a round's verdict in, for the round's end.

        indices  the prompt of each group
        """
        if self.allocation is None or self.in_stages:
            return []
        stats = list(self.stats)
        for i, row in zip(indices, feedback.rewards, strict=True):
            valid = [r for r in row if r is not None]
            judged, accepted = stats[i]
            more = sum(r > self.accepted_above for r in valid)
            stats[i] = (judged + len(valid), accepted + more)
        return [partial(setattr, self, "stats", stats)]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; empty without an allocation."""
        return {} if self.allocation is None else {_STATE: [list(each) for each in self.stats]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for the state of a loop without an allocation, or with one."""
        if (self.allocation is None) != (_STATE not in state):
            has = "no allocation" if self.allocation is None else self.allocation.name
            raise CheckpointError(f"[allocation] must be what the saved run had but is {has}")
        if self.allocation is not None:
            self.stats = [(int(judged), int(accepted)) for judged, accepted in state[_STATE]]
