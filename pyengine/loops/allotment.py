"""How many samples each prompt of a round gets, by what earlier rounds showed of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.preferences.allocations.allocation import PromptStats

if TYPE_CHECKING:
    from pyengine.preferences.allocations.allocation import Allocation
    from pyengine.preferences.feedback import Feedback

_STATE = "allotment"


class Allotment:
    """An allocation, and what it is told of every prompt: samples judged and accepted so far.

    allocation      None: every prompt gets as many
    accepted_above  a response whose reward is greater is accepted
    prompts         of the loop
    stats           [prompt]: (judged, accepted)
    """

    def __init__(self, allocation: Allocation | None, accepted_above: float, prompts: int) -> None:
        if not math.isfinite(accepted_above):
            raise ConfigError(f"[loop] accepted_above must be finite but is {accepted_above}")
        self.allocation, self.accepted_above = allocation, accepted_above
        self.stats = [(0, 0)] * prompts

    def rehearse(self, each: int) -> None:
        """Raises ConfigError where the allocation asks for what is not known of prompts here."""
        if self.allocation is None:
            return
        try:
            self.allocation([PromptStats(each, each), PromptStats(each, 0)], 2 * each)
        except RequestError as error:
            raise ConfigError(f"[loop] {self.allocation.name} does not fit: {error}") from error

    def counts(self, indices: Sequence[int], each: int) -> list[int] | None:
        """Samples of each of the prompts `indices`; None: alike.

        each  samples of a prompt that was never tried, and of the others on average
        """
        if self.allocation is None:
            return None
        counts = [each] * len(indices)
        tried = [k for k, i in enumerate(indices) if self.stats[i][0]]
        known = [PromptStats(*self.stats[indices[k]]) for k in tried]
        divided = self.allocation(known, each * len(tried)) if tried else []
        if len(divided) != len(tried) or any(type(c) is not int or c < 0 for c in divided):
            raise ConfigError(
                f"[{self.allocation.name}] samples must be {len(tried)} integers >= 0 but are "
                f"{divided!r:.200}"
            )
        for k, count in zip(tried, divided, strict=True):
            counts[k] = count
        return counts

    def seen(self, indices: Sequence[int], feedback: Feedback) -> list[Callable[[], object]]:
        """The call that takes a round's verdict in, for the round's end.

        indices  the prompt of each group
        """
        if self.allocation is None:
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
