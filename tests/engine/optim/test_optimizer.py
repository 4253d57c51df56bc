"""AdamW against torch's, schedules by their values, clipping, skipped steps and saved state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyengine.engine.optim.adamw import TorchMoments, state_bytes
from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.errors import CheckpointError, ConfigError

SHAPES = {"a": (7, 5), "b": (11,), "c": (3, 2)}


def adamw(
    learning_rate: float = 1e-6,
    schedule: str = "constant",
    warmup_steps: int = 0,
    total_steps: int | None = None,
    **options: object,
) -> OptimizerConfig:
    given = {"learning_rate": learning_rate, "schedule": schedule, "warmup_steps": warmup_steps}
    return OptimizerConfig.from_options({**given, "total_steps": total_steps, **options})


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in SHAPES.items()
    }


def set_gradients(of: dict[str, nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in of.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def values(of: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in of.items()}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_those_of_torch(weight_decay):
    ours, theirs = parameters(), parameters()
    options = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    config = adamw(learning_rate=0.01, max_grad_norm=None, **options)
    optimizer = Optimizer(ours, config)
    torchs = torch.optim.AdamW(theirs.values(), lr=0.01, fused=False, foreach=False, **options)
    for i in range(5):
        set_gradients(ours, i)
        set_gradients(theirs, i)
        optimizer.step()
        torchs.step()
        for name in SHAPES:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_first_step_by_hand():
    """m = 0.1 g and v = 0.001 g^2, made unbiased g and g^2: a step of lr g / (|g| + eps) = lr."""
    weight = {"w": nn.Parameter(torch.tensor([1.0, 1.0]))}
    weight["w"].grad = torch.tensor([0.3, -20.0])
    result = Optimizer(weight, adamw(learning_rate=0.01, max_grad_norm=None)).step()
    assert weight["w"].tolist() == pytest.approx([0.99, 1.01], abs=1e-7)
    assert result == {
        "lr": 0.01,
        "grad_norm": pytest.approx(math.hypot(0.3, 20.0)),
        "skipped": 0.0,
    }


def test_a_step_is_seen_by_the_version_counter():
    """What is kept of a weight (its bf16 copy) is made anew when the counter moves."""
    weights = parameters()
    optimizer = Optimizer(weights, adamw())
    before = {name: p._version for name, p in weights.items()}
    set_gradients(weights, 0)
    optimizer.step()
    assert all(p._version > before[name] for name, p in weights.items())


def test_weight_decay_is_decoupled_and_follows_the_rate():
    """Gradient 0: only the decay moves the weight, by the factor 1 - lr * decay."""
    weight = {"w": nn.Parameter(torch.tensor([2.0]))}
    weight["w"].grad = torch.zeros(1)
    config = adamw(learning_rate=0.1, weight_decay=0.5, warmup_steps=2)
    Optimizer(weight, config).step()  # the rate is 0.05
    assert weight["w"].item() == pytest.approx(2.0 * (1 - 0.05 * 0.5), rel=1e-6)


# Schedules


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (adamw(2.0), [2.0] * 6),
        (adamw(2.0, warmup_steps=4), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]),
        (
            adamw(2.0, "linear", warmup_steps=0, total_steps=4),
            [2.0, 1.5, 1.0, 0.5, 0.0, 0.0],
        ),
        (
            adamw(2.0, "linear", warmup_steps=2, total_steps=4),
            [1.0, 2.0, 2.0, 1.0, 0.0, 0.0],
        ),
        (
            adamw(2.0, "cosine", warmup_steps=1, total_steps=5),
            [2.0, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0],
        ),
    ],
    ids=["constant", "warmup", "linear", "warmup-linear", "warmup-cosine"],
)
def test_schedule_values(config, expected):
    assert [config.rate(i) for i in range(len(expected))] == pytest.approx(expected, abs=1e-12)


def test_steps_use_and_report_the_scheduled_rate():
    """Constant gradient sign: a step moves each weight by the rate itself."""
    weight = {"w": nn.Parameter(torch.zeros(1))}
    optimizer = Optimizer(weight, adamw(0.4, "linear", 2, 4, max_grad_norm=None))
    moved = []
    for rate in (0.2, 0.4, 0.4, 0.2):
        before = weight["w"].item()
        weight["w"].grad = torch.ones(1)
        assert optimizer.step()["lr"] == pytest.approx(rate)
        moved.append(before - weight["w"].item())
    assert moved == pytest.approx([0.2, 0.4, 0.4, 0.2], rel=1e-5)


# Clipping


def test_gradients_over_the_limit_act_as_if_scaled_to_it():
    """A second optimizer gets gradients that were scaled before."""
    runs = []
    for limit in (0.5, None):
        weights = parameters()
        optimizer = Optimizer(weights, adamw(0.01, eps=1.0, max_grad_norm=limit))
        for seed in (1, 2):
            set_gradients(weights, seed, scale=100.0)
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in weights.values()))
            if limit is None:
                for parameter in weights.values():
                    parameter.grad *= 0.5 / norm
            result = optimizer.step()
            assert result["grad_norm"] == pytest.approx(norm if limit else 0.5, rel=1e-6)
        runs.append(values(weights))
    for name in SHAPES:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("limit", [None, 1e9])
def test_gradients_within_the_limit_keep_their_bits(limit):
    weights = parameters()
    set_gradients(weights, 1)
    before = {name: p.grad.clone() for name, p in weights.items()}
    Optimizer(weights, adamw(max_grad_norm=limit)).step()
    assert all(torch.equal(p.grad, before[name]) for name, p in weights.items())


# Steps that are skipped


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_change_nothing(bad):
    weights = parameters()
    optimizer = Optimizer(weights, adamw(learning_rate=0.1, weight_decay=0.1))
    set_gradients(weights, 0)
    optimizer.step()
    before = values(weights)
    moments = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    set_gradients(weights, 1)
    weights["b"].grad[3] = bad
    result = optimizer.step()
    assert result["skipped"] == 1.0
    assert not math.isfinite(result["grad_norm"])
    assert optimizer.step_count == 1
    assert all(torch.equal(p, before[name]) for name, p in weights.items())
    after = optimizer.state_tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in moments.items())


def test_a_skipped_step_is_as_if_it_had_not_been():
    runs = []
    for skip in (False, True):
        weights = parameters()
        optimizer = Optimizer(weights, adamw(0.1, "linear", 1, 9))
        for i in range(4):
            if skip and i == 2:
                set_gradients(weights, 99)
                weights["a"].grad[0, 0] = math.nan
                optimizer.step()
            set_gradients(weights, i)
            optimizer.step()
        runs.append(values(weights))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in SHAPES)


def test_a_parameter_without_a_gradient_is_left_alone():
    """A parameter without a gradient keeps its value and moments; its gradient stays None."""
    weights = parameters()
    optimizer = Optimizer(weights, adamw(0.1, weight_decay=0.1))
    set_gradients(weights, 0)
    optimizer.step()
    before, kept = values(weights), {n: t.clone() for n, t in optimizer.state_tensors().items()}
    set_gradients(weights, 1)
    weights["b"].grad = None
    optimizer.step()
    after = optimizer.state_tensors()
    for name in SHAPES:
        same = name == "b"
        assert torch.equal(weights[name], before[name]) == same
        assert torch.equal(after[f"exp_avg.{name}"], kept[f"exp_avg.{name}"]) == same
    assert weights["b"].grad is None


def test_gradients_of_any_layout():
    """A transposed gradient acts as its contiguous copy does."""
    runs = []
    for transposed in (False, True):
        weights = parameters()
        set_gradients(weights, 0)
        if transposed:
            weights["a"].grad = weights["a"].grad.T.contiguous().T
            assert not weights["a"].grad.is_contiguous()
        Optimizer(weights, adamw(0.1)).step()
        runs.append(values(weights))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in SHAPES)


# Saved state


def test_state_continues_bit_for_bit():
    config = adamw(0.05, "cosine", 2, 20, weight_decay=0.01)
    whole, first = parameters(), parameters()
    straight, before = Optimizer(whole, config), Optimizer(first, config)
    for i in range(3):
        for weights, optimizer in ((whole, straight), (first, before)):
            set_gradients(weights, i)
            optimizer.step()
    second = {name: nn.Parameter(value) for name, value in values(first).items()}
    after = Optimizer(second, config)
    after.load_state_tensors(before.state_tensors(), before.step_count)
    for i in range(3, 6):
        for weights, optimizer in ((whole, straight), (second, after)):
            set_gradients(weights, i)
            optimizer.step()
    assert after.step_count == 6
    assert all(torch.equal(second[name], whole[name]) for name in SHAPES)


def test_loaded_state_is_a_copy():
    weights = parameters()
    optimizer = Optimizer(weights, adamw(0.1))
    set_gradients(weights, 0)
    optimizer.step()
    saved = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    other = parameters(1)
    loaded = Optimizer(other, adamw(0.1))
    loaded.load_state_tensors(saved, 1)
    kept = {name: t.clone() for name, t in saved.items()}
    set_gradients(other, 1)
    loaded.step()
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_no_state_before_the_first_step():
    optimizer = Optimizer(parameters(), adamw())
    assert optimizer.state_tensors() == {}
    optimizer.load_state_tensors({}, 0)
    assert optimizer.step_count == 0


def state() -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": torch.zeros(shape)
        for key in ("exp_avg", "exp_avg_sq")
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("exp_avg.b"), "state does not fit the model: exp_avg.b"),
        (lambda s: s.update(extra=torch.zeros(1)), "state does not fit the model: extra"),
        (
            lambda s: s.update({"exp_avg_sq.a": torch.zeros(5, 7)}),
            "exp_avg_sq.a must have shape (7, 5) but has (5, 7)",
        ),
        (lambda s: s.clear(), "state does not fit the model: exp_avg.a"),
    ],
)
def test_state_of_another_model_is_refused(change, message):
    changed = state()
    change(changed)
    with pytest.raises(CheckpointError) as caught:
        Optimizer(parameters(), adamw()).load_state_tensors(changed, 1)
    assert str(caught.value) == f"[optimizer] {message}"


# 8 bits

LARGE = (40, 129)  # 5160 elements: 21 blocks, the last one of 40


def large_parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"large": LARGE, "small": (4095,), "limit": (4096,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def test_8bit_state_takes_two_bytes_a_weight_and_small_tensors_keep_32():
    weights = large_parameters()
    optimizer = Optimizer(weights, adamw(0.1, optimizer_bits=8))
    set_gradients(weights, 0)
    optimizer.step()
    state = optimizer.state_tensors()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in state.items()} == {
        **{f"{key}.large": (torch.uint8, LARGE) for key in ("exp_avg", "exp_avg_sq")},
        **{f"{key}_absmax.large": (torch.float32, (21,)) for key in ("exp_avg", "exp_avg_sq")},
        **{f"{key}.limit": (torch.uint8, (4096,)) for key in ("exp_avg", "exp_avg_sq")},
        **{f"{key}_absmax.limit": (torch.float32, (16,)) for key in ("exp_avg", "exp_avg_sq")},
        **{f"{key}.small": (torch.float32, (4095,)) for key in ("exp_avg", "exp_avg_sq")},
    }
    held = {n: sum(t.nbytes for k, t in state.items() if k.endswith(n)) for n in weights}
    assert held == {"large": 2 * 5160 + 8 * 21, "limit": 2 * 4096 + 8 * 16, "small": 8 * 4095}
    assert held == {n: state_bytes(p.numel(), 8) for n, p in weights.items()}
    assert state_bytes(5160, 32) == 8 * 5160


def test_8bit_steps_stay_near_those_of_32_bits():
    """What the weights moved by: the codes near a value are 1.4 % of it apart at the top."""
    moved = []
    for bits in (32, 8):
        weights = large_parameters()
        before = values(weights)
        optimizer = Optimizer(weights, adamw(0.01, optimizer_bits=bits))
        for i in range(10):
            set_gradients(weights, i % 3)
            optimizer.step()
        moved.append({n: p.detach() - before[n] for n, p in weights.items()})
    assert torch.equal(moved[0]["small"], moved[1]["small"])
    for name in ("large", "limit"):
        error = (moved[0][name] - moved[1][name]).norm() / moved[0][name].norm()
        assert 0 < error < 0.05


def test_8bit_state_continues_bit_for_bit():
    config = adamw(0.05, "cosine", 2, 20, weight_decay=0.01, optimizer_bits=8)
    weights = large_parameters()
    straight = Optimizer(weights, config)
    for i in range(6):
        if i == 3:
            other = {name: nn.Parameter(value) for name, value in values(weights).items()}
            resumed = Optimizer(other, config)
            resumed.load_state_tensors(straight.state_tensors(), straight.step_count)
        set_gradients(weights, i)
        straight.step()
        if i >= 3:
            set_gradients(other, i)
            resumed.step()
    assert all(torch.equal(other[name], p) for name, p in weights.items())
    state = straight.state_tensors()
    assert all(torch.equal(state[name], t) for name, t in resumed.state_tensors().items())


def test_state_of_other_bits_is_refused():
    weights = large_parameters()
    states = {}
    for bits in (8, 32):
        optimizer = Optimizer(weights, adamw(0.1, optimizer_bits=bits))
        set_gradients(weights, 0)
        optimizer.step()
        states[bits] = optimizer.state_tensors()
    for bits, other in ((8, 32), (32, 8)):
        optimizer = Optimizer(weights, adamw(0.1, optimizer_bits=bits))
        with pytest.raises(CheckpointError, match=r"does not fit the model: exp_avg_absmax.large"):
            optimizer.load_state_tensors(states[other], 1)
        assert optimizer.state_tensors() == {}
    wrong = states[8] | {"exp_avg.large": torch.zeros(LARGE)}
    with pytest.raises(CheckpointError, match=r"exp_avg\.large must be torch\.uint8 but is"):
        Optimizer(weights, adamw(optimizer_bits=8)).load_state_tensors(wrong, 1)


def test_8bit_state_is_of_the_cpu_only():
    weights = {"w": nn.Parameter(torch.zeros(3, device="meta"))}  # any device but the CPU
    with pytest.raises(ConfigError) as caught:
        Optimizer(weights, adamw(optimizer_bits=8))
    assert str(caught.value) == (
        "[optimizer] bits must be 32 on 'meta' but is 8: moments of 8 bits are on the CPU only"
    )


def test_torchs_moments_step_save_and_load_like_ours():
    """What runs on a GPU, here on the CPU."""
    config = adamw(0.05, "linear", 2, 20, weight_decay=0.1, max_grad_norm=1.0)
    ours, theirs = parameters(), parameters()
    kernel, plain = Optimizer(ours, config), Optimizer(theirs, config)
    plain._moments = TorchMoments(plain.parameters, config.rule)
    for i in range(6):
        if i == 3:
            state = plain.state_tensors()
            plain = Optimizer(theirs, config)
            plain._moments = TorchMoments(plain.parameters, config.rule)
            plain.load_state_tensors(state, 3)
        for weights, optimizer in ((ours, kernel), (theirs, plain)):
            set_gradients(weights, i)
            result = optimizer.step()
        assert result["grad_norm"] > 1.0
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    with pytest.raises(CheckpointError, match="state does not fit the model"):
        plain.load_state_tensors({}, 1)


# Settings


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *[("learning_rate", v, "finite and >= 0") for v in (-1e-6, math.nan, math.inf, "1")],
        ("schedule", "step", "one of constant, linear, cosine"),
        *[("warmup_steps", v, "an integer >= 0") for v in (-1, 0.5, None)],
        *[
            ("betas", v, "two numbers in [0, 1)")
            for v in ((0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9, ("a", "b"))
        ],
        *[("eps", v, "finite and > 0") for v in (0, -1.0, math.nan, math.inf)],
        *[("weight_decay", v, "finite and >= 0") for v in (-0.1, math.nan, math.inf, None)],
        *[("max_grad_norm", v, "> 0 or None") for v in (0, -1.0, math.nan, "1")],
        *[("optimizer_bits", v, "32 or 8") for v in (16, 0, None, "8")],
    ],
)
def test_settings_name_field_and_value(field, value, rule):
    with pytest.raises(ConfigError) as caught:
        adamw(**{field: value})
    assert str(caught.value) == f"[optimizer] {field} must be {rule} but is {value!r}"


@pytest.mark.parametrize("total_steps", [None, 3, 2, 3.5])
def test_a_schedule_with_an_end_needs_total_steps(total_steps):
    with pytest.raises(ConfigError) as caught:
        adamw(schedule="cosine", warmup_steps=3, total_steps=total_steps)
    assert str(caught.value) == (
        "[optimizer] schedule 'cosine' needs an integer total_steps > warmup_steps (3) "
        f"but total_steps is {total_steps}"
    )
