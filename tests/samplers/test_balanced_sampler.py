"""Temperature and threshold by the balance score, by hand."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.loops import ExpertIteration
from pyengine.objectives import NLL
from pyengine.preferences import Feedback, Group, Response
from pyengine.samplers.balanced import Balanced, balance_score


def test_the_score_wants_enough_and_mostly_right_ones():
    """min(n' / 4, 1) n' / n: 2 of 2 are half of enough, 4 of 8 enough but half right."""
    assert balance_score(2, 2, wanted=4) == 0.5
    assert balance_score(8, 4, wanted=4) == 0.5
    assert balance_score(6, 5, wanted=4) == 5 / 6
    assert balance_score(0, 0, wanted=4) == 0.0


# By temperature the rewards of four samples to each of two prompts; tokens are sample numbers.
REWARDS = {
    0.5: [[1.0, 1.0, 0.2, 0.2], [1.0, 0.2, 0.2, 0.2]],
    1.0: [[1.0, 1.0, 1.0, 0.2], [1.0, 1.0, 0.2, 0.6]],
}


class Writes(FakeEngine):
    """Keeps the temperatures; sample k is the token k, and at 0.5 the first two are the same."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def generate(self, prompts, params, request_ids=None, *, models=None):
        each = params if isinstance(params, list) else [params] * len(prompts)
        self.asked.append((list(prompts), [p.temperature for p in each], list(request_ids)))
        return [
            Group([1], [Response([0 if own.temperature == 0.5 and k == 1 else k], [-1.0],
                                 text="x") for k in range(own.n)], prompt=p)
            for p, own in zip(prompts, each, strict=True)
        ]  # fmt: skip


def judge(groups):
    rows = [row for t in (0.5, 1.0) for row in REWARDS[t]]
    return Feedback.from_rewards(rows[: len(groups)])


def test_the_best_setting_samples_the_round():
    """At 0.5 above 0: prompt 0 has three different ones, one right: 1/2 * 1/3; prompt 1 three and
    one. At 1.0 above 0: 1 * 3/4 and 1 * 2/4; above 0.5: 1 and 1 * 2/3, the best."""
    engine = Writes()
    sampler = Balanced(
        temperatures=(0.5, 1.0), thresholds=(0.0, 0.5), prompts=2, wanted=2, correct_above=0.7
    )
    params = SamplingParams(n=4, seed=1)
    groups = sampler(engine, ["a", "b", "c"], params, [3, 4, 5], judge)
    tried, whole = engine.asked
    assert tried[:2] == (["a", "b", "a", "b"], [0.5, 0.5, 1.0, 1.0])
    assert whole == (["a", "b", "c"], [1.0] * 3, [3, 4, 5])
    assert len({*tried[2], *whole[2]}) == 7
    assert [g.columns for g in groups] == [
        {"temperature": 1.0, "threshold": 0.5, "balance": pytest.approx(5 / 6)}
    ] * 3
    with pytest.raises(ConfigError, match="judge must be a source"):
        sampler(engine, ["a"], params, [0])


def test_expert_iteration_keeps_what_is_above_the_chosen_threshold():
    """Rewards 0 to 0.9 by token: the only threshold, 0.45, keeps those above it."""

    def source(groups):
        return Feedback.from_rewards([[r.token_ids[0] / 10 for r in g.responses] for g in groups])

    sampler = Balanced(temperatures=(1.0,), thresholds=(0.45,), prompts=1, wanted=2)
    sampling = SamplingParams(n=8, max_tokens=4)
    settings = {"sampler": sampler, "above_column": "threshold", "best": None}
    loop = ExpertIteration(Writes(), ["a", "b"], source, NLL(), sampling, **settings)
    report = loop.run_round()
    assert (report["filter/kept"], report["filter/below"]) == (2 * 3, 2 * 5)
    assert report["filter/threshold"] == 0.45
    with pytest.raises(ConfigError, match="above_column must be a column of the rows or a samp"):
        ExpertIteration(Writes(), ["a"], source, NLL(), sampling, above_column="threshold")
    with pytest.raises(ConfigError, match="one of above and above_column must be None"):
        ExpertIteration(Writes(), ["a"], source, NLL(), sampling, above=0.5, **settings)
