"""Allocations that may be asked within a round, of what the round itself has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.rules import COUNT, check_fields, checked, or_none


@dataclass(frozen=True)
class InStages:
    """An allocation of a round's samples by what earlier rounds showed of its prompts, or in stages
    by what its own first samples show.

    first   samples of every prompt that a round begins with; what its budget has left is then
            divided. None: a round has one stage, and what earlier rounds showed divides it
    stages  times it is asked after the first samples, each time with all that is known by then; it
            ends earlier where it asks for none or the budget is spent
    """

    name: ClassVar[str]
    needs_gradients: ClassVar[bool] = False  # whether it asks for PromptStats.gradient_norm
    first: int | None = checked(None, or_none(COUNT))
    stages: int = checked(1, COUNT)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.first is None and self.stages != 1:
            raise ConfigError(
                f"[{self.name}] stages are of rounds with first samples but are {self.stages} with "
                "first None"
            )
