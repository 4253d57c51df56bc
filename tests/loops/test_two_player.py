"""Two players: what each samples from, P(y > y'), and that only the policy's side learns."""

from __future__ import annotations

import pytest
from loops.loop_cases import ByDigest, make, named

from pyengine.errors import ConfigError
from pyengine.loops import TwoPlayer
from pyengine.loops.duels import DuelSource
from pyengine.loops.opponents import against_opponent, ours_alone
from pyengine.objectives import DPO, XPO, NashMD
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.comparators.comparator import Compared


class Digits:
    """The response whose first token is larger wins with 3/4; of 9 there is no verdict."""

    name = "digits"

    def __init__(self):
        self.asked = []

    def compare(self, groups, duels):
        self.asked.append(list(duels))
        found = []
        for g, i, j in duels:
            a, b = (groups[g].responses[k].token_ids[0] for k in (i, j))
            found.append(None if 9 in (a, b) else 0.5 if a == b else 0.75 if a > b else 0.25)
        return Compared(found, ["no verdict"] * (None in found), {"calls": 1.0})


def sides(ours, theirs):
    responses = [Response([t]) for t in ours]
    return Group([1], responses + [Response([t], origin="opponent") for t in theirs])


def test_duels_are_one_call_of_sample_against_sample():
    comparator = Digits()
    groups = [sides([3, 1], [2, 1]), sides([9, 5], [1, 7])]
    feedback = DuelSource(comparator)(groups)
    assert comparator.asked == [[(0, 0, 2), (0, 1, 3), (1, 0, 2), (1, 1, 3)]]
    assert feedback.rewards == [[0.75, 0.5, 0.25, 0.5], [None, 0.25, None, 0.75]]
    assert feedback.status[1] == ["error", "value", "error", "value"]
    assert feedback.counts_by_name == {"comparisons": 4.0, "calls": 1.0}
    assert feedback.errors == ["no verdict"]
    assert against_opponent(groups, feedback)[0][:2] == [0.75, 0.5]
    alone = ours_alone(groups, feedback)
    assert alone.rewards == [[0.75, 0.5, None, None], [None, 0.25, None, None]]


def test_rewards_alone_say_which_is_higher():
    """Against 1 and 3: 2 wins one of two, 1 has half a win, 4 both."""
    groups = [sides([2, 1, 4], [1, 3, 0])]
    feedback = Feedback.from_rewards([[2.0, 1.0, 4.0, 1.0, 3.0, None]])
    assert against_opponent(groups, feedback)[0][:3] == [0.5, 0.25, 1.0]


def test_the_opponent_is_a_mixture_and_learns_nothing():
    loop = make(TwoPlayer, NashMD(), mixture=0.25)
    report = loop.run_round()
    engine = loop.engine
    assert named(engine, "generate") == [(None,), ({"policy": 0.75, "reference": 0.25},)]
    assert len(set(engine.request_ids)) == 6
    (batch,) = engine.updates
    for group, row in zip(batch.groups, batch.feedback.rewards, strict=True):
        assert [r.origin for r in group.responses] == [None] * 4 + ["opponent"] * 4
        assert row[4:] == [None] * 4
        assert all(0 <= p <= 1 for p in row[:4])
    ours = [p for row in batch.feedback.rewards for p in row[:4]]
    assert report["two_player/win_rate"] == pytest.approx(sum(ours) / 12)
    assert report["reward/value"] == 24


@pytest.mark.parametrize(("mixture", "models"), [(0.0, None), (1.0, {"reference": 1.0})])
def test_the_ends_of_the_mixture(mixture, models):
    loop = make(TwoPlayer, NashMD(), mixture=mixture)
    loop.run_round()
    assert named(loop.engine, "generate") == [(None,), (models,)]


def test_comparisons_are_of_sample_against_sample():
    loop = make(TwoPlayer, DPO(), mixture=1.0)
    loop.run_round()
    (batch,) = loop.engine.updates
    assert len(batch.comparisons) == 12
    for c in batch.comparisons:
        rewards = batch.feedback.rewards[c.group]
        assert abs(c.winner - c.loser) == 4
        assert rewards[c.winner] > rewards[c.loser]


def test_what_an_objective_explores_is_the_opponents():
    loop = make(TwoPlayer, XPO(), mixture=1.0)
    loop.run_round()
    for c in loop.engine.updates[0].comparisons:
        assert c.further == [(c.group, max(c.winner, c.loser))]


def test_a_comparator_takes_the_sources_place():
    comparator = Digits()
    loop = make(TwoPlayer, NashMD(), comparator=comparator, eval_prompts=["a"])
    report = loop.run_round()
    assert len(comparator.asked) == 1
    assert (report["judge/comparisons"], report["judge/calls"]) == (12.0, 1.0)
    assert isinstance(loop.eval_source, ByDigest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": 1.5}, r"mixture must be in \[0, 1\] but is 1.5"),
        ({"updates_per_round": 0}, "updates_per_round must be an integer >= 1"),
        ({"source": None}, "source or comparator must be given"),
        ({"allocation": object()}, "allocation must be None, since the loop says who samples"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"\[TwoPlayer\] {message}"):
        make(TwoPlayer, NashMD(), **changes)
