"""EM: the weights of the E-step by hand, and what the M-step is fitted to."""

from __future__ import annotations

import math

import pytest
from loops.loop_cases import make, named

from pyengine.errors import ConfigError
from pyengine.loops import EM
from pyengine.loops.em import tempered
from pyengine.objectives import NLL, PMPO
from pyengine.preferences import Feedback, Gives


def test_weights_are_a_softmax_that_adds_up_to_the_number_of_responses():
    """exp(0), exp(ln 3) = 1, 3 in a temperature of 1/2: a quarter and three quarters of two."""
    found = tempered([0.0, None, math.log(3) / 2], 0.5)
    assert found == [pytest.approx(0.5), None, pytest.approx(1.5)]
    assert tempered([None, None], 1.0) == [None, None]
    assert tempered([-1e6, 1e6], 1e-3) == [0.0, 2.0]  # nothing overflows


class Two:
    """Rewards 0 and 1, and one that is missing."""

    name = "two"

    def __call__(self, groups):
        return Feedback.from_rewards([[0.0, 1.0, None] for _ in groups])


def test_a_round_is_fitted_to_all_that_was_judged():
    from pyengine.engine.calls.sampling_params import SamplingParams

    sampling = SamplingParams(n=3, max_tokens=6)
    loop = make(EM, NLL(), source=Two(), temperature=1 / math.log(3), sampling=sampling)
    report = loop.run_round()
    (batch,) = loop.engine.updates
    assert batch.feedback.columns["weight"][0] == [pytest.approx(0.5), pytest.approx(1.5), None]
    assert batch.feedback.labels[0] == [False, True, False]
    # (0.5 + 1.5)^2 / (0.25 + 2.25)
    assert report["em/effective_samples"] == pytest.approx(1.6)


def test_the_reference_is_the_last_policy_where_it_is_asked_to_be():
    loop = make(EM, NLL(), reference_policy="last", epochs=2, batch_size=6)
    report = list(loop.run(2))[-1]
    assert report["updates"] == loop.most_updates == 4
    assert named(loop.engine, "reference") == [("iterate-0",), ("iterate-1",)]
    assert loop.engine.snapshots == ["iterate-1"]


def test_labels_suffice_where_the_objective_takes_them():
    assert make(EM, PMPO(beta=0.0)).run_round()["updates"] == 1


def test_a_source_with_weights_is_refused():
    class Weighs(Two):
        gives = Gives(columns=("weight",))

    with pytest.raises(ConfigError, match="source must not give the column 'weight'"):
        make(EM, NLL(), source=Weighs())
    with pytest.raises(ConfigError, match="temperature must be > 0 and finite but is 0"):
        make(EM, NLL(), temperature=0)
