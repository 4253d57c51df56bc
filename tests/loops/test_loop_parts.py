"""Samplers, selections and allocations in a loop: what they are handed, and what is reported."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import PROMPTS, ByDigest, make, number

from pyengine.errors import CheckpointError, ConfigError, RequestError, RewardError
from pyengine.loops import ExpertIteration, JudgePolicy, Online
from pyengine.objectives import DPO, NLL
from pyengine.preferences import AllPairs, Feedback, Pairs
from pyengine.preferences.comparators.comparator import Compared
from pyengine.preferences.pairings.margin_threshold import MarginThreshold
from pyengine.preferences.selections.annotated import Annotated
from pyengine.preferences.selections.chain import Chain
from pyengine.preferences.selections.margin import Margin


class Twice:
    """The better two of four draws, as a sampler that asks a source in the middle."""

    name, needs_source = "twice", True

    def __init__(self):
        self.seen = []

    def __call__(self, engine, prompts, params, request_ids, judge=None):
        groups = engine.generate(prompts, params, request_ids=request_ids)
        feedback = judge(groups)
        self.seen.append([dict(g.columns) for g in groups])
        for group, row in zip(groups, feedback.rewards, strict=True):
            best = sorted(range(len(row)), key=lambda k, row=row: -row[k])[:2]
            group.responses = [group.responses[k] for k in sorted(best)]
        return groups


class Widest:
    """Keeps the widest comparison of the round."""

    name = "widest"

    def __init__(self):
        self.rounds = []

    def __call__(self, groups, feedback, pairs, round=0):
        self.rounds.append(round)
        kept = sorted(
            pairs.comparisons,
            key=lambda c: feedback.rewards[c.group][c.loser] - feedback.rewards[c.group][c.winner],
        )[:1]
        left = len(pairs.comparisons) - len(kept)
        return Pairs(kept, pairs.counts | {"narrow": left})


class Untried:
    """Two samples of a prompt that was never accepted, none of the others."""

    name = "untried"

    def __init__(self):
        self.asked = []

    def __call__(self, stats, budget):
        self.asked.append(([(s.tried, s.correct) for s in stats], budget))
        return [0 if s.correct else 2 for s in stats]


def test_a_sampler_draws_and_may_ask_the_judge():
    sampler = Twice()
    loop = make(Online, DPO(), sampler=sampler, columns={"number": list(range(6))})
    report = loop.run_round()
    assert [len(g.responses) for g in loop.last_groups] == [2, 2, 2]
    assert report["reward/value"] == 6
    numbers = [PROMPTS.index(g.prompt) for g in loop.last_groups]
    assert [columns["number"] for columns in sampler.seen[0]] == numbers


def test_what_a_sampler_was_told_is_remembered():
    kept = {}

    def remember(number, groups, ask):
        key = number, json.dumps([[r.token_ids for r in g.responses] for g in groups])
        if key not in kept:
            kept[key] = ask()
        return kept[key]

    class Moody(ByDigest):
        asked = 0

        def __call__(self, groups):
            Moody.asked += 1
            rewards = [[number(self.asked, k) for k, _ in enumerate(g.responses)] for g in groups]
            return Feedback.from_rewards(rewards)

    def groups():
        loop = make(Online, DPO(), sampler=Twice(), source=Moody(), remember=remember)
        loop.run_round()
        return [[r.token_ids for r in g.responses] for g in loop.last_groups]

    assert groups() == groups()
    assert Moody.asked == 2  # by the sampler and after it, in the first run


def test_a_judge_that_fails_a_sampler_fails_the_round():
    class Broken(ByDigest):
        def __call__(self, groups):
            raise ConnectionError("judge is away")

    loop = make(Online, DPO(), sampler=Twice(), source=Broken())
    with pytest.raises(RewardError, match="judge is away"):
        loop.run_round()
    policy = JudgePolicy(on_failure="skip")
    report = make(Online, DPO(), sampler=Twice(), source=Broken(), judge=policy).run_round()
    assert (report["rounds_skipped"], report["updates"]) == (1, 0)


def test_equal_prompts_with_other_columns_are_not_mixed_up():
    class Alone(Twice):
        def __call__(self, engine, prompts, params, request_ids, judge=None):
            groups = engine.generate(prompts, params, request_ids=request_ids)
            for group in reversed(groups):
                judge([group])
            return groups

    loop = make(
        Online, DPO(), prompts=["a", "a"], prompts_per_round=2, sampler=Alone(),
        columns={"number": [1, 2]},
    )  # fmt: skip
    with pytest.raises(RequestError, match="prompts must differ where their columns do"):
        loop.run_round()


def test_a_selection_keeps_some_and_says_what_it_left_out():
    selection = Widest()
    loop = make(Online, DPO(), pairing=AllPairs(), selection=selection)
    selection.rounds.clear()  # what was rehearsed
    reports = list(loop.run(2))
    assert [len(b.comparisons) for b in loop.engine.updates] == [1, 1]
    assert selection.rounds == [0, 1]
    assert reports[0]["pairs/narrow"] == 3 * 6 - 1


def test_a_selection_that_lacks_something_is_refused_before_the_first_round():
    def needs(groups, feedback, pairs, round=0):
        raise RequestError("[entropy] needs reward_std of every response")

    needs.name = "needs"
    with pytest.raises(ConfigError, match=r"dpo does not fit .*needs reward_std"):
        make(Online, DPO(), selection=needs)


def test_samples_are_divided_by_what_was_seen():
    allocation = Untried()
    loop = make(
        ExpertIteration, NLL(), prompts_per_round=6, allocation=allocation, accepted_above=0.8
    )
    allocation.asked.clear()  # what was rehearsed
    loop.run_round()
    assert allocation.asked == []  # nothing is known of a new prompt
    accepted = {
        g.prompt: sum(number(g.prompt, k, r.token_ids) > 0.8 for k, r in enumerate(g.responses))
        for g in loop.last_groups
    }
    assert 0 < sum(n > 0 for n in accepted.values()) < 6
    loop.run_round()
    assert [g.prompt for g in loop.last_groups if accepted[g.prompt]] == []
    assert all(len(g.responses) == 2 for g in loop.last_groups)
    [(stats, budget)] = allocation.asked
    assert sorted(stats) == sorted((4, n) for n in accepted.values())
    assert budget == 24


def test_what_was_seen_of_prompts_is_part_of_the_state():
    def loop():
        return make(ExpertIteration, NLL(), allocation=Untried(), accepted_above=0.5)

    whole, first = loop(), loop()
    list(whole.run(4))
    list(first.run(2))
    state = json.loads(json.dumps(first.state_dict()))
    rest = make(ExpertIteration, NLL(), first.engine, allocation=Untried(), accepted_above=0.5)
    rest.load_state_dict(state)
    list(rest.run(2))
    assert rest.state_dict() == whole.state_dict()
    assert rest.engine.weight == whole.engine.weight
    with pytest.raises(CheckpointError, match="allocation"):
        make(ExpertIteration, NLL()).load_state_dict(state)


def test_no_sample_at_all_is_a_round_without_an_update():
    class Nothing(Untried):
        def __call__(self, stats, budget):
            return [0] * len(stats)

    loop = make(Online, DPO(), allocation=Nothing(), prompts_per_round=6)
    reports = list(loop.run(2))
    assert [(r["updates"], r["rounds_skipped"]) for r in reports] == [(1, 0), (0, 1)]


def test_an_allocation_that_lacks_something_is_refused_before_the_first_round():
    class Norms(Untried):
        def __call__(self, stats, budget):
            raise RequestError("[gvm] stats[0].gradient_norm must be a number")

    with pytest.raises(ConfigError, match=r"untried does not fit: .*gradient_norm must be"):
        make(Online, DPO(), allocation=Norms())


def test_an_allocation_and_a_sampler_exclude_each_other():
    with pytest.raises(ConfigError, match="allocation must be None beside a sampler"):
        make(Online, DPO(), sampler=Twice(), allocation=Untried())


def test_what_a_source_counts_is_reported():
    class Counts(ByDigest):
        def __call__(self, groups):
            return dataclasses.replace(super().__call__(groups), counts_by_name={"calls": 7.0})

    assert make(Online, DPO(), source=Counts()).run_round()["judge/calls"] == 7.0


def test_counters_change_with_the_round_alone(monkeypatch):
    """A round that ends before it counts is done again, and counts once."""
    loop = make(Online, DPO(), FakeEngine(), source=ByDigest(), eval_prompts=["a"])

    def fails(groups):
        raise KeyboardInterrupt

    before = loop.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(type(loop), "_sample_metrics", lambda self, groups: fails(groups))
        with pytest.raises(KeyboardInterrupt):
            loop.run_round()
    assert loop.state_dict() == before


class Asked:
    """A comparator that says how often it was asked."""

    name, calls = "asked", 0

    def compare(self, groups, duels):
        self.calls += 1
        return Compared([1.0] * len(duels))


def test_a_rehearsal_asks_nobody_and_has_no_limits_on_margins():
    """Rewards that are made up differ by 1; a pairing may want more, and labels cost money."""
    asked = Asked()
    chosen = Chain((Margin(most=2), Annotated(asked)))
    loop = make(Online, DPO(), pairing=AllPairs(min_margin=0.001), selection=chosen)
    make(Online, DPO(), pairing=AllPairs(min_margin=50.0))
    make(Online, DPO(), pairing=MarginThreshold(max_margin=0.5))
    assert asked.calls == 0
    [report] = loop.run(1)
    assert asked.calls == 1
    assert report["pairs/asked"] == 2
    with pytest.raises(ConfigError, match="needs 'implicit' of every response"):
        make(Online, DPO(), pairing=AllPairs(), selection=Margin(column="implicit"))
