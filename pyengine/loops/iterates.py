"""The policies of before each round, kept as snapshots by their numbers."""

from __future__ import annotations

from typing import Any

BASE = "base"  # the policy of before the first round, which objectives ask for by this name
_PREFIX = "iterate-"


def iterate_name(round_number: int) -> str:
    """The snapshot's name of the policy after so many rounds."""
    return f"{_PREFIX}{round_number}"


def keep_base(engine: Any) -> None:
    """Takes the snapshot of before the first round, once."""
    if BASE not in engine.snapshots:
        engine.snapshot(BASE)


def keep_iterate(engine: Any, round_number: int) -> str:
    """Takes the policy's snapshot of before a round; its name.

    A round that is done again takes it again, of the same weights.
    """
    name = iterate_name(round_number)
    engine.snapshot(name, overwrite=True)
    return name


def last_iterates(round_number: int, history: int | None) -> list[str]:
    """Names of the newest `history` iterates up to that of before a round; None: of all."""
    first = 0 if history is None else max(round_number + 1 - history, 0)
    return [iterate_name(t) for t in range(first, round_number + 1)]


def drop_iterates(engine: Any, kept: list[str]) -> None:
    """Deletes iterates other than those kept and the reference."""
    for name in list(engine.snapshots):
        spared = name in kept or name == engine.reference_snapshot
        if name.startswith(_PREFIX) and not spared:
            engine.drop_snapshot(name)
