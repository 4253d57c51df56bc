"""Responses of other origins in loops: what an objective explores, and pairings by origin."""

from __future__ import annotations

import pytest
from loops.loop_cases import make, named

from pyengine.errors import ConfigError
from pyengine.loops import Iterative, Online
from pyengine.loops.exploring import with_explored
from pyengine.objectives import DPO, XPO
from pyengine.preferences import AgainstGold, AgainstSnapshot, Comparison, Group, Pairs, Response
from pyengine.samplers import Gold, SeveralModels


def test_a_comparison_carries_the_first_response_of_the_reference():
    groups = [
        Group([1], [Response([1]), *(Response(ids, origin="reference") for ids in ([], [2]))]),
        Group([2], [Response([3]), Response([4]), Response([], origin="reference")]),
    ]
    pairs = Pairs([Comparison(0, 0, 2), Comparison(1, 0, 1)], {"ties": 1}, ["why"])
    found = with_explored(groups, pairs)
    assert [(c.group, c.further) for c in found.comparisons] == [(0, [(0, 2)])]
    assert (found.counts, found.errors) == ({"ties": 1, "no_explore": 1}, ["why"])
    assert with_explored([Group([1], [Response([1])])], pairs) is pairs


@pytest.mark.parametrize("cls", [Online, Iterative])
def test_xpo_explores_what_the_reference_drew(cls):
    loop = make(cls, XPO(), sampler=SeveralModels(others={"reference": 2}))
    report = loop.run_round()
    [batch] = loop.engine.updates
    assert named(loop.engine, "generate") == [(None,), ({"reference": 1.0},)]
    assert [c.further for c in batch.comparisons] == [[(c.group, 4)] for c in batch.comparisons]
    assert len(batch.comparisons) == 3
    assert report["pairs/no_explore"] == 0


def test_without_a_response_of_the_reference_it_is_refused():
    with pytest.raises(ConfigError, match=r"xpo does not fit .*needs the explore response"):
        make(Online, XPO())


def test_pairings_by_origin_fit_samplers_that_say_theirs():
    present = AgainstSnapshot(chosen=("policy",), rejected=("reference",))
    loop = make(Online, DPO(), pairing=present, sampler=SeveralModels())
    loop.run_round()
    for c in loop.engine.updates[0].comparisons if loop.engine.updates else ():
        assert (c.winner < 4, c.loser) == (True, 4)
    columns = {"answer": ["yes"] * 6}
    assert make(Online, DPO(), pairing=AgainstGold(), sampler=Gold("answer"), columns=columns)
    with pytest.raises(ConfigError, match=r"of \{4\} responses a prompt none is made"):
        make(Online, DPO(), pairing=present)
