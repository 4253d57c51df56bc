"""What an engine or a reward model was planned of memory, and what it has of it already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from pyengine.engine.memory import MemoryPlan, MemoryUse, Sizes, memory_plan, untouched_bytes
from pyengine.engine.memory_budget import LEDGER, budget
from pyengine.objectives.core.objective import SideOutput


class Holds(Protocol):
    """What takes memory once it is in use."""

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""


class Footprint:
    """Its owner's entry in the ledger: on the CPU, what is planned later leaves this much free for
    as long as the owner, who alone keeps this object, is there.

    use    what decides the plan, asked anew each time: a reference comes and goes
    sizes  that were planned
    parts  what is in memory of it
    """

    def __init__(
        self,
        device: torch.device,
        use: Callable[[], MemoryUse],
        sizes: Sizes,
        parts: Sequence[Holds],
    ) -> None:
        self.use, self.sizes = use, sizes
        self._device, self._parts = device, parts
        if device.type == "cpu":
            LEDGER.enter(self, Footprint.untouched_bytes)

    def plan(self, side: Sequence[SideOutput] = ()) -> MemoryPlan:
        """What all takes when it is in use; `side` of the updates' objective counts too."""
        found = budget(self._device, besides=self)
        return memory_plan(self.use(), self.sizes, found, side, self._held())

    def untouched_bytes(self) -> int:
        """Planned and not in memory yet."""
        return untouched_bytes(self.use(), self.sizes, self._held())

    def _held(self) -> dict[str, int]:
        return {name: size for part in self._parts for name, size in part.held_bytes.items()}
