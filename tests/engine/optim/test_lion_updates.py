"""Lion in an engine: the second optimizer shares schedule, clipping, checkpoints and the plan."""

from __future__ import annotations

import pytest
import torch
from reference.lion import lion as reference
from tiny_batches import moments, preferences, same_bits, weights
from torch import nn

import pyengine as pe
from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.errors import CheckpointError, ConfigError
from pyengine.objectives import DPO

RULE = pe.optim.Lion(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def test_steps_are_the_papers_with_schedule_and_clipping():
    rng = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(7, 5, generator=rng))
    expected, m = weight.detach().clone(), torch.zeros(7, 5)
    optimizer = Optimizer({"w": weight}, OptimizerConfig(RULE, "linear", 1, 5, max_grad_norm=0.5))
    for rate in (1e-3, 1e-3, 0.75e-3, 0.5e-3):
        weight.grad = torch.randn(7, 5, generator=rng)
        norm = float(weight.grad.double().norm())
        expected, m = reference(
            expected, weight.grad, m, lr=rate, betas=(0.9, 0.95), weight_decay=0.1,
            grad_scale=0.5 / norm,
        )  # fmt: skip
        result = optimizer.step()
        assert result["lr"] == pytest.approx(rate)
        assert result["grad_norm"] == pytest.approx(norm)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(optimizer.state_tensors()["exp_avg.w"], m, rtol=1e-5, atol=1e-8)


def test_a_run_that_is_resumed_has_the_bits_of_one_that_is_not(make_engine, tmp_path):
    options = {"optimizer": RULE, "schedule": "cosine", "total_steps": 9, "max_grad_norm": 0.5}
    straight = make_engine(**options)
    for _ in range(2):
        straight.update(preferences(), DPO())
    straight.save_checkpoint(tmp_path / "step-2")
    resumed = pe.Engine.load_checkpoint(tmp_path / "step-2", micro_batch_tokens=20)
    assert resumed.config.optimizer == straight.config.optimizer
    for engine in (straight, resumed):
        for _ in range(2):
            engine.update(preferences(), DPO())
    assert same_bits(weights(straight), weights(resumed))
    assert same_bits(moments(straight), moments(resumed))
    assert set(moments(straight)) == {f"exp_avg.{name}" for name in straight._network.parameters}


def test_a_name_and_fields_of_a_file_are_the_rule(make_engine):
    section = {"name": "lion", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
    assert make_engine(optimizer=section).config.optimizer.rule == RULE
    assert make_engine(optimizer="lion").config.optimizer.rule == pe.optim.Lion()
    with pytest.raises(ConfigError, match=r"^\[optimizers\] lion has no option 'eps'"):
        make_engine(optimizer={"name": "lion", "eps": 1e-8})


def test_the_plan_counts_one_moment(make_engine):
    parts = {
        name: dict(make_engine(optimizer=rule).memory_plan().parts)["optimizer"]
        for name, rule in (("lion", RULE), ("adamw", pe.optim.AdamW()))
    }
    assert 2 * parts["lion"] == parts["adamw"] > 0


def test_a_reward_model_takes_it_too(tiny_model):
    batch = pe.Preferences(preferences().groups, [pe.Comparison(0, 0, 1)])
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32", optimizer=RULE)
    before = {name: p.detach().clone() for name, p in model._network.parameters.items()}
    assert model.update(batch)["lr"] == 1e-3
    moved = {
        name: float((p - before[name] * (1 - 1e-4)).abs().max())
        for name, p in model._network.parameters.items()
    }
    assert moved == pytest.approx(dict.fromkeys(moved, 1e-3), rel=1e-3)


def test_state_of_another_rule_and_other_devices_are_refused():
    weight = {"w": nn.Parameter(torch.zeros(3))}
    with pytest.raises(CheckpointError, match=r"not fit the model: exp_avg_sq\.w"):
        Optimizer(weight, OptimizerConfig(RULE)).load_state_tensors(
            {"exp_avg.w": torch.zeros(3), "exp_avg_sq.w": torch.zeros(3)}, 1
        )
    with pytest.raises(ConfigError, match="lion must be on the CPU, which has its kernel, but is"):
        Optimizer({"w": nn.Parameter(torch.zeros(3, device="meta"))}, OptimizerConfig(RULE))
