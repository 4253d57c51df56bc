"""Judging while sampling goes on: a judge that waits for another machine has work all the time.

The round's prompts are sampled in slices, and the judge is asked ahead about each while the next is
drawn. Draws are keyed, so that slices change no bit; and the round is judged by the same one call
as without them, which takes those answers over: its counts, failures, retries and verdict on file
are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyengine.loops.steps import may_be_on_file
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.ranks import current

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source

Draw = Callable[[Sequence[int], int], tuple[list["Group"], list[int]]]
# A step of the sampler reads all weights, for however few responses: with this many beside each
# other a slice samples nearly as fast as the whole round.
MIN_RESPONSES = 16


class Overlap:
    """One round's questions to a source, ahead of its call.

    slices  parts in which the prompts are sampled; 1: the source is asked when all are there, while
            their reference log-probs are computed. 0: it is not asked ahead
    """

    def __init__(self, source: Source, slices: int) -> None:
        self._source, self._slices = source, slices
        self._asked: list[GiveUp] = []

    def samples(self, draw: Draw, indices: Sequence[int], first: int) -> Any:
        """What `draw(indices, first)` gives, made of what it gives for each slice."""
        if not self._slices:
            return draw(indices, first)
        groups: list[Group] = []
        prompts: list[int] = []
        for start, stop in bounds(len(indices), self._slices):
            drawn, of = draw(indices[start:stop], first + start)
            groups += drawn
            prompts += of
            if current().rank > 0:
                continue  # rank 0 asks
            with suppress(Exception):  # the call that follows meets it, too, and is the one judged
                self._asked.append(ask_ahead([self._source], drawn))
        return groups, prompts

    def end(self) -> None:
        """Gives up what the judging of the round has not taken over."""
        for give_up in self._asked:
            give_up()


def overlap(loop: Any, prompts: int) -> Overlap:
    """How a loop's next round, of so many prompts, overlaps.

    Where a verdict on the round is on file nobody is asked, so that nothing is paid for twice.
    A sampler that asks the source waits for it anyway, an allocation divides the whole round, and a
    loop may learn while it samples (`samples_whole`): none of these is sampled in slices.
    """
    if not overlaps(loop.source) or may_be_on_file(loop.remember, loop.round + 1):
        return Overlap(loop.source, 0)
    whole = (
        getattr(loop.sampler, "needs_source", False)
        or loop.allotment.allocation is not None
        or loop.samples_whole
    )
    most = 1 if whole else loop.judge.slices
    return Overlap(loop.source, slices(prompts, loop.sampling.n, most))


def slices(prompts: int, samples: int, most: int) -> int:
    """Into how many parts a round of so many prompts is cut, with so many samples of each."""
    return max(1, min(most, prompts, prompts * samples // MIN_RESPONSES))


def bounds(length: int, parts: int) -> list[tuple[int, int]]:
    """Where each of the nearly equal parts of a sequence begins and ends."""
    cuts = [length * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(cuts))
