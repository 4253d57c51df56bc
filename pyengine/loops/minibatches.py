"""Parts of a round's batch: epochs over the examples that count, in an order drawn by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyengine.loops.walk import PromptWalk
from pyengine.preferences.groups import Preferences
from pyengine.preferences.subset import Unit, take_examples


def minibatches(
    batch: Preferences, unit: Unit, size: int | None, epochs: int, first_epoch: int, seed: int
) -> Iterator[Preferences]:
    """The parts of a batch, one after the other; each example is in one part an epoch.

    unit         what an example is: a comparison, a response, or a group with all its responses
    size         examples a part; the last one of an epoch has what is left. None: the whole batch
    first_epoch  number of the first epoch: each has an order of its own, a function of seed and
                 number
    """
    if size is None:
        for _ in range(epochs):
            yield batch
        return
    examples = learnable(batch, unit)
    walk = PromptWalk(len(examples), seed)
    for epoch in range(first_epoch, first_epoch + epochs):
        order = walk.take(epoch * len(examples), len(examples))
        for start in range(0, len(order), size):
            yield take_examples(batch, unit, [examples[i] for i in order[start : start + size]])


def learnable(batch: Preferences, unit: Unit) -> list[int]:
    """The numbers of the examples that count: comparisons of positive weight, responses that have
    tokens and a value where they were judged, groups with such a response."""
    if unit == "comparison":
        return [i for i, c in enumerate(batch.comparisons) if c.weight > 0]
    counts = [_counting(batch, g) for g in range(len(batch.groups))]
    if unit == "group":
        return [g for g, row in enumerate(counts) if any(row)]
    flat = [each for row in counts for each in row]
    return [i for i, each in enumerate(flat) if each]


def _counting(batch: Preferences, g: int) -> Sequence[bool]:
    judged = None if batch.feedback is None else batch.feedback.status[g]
    return [
        bool(response.token_ids) and (judged is None or judged[k] == "value")
        for k, response in enumerate(batch.groups[g].responses)
    ]
