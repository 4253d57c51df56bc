"""On-policy RL: whole groups in minibatches, and a sampler that stays what drew them."""

from __future__ import annotations

import pytest
from loops.loop_cases import ByDigest, make

import pyengine as pe
from pyengine.errors import ConfigError
from pyengine.loops import OnPolicyRL
from pyengine.objectives import DPO, GRPO, PPO, RLOO


def test_a_step_has_whole_groups():
    loop = make(OnPolicyRL, GRPO(), epochs=2, batch_size=2)
    report = loop.run_round()
    updates = loop.engine.updates
    assert [len(b.groups) for b in updates] == [2, 1, 2, 1]
    assert all(len(g.responses) == 4 for b in updates for g in b.groups)
    assert report["updates"] == loop.most_updates == 4
    assert "objective/scores_margin" not in report


def test_the_sampler_stays_the_policy_that_drew(tiny_model):
    """In the second epoch the policy is no longer the sampler: the ratio leaves 1."""
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2)
    loop = OnPolicyRL(
        engine,
        ["The sea", "A train"],
        source=ByDigest(),
        objective=RLOO(kl_coef=0.0),
        sampling=pe.SamplingParams(n=4, max_tokens=6, seed=1),
        epochs=2,
    )
    seen, update = [], engine.update

    def watched(batch, objective):
        sampled = [list(r.logprobs) for g in batch.groups for r in g.responses]
        now = [s.token_logprobs.tolist() for row in engine.score(batch.groups) for s in row]
        seen.append((sampled, now))
        return update(batch, objective)

    engine.update = watched
    loop.run_round()
    (first, at_first), (second, at_second) = seen
    assert first == at_first == second
    assert second != at_second


def test_what_is_normalised_over_the_round_is_not_cut():
    assert make(OnPolicyRL, PPO(), epochs=3).run_round()["updates"] == 3
    with pytest.raises(ConfigError, match=r"batch_size must be None with ppo, .* but is 2"):
        make(OnPolicyRL, PPO(), batch_size=2)


def test_comparisons_are_another_loops():
    with pytest.raises(ConfigError, match=r"dpo does not fit .*loop on_policy_rl makes none"):
        make(OnPolicyRL, DPO())
