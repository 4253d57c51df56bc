"""Samples in stages within a round: by hand, in loops, and resumed."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import PROMPTS, make, number

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.loops import ExpertIteration, Iterative, Online
from pyengine.loops.stages import sampled_in_stages
from pyengine.objectives import DPO, NLL
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.allocations.difficulty import Difficulty
from pyengine.preferences.allocations.gvm import Gvm
from pyengine.preferences.allocations.until_k_correct import UntilKCorrect


class Scripted:
    """Prompt i passes where a token is below its limit; a draw's tokens count up from 10 * draw."""

    def __init__(self, limits):
        self.limits, self.counts, self.measured = limits, [], []

    def draw(self, counts, draw):
        self.counts.append(list(counts))
        return [
            Group([i], [Response([10 * draw + k]) for k in range(count)])
            for i, count in enumerate(counts)
            if count
        ]

    def judge(self, groups):
        return Feedback.from_rewards(
            [
                [float(r.token_ids[0] < self.limits[g.prompt_ids[0]]) for r in g.responses]
                for g in groups
            ]
        )

    def gradient_norms(self, groups, *, per_token):
        self.measured.append([[r.token_ids[0] for r in g.responses] for g in groups])
        return [[1.0 + g.prompt_ids[0]] * len(g.responses) for g in groups]

    def run(self, allocation, each):
        return sampled_in_stages(
            allocation, len(self.limits), each, 0.5, self.draw, self.judge, allocation, self
        )


def test_gvm_divides_what_is_left_by_pass_rates_and_gradients():
    """Four first samples: prompt 0 passes all, 1 one of them, 2 none. Shares 1 / sqrt(1.001) =
    0.9995, 2 / sqrt(0.254) = 3.968 and 0 of the 3 * 8 - 12 = 12 left: 2.41, 9.59, 0."""
    script = Scripted([99, 1, 0])
    groups = script.run(Gvm(first=4, measured=2), 8)
    assert script.counts == [[4, 4, 4], [2, 10, 0]]
    assert script.measured == [[[0, 1], [0]]]  # at most two, of those that passed
    assert [len(g.responses) for g in groups] == [6, 14, 4]
    assert [r.token_ids[0] for r in groups[0].responses] == [0, 1, 2, 3, 10, 11]


def test_sampling_goes_on_until_enough_is_correct():
    """Prompt 0 has its two after the first stage; prompt 1 lacks two, then one, and is done."""
    script = Scripted([99, 1])
    script.judge = lambda groups: Feedback.from_rewards(
        [[float(g.prompt_ids == [0] or r.token_ids[0] in (10, 20)) for r in g.responses]
         for g in groups]
    )  # fmt: skip
    script.run(UntilKCorrect(first=2, k=2, stages=5), 8)
    assert script.counts == [[2, 2], [0, 2], [0, 1]]


def test_the_budget_is_an_end():
    """Two prompts of 3 each: 4 first samples leave 2 for eight that are missing."""
    script = Scripted([0, 0])
    groups = script.run(UntilKCorrect(first=2, k=4, stages=9), 3)
    assert script.counts == [[2, 2], [1, 1]]
    assert sum(len(g.responses) for g in groups) == 6


def loop(cls=ExpertIteration, engine=None, **changes):
    settings = {
        "allocation": Gvm(first=2), "accepted_above": 0.5,
        "sampling": SamplingParams(n=5, max_tokens=6, seed=2),
    } | changes  # fmt: skip
    return make(cls, NLL() if cls is ExpertIteration else DPO(), engine, **settings)


def test_a_loop_samples_in_stages_with_draws_of_their_own():
    made = loop()
    report = made.run_round()
    assert report["allocation/samples"] == 15
    sizes = [len(g.responses) for g in made.last_groups]
    assert (report["allocation/least"], report["allocation/most"]) == (min(sizes), max(sizes))
    assert min(sizes) < 5 < max(sizes)
    assert report["reward/value"] == 15  # the whole is judged
    ids = made.engine.request_ids
    assert len(set(ids)) == len(ids)
    accepted = [
        sum(number(g.prompt, k, r.token_ids) > 0.5 for k, r in enumerate(g.responses[:2]))
        for g in made.last_groups
    ]
    assert all(size == 2 for size, n in zip(sizes, accepted, strict=True) if not n)


@pytest.mark.parametrize("cls", [ExpertIteration, Iterative, Online])
def test_rounds_in_stages_resume_alike(cls):
    rules = {"allocation": Difficulty(first=2, k=3, cap=9, stages=3)} if cls is Online else {}
    whole, first = loop(cls, **rules), loop(cls, **rules)
    list(whole.run(3))
    list(first.run(1))
    state = json.loads(json.dumps(first.state_dict()))
    rest = loop(cls, first.engine, **rules)
    rest.load_state_dict(state)
    list(rest.run(2))
    assert rest.engine.weight == whole.engine.weight
    assert rest.state_dict() == whole.state_dict()


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match=r"first of gvm must be less than sampling.n, which is 4"):
        make(ExpertIteration, NLL(), FakeEngine(), prompts=PROMPTS, allocation=Gvm())
    with pytest.raises(ConfigError, match=r"gvm does not fit: .*gradient_norm must be a finite"):
        make(ExpertIteration, NLL(), FakeEngine(), allocation=Gvm(first=None))
    with pytest.raises(ConfigError, match="stages are of rounds with first samples but are 2"):
        UntilKCorrect(stages=2)
