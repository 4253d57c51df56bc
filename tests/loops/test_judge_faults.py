"""Judges that fail in each loop: what failed is counted, never learned from, and the run goes on
to the same bits."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import ByDigest, make, named

from pyengine.errors import RewardError
from pyengine.loops import (
    EM,
    ExpertIteration,
    Iterative,
    JudgePolicy,
    Online,
    OnPolicyRL,
    SelfPlay,
    TwoPlayer,
)
from pyengine.objectives import DPO, GRPO, NLL, NashMD
from pyengine.preferences import RewardFunction

LOOPS = {
    "online": (Online, DPO(), {}),
    "iterative": (Iterative, DPO(), {"momentum": 0.5, "reference_policy": "last", "batch_size": 1}),
    "self_play": (SelfPlay, DPO(), {"opponent": "uniform"}),
    "expert_iteration": (ExpertIteration, NLL(), {"start": "base", "batch_size": 2}),
    "on_policy_rl": (OnPolicyRL, GRPO(), {"epochs": 2, "batch_size": 1}),
    "two_player": (TwoPlayer, NashMD(), {}),
    "em": (EM, NLL(), {"reference_policy": "last"}),
}
BAD = {"none": None, "nan": float("nan"), "text": "text", "infinite": float("inf")}


def loop_of(name, engine=None, **changes):
    cls, objective, options = LOOPS[name]
    return make(cls, objective, engine, **(options | changes))


def length(completions):
    return [float(len(c)) + i / 100 for i, c in enumerate(completions)]


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_response_without_a_reward_is_counted_and_not_learned_from(name, bad):
    def reward(completions):
        return [bad if i % 4 == 1 else r for i, r in enumerate(length(completions))]

    loop = loop_of(name, source=RewardFunction(reward, timeout_s=10))
    report = loop.run_round()
    responses = sum(len(g.responses) for g in loop.last_groups)
    assert report["reward/abstain"] + report["reward/error"] == responses // 4
    assert report["reward/value"] == responses - responses // 4
    assert loop.engine.updates
    places = {id(r): i for i, r in enumerate(r for g in loop.last_groups for r in g.responses)}
    for batch in loop.engine.updates:
        for g, group in enumerate(batch.groups):
            learned = {k for c in batch.comparisons if c.group == g for k in (c.winner, c.loser)}
            if not batch.comparisons:
                learned = {k for k, s in enumerate(batch.feedback.status[g]) if s == "value"}
            assert all(places[id(group.responses[k])] % 4 != 1 for k in learned)


class Faulty(ByDigest):
    """Raises, or gives what is no feedback of the groups, at its call number `at`."""

    def __init__(self, at, fault):
        self.at, self.fault, self.calls = at, fault, 0

    def __call__(self, groups):
        self.calls += 1
        if self.calls != self.at:
            return super().__call__(groups)
        if isinstance(self.fault, BaseException):
            raise self.fault
        return super().__call__(groups[:-1])  # of too few groups


FAULTS = {
    "raises": ConnectionError("judge is away"),
    "too_few": "too few",
    "dies": KeyboardInterrupt(),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_round_whose_judge_failed_is_done_again_to_the_same_bits(name, fault):
    """In round 2, before anything was learned: the checkpoint that is saved then goes on as if
    nothing had been."""
    whole = loop_of(name)
    list(whole.run(3))
    loop = loop_of(name, source=Faulty(2, fault))
    loop.run_round()
    with pytest.raises((RewardError, KeyboardInterrupt)):
        loop.run_round()
    assert (loop.round, loop.moved) == (1, False)
    engine = FakeEngine()
    engine.weight, engine.step_count = loop.engine.weight, loop.engine.step_count
    engine.kept, engine.reference_snapshot = dict(loop.engine.kept), loop.engine.reference_snapshot
    again = loop_of(name, engine)
    again.load_state_dict(loop.state_dict())
    list(again.run(2))
    assert engine.weight == whole.engine.weight
    assert again.state_dict() == whole.state_dict()
    assert (
        named(engine, "generate")
        == named(whole.engine, "generate")[-len(named(engine, "generate")) :]
    )


@pytest.mark.parametrize("name", LOOPS)
def test_a_skipped_round_changes_no_weight(name):
    loop = loop_of(name, source=Faulty(1, FAULTS["raises"]), judge=JudgePolicy(on_failure="skip"))
    report = loop.run_round()
    assert (report["rounds_skipped"], report["updates"], report["step"]) == (1, 0, 0)
    assert loop.engine.weight == 0.0
    assert loop.run_round()["updates"] > 0
