"""What the outputs of a head on hidden states mean."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

# One reward; an embedding whose preferences may go round in circles; a mean and a spread.
Reading = Literal["reward", "gpm", "mean_variance"]
READINGS = get_args(Reading)


def is_reading(name: object, outputs: int) -> TypeGuard[Reading]:
    """Whether `name` is a reading that a head of so many outputs may have."""
    counts = {"reward": outputs == 1, "gpm": outputs % 2 == 0, "mean_variance": outputs == 2}
    return isinstance(name, str) and counts.get(name, False)
