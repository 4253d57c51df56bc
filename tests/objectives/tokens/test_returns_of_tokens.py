"""Rewards and KL penalties of tokens: what a response has still to come, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import LossInputs, get

SAMPLER, REFERENCE = [-1.0, -2.0, -1.0], [-1.5, -1.0, -2.0]  # log-ratios 0.5, -1 and 1


def inputs(dtype: torch.dtype = torch.float64, **token_columns: list[float]) -> LossInputs:
    """Responses of two tokens and of one, rewards 1 and 0, the policy still the sampler."""
    none = torch.zeros(0, dtype=torch.int64)
    return LossInputs(
        policy_token_logps=torch.tensor(SAMPLER, dtype=dtype),
        reference_token_logps=torch.tensor(REFERENCE, dtype=dtype),
        sampler_token_logps=torch.tensor(SAMPLER, dtype=dtype),
        cu_seqlens=torch.tensor([0, 2, 3]),
        chosen=none,
        rejected=none,
        probability=none,
        weight=torch.ones(2, dtype=dtype),
        total_weight=2.0,
        total_tokens=3,
        group=torch.tensor([0, 1]),
        columns={"rewards": torch.tensor([1.0, 0.0])},
        token_columns={name: torch.tensor(v) for name, v in token_columns.items()},
    )


def ppo(**options: Any):
    return get("ppo", **{"kl_coef": 0.1, "advantage_estimator": "rewards"} | options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_token_s_penalty_is_off_its_own_reward(dtype):
    """r: -0.05, 1 + 0.1 and 0 - 0.1; to come 1.05, 1.1 and -0.1. At ratio 1 the loss is minus their
    mean and the slope minus each over three tokens."""
    output = ppo(kl_level="token")(inputs(dtype))
    assert output.loss.item() == pytest.approx(-2.05 / 3, rel=1e-6)
    assert output.dlogps.tolist() == pytest.approx([-1.05 / 3, -1.1 / 3, 0.1 / 3], rel=1e-6)
    assert output.metrics["advantages"].tolist() == pytest.approx([1.075, -0.1], rel=1e-6)
    # Of the response its sum, 0.05, is off the reward: both tokens have 1.05.
    whole = ppo()(inputs(dtype))
    assert whole.dlogps.tolist() == pytest.approx([-1.05 / 3, -1.05 / 3, 0.1 / 3], rel=1e-6)


def test_given_rewards_of_tokens_take_the_response_s_place():
    """r: 0.5 - 0.05, 0 + 0.1 and 2 - 0.1; to come 0.55, 0.1 and 1.9."""
    output = ppo()(inputs(token_rewards=[0.5, 0.0, 2.0]))
    assert output.dlogps.tolist() == pytest.approx([-0.55 / 3, -0.1 / 3, -1.9 / 3], rel=1e-12)


def test_reinforce_pp_normalises_over_all_tokens():
    """1, 3 and 5 to come have mean 3 and variance 8 / 3."""
    normalised = ppo(advantage_estimator="reinforce_pp", kl_coef=0.0)
    output = normalised(inputs(token_rewards=[-2.0, 3.0, 5.0]))
    step = 2 / (8 / 3) ** 0.5
    assert output.dlogps.tolist() == pytest.approx([step / 3, 0.0, -step / 3], abs=1e-12)


def test_who_does_not_take_them_says_so():
    given = inputs(token_rewards=[0.5, 0.0, 2.0])
    with pytest.raises(RequestError, match=r"\[grpo\] .*token_rewards.*: advantage_estimator is"):
        get("grpo")(given)
    with pytest.raises(RequestError, match=r"\[topr\] .*token_rewards.*: it takes one a response"):
        get("topr")(given)
    with pytest.raises(ConfigError, match=r"must be one of rewards, reinforce_pp with kl_level"):
        get("ppo", kl_level="token", advantage_estimator="rloo")
    with pytest.raises(RequestError, match=r"\[ppo\] token_rewards must be given for every token"):
        ppo()(inputs(token_rewards=[0.5, float("nan"), 2.0]))
