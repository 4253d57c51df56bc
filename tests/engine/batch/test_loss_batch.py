"""What an objective takes of a batch, part by part."""

from __future__ import annotations

import torch
from tiny_batches import group

import pyengine as pe
from pyengine.engine.batch.loss_batch import LossBatch, loss_batch

PARTS = 50


class Looked(list):
    """A list that counts how often something of it is read."""

    reads = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.reads += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self):
        self.reads += len(self)
        return super().__iter__()


def many_pairs() -> LossBatch:
    """PARTS groups of two responses, the third of them compared twice, none of the fourth."""
    groups = [group(3, [2 + i % 3, 4], i) for i in range(PARTS)]
    pairs = [pe.Comparison(i, 0, 1, weight=1 + i) for i in range(PARTS) if i != 3]
    return loss_batch(
        pe.Preferences(groups, [*pairs, pe.Comparison(2, 1, 0, weight=7)]),
        pe.objectives.DPO(),
        vocab_size=259,
        max_positions=64,
    )


def part_of(batch: LossBatch, part: range) -> pe.objectives.LossInputs:
    lengths = [len(r) for tree in list.__getitem__(batch.trees, slice(part.start, part.stop))
               for r in tree.responses]  # fmt: skip
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return batch.inputs(part, "comparison", ends, torch.zeros(sum(lengths)), None, {}, None)


def test_each_part_has_its_own_comparisons_and_tokens():
    batch = many_pairs()
    trees = len(batch.trees)
    assert trees == PARTS - 1
    whole = part_of(batch, range(trees))
    parts = [part_of(batch, range(t, t + 1)) for t in range(trees)]
    assert [len(p.weight) for p in parts] == [1, 1, 2] + [1] * (trees - 3)
    for name in ("weight", "probability", "token_ids"):
        joined = torch.cat([getattr(p, name) for p in parts])
        assert torch.equal(joined, getattr(whole, name))
    assert parts[2].chosen.tolist() == [0, 1]
    assert parts[2].rejected.tolist() == [1, 0]
    assert all(p.total_weight == whole.total_weight for p in parts)
    assert whole.total_weight == sum(1 + i for i in range(PARTS) if i != 3) + 7
    assert {p.total_tokens for p in parts} == {len(whole.token_ids)}


def test_a_part_does_not_read_the_whole_batch():
    """Together the parts read it a few times, not PARTS times."""
    batch = many_pairs()
    batch.trees, batch.comparisons = Looked(batch.trees), Looked(batch.comparisons)
    batch.weight, batch.auxiliary = Looked(batch.weight), Looked(batch.auxiliary)
    for t in range(len(batch.trees)):
        part_of(batch, range(t, t + 1))
        assert not batch.crosses_groups
    for name in ("trees", "comparisons", "weight", "auxiliary"):
        assert getattr(batch, name).reads <= 5 * PARTS, name
