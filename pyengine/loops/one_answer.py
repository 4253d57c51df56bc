"""What a judge says, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyengine.preferences.sources.ahead import overlaps
from pyengine.ranks import current
from pyengine.ranks.world import together

if TYPE_CHECKING:
    from pyengine.preferences.sources.source import Source


def one_answer(source: Source, ask: Callable[[], Any]) -> Any:
    """What `ask` gives on rank 0, of what JSON holds, on every rank.

    Of a judge that waits for another machine rank 0 alone asks; others are asked by all ranks,
    since they may ask the engine, which takes all.
    """
    world = current()
    return together(world, lambda: None if world.rank > 0 and overlaps(source) else ask())[0]
