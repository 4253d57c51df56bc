"""What an evaluation measures beside the mean reward."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.evaluation.available import EVALUATIONS
from pyengine.evaluation.calibration import Calibration
from pyengine.evaluation.implicit_reward_accuracy import ImplicitRewardAccuracy
from pyengine.evaluation.pass_at_k import PassAtK
from pyengine.evaluation.reward_kl import RewardKL
from pyengine.loops import evaluate
from pyengine.loops.measures import check_measures
from pyengine.preferences import Feedback

PARAMS = SamplingParams(n=2, max_tokens=4, seed=9)


def source(groups):
    return Feedback.from_rewards([[1.0, 0.0], [0.0, None]])


def test_figures_stand_beside_the_mean_reward():
    """A policy that finds every token 0.25 nats less likely than the reference does."""
    engine = FakeEngine()
    engine.weight = 0.25
    measures = [PassAtK(ks=[1]), RewardKL(), ImplicitRewardAccuracy()]
    result = evaluate(engine, "ab", source, PARAMS, measures=measures)
    metrics = result.metrics()
    assert metrics["eval/pass@1"] == 0.25
    assert metrics["eval/pass@1_stderr"] == pytest.approx(0.25)
    lengths = [[len(r.token_ids) for r in g.responses] for g in result.groups]
    means = [-0.25 * sum(row) / 2 for row in lengths]
    assert metrics["eval/kl_k1"] == pytest.approx(sum(means) / 2)
    first, second = lengths[0]  # the longer one has the smaller log-ratio
    expected = 0.5 if first == second else float(first < second)
    assert metrics["eval/implicit_reward_accuracy"] == expected
    assert set(evaluate(engine, "ab", source, PARAMS).metrics()) < set(metrics)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (PassAtK(ks=[3]), r"pass_at_k cannot be measured of 2 samples a prompt: .*k = 3"),
        (RewardKL(), "reward_kl cannot be measured: it reads a reference and the engine has none"),
        (Calibration(), r"calibration cannot be measured of .*columns must have 'probability'"),
    ],
)
def test_what_cannot_be_measured_is_refused_beforehand(measure, message):
    with pytest.raises(ConfigError, match=message):
        check_measures([measure], source, 2, has_reference=False)


def test_what_can_be_measured_passes():
    names = ["diversity", "implicit_reward_accuracy", "maj_at_k", "pass_at_k", "reward_kl"]
    check_measures([EVALUATIONS.make(n) for n in names], source, 4, has_reference=True)
