"""adamw against its float64 reference and torch's fused AdamW: values, bits, 8 bits, checks."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import pytest
import torch
from reference.adamw import adamw as reference
from reference.adamw import dequantise, quantise, values
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import Moment8bit, adamw, adamw_grad_norm, adamw_steps
from pyengine.ops.adamw import SQUARES_PARTS

SIZES = (0, 1, 31, 32, 33, 111, 4099)
EIGHT_BIT_SIZES = (0, 1, 255, 256, 257, 4099)
HYPER: dict[str, Any] = {"step": 3, "lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6}
HYPER |= {"weight_decay": 0.1, "grad_scale": 0.7}


def make(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """param, grad, exp_avg, exp_avg_sq (n,)."""
    rng = torch.Generator().manual_seed(seed)
    param, grad, m, v = (torch.randn(n, generator=rng) for _ in range(4))
    return param, 0.1 * grad, 0.1 * m, 0.01 * v.square()


def make_8bit(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Moment8bit, Moment8bit]:
    param, grad, m, v = make(n, seed)
    return param, grad, Moment8bit(*quantise(m, True)), Moment8bit(*quantise(v, False))


def run(*tensors: Tensor, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(param, exp_avg, exp_avg_sq) after a step on copies."""
    param, grad, m, v = (t.clone() for t in tensors)
    adamw(param, grad, m, v, **(HYPER | changes))
    assert torch.equal(grad, tensors[1])
    return param, m, v


def run_8bit(
    param: Tensor, grad: Tensor, m: Moment8bit, v: Moment8bit, **changes: Any
) -> tuple[Tensor, ...]:
    """(param, m's codes and absmax, v's) after a step on copies."""
    param, m, v = param.clone(), *(Moment8bit(*(t.clone() for t in x)) for x in (m, v))
    adamw(param, grad, m, v, **(HYPER | changes))
    return param, *m, *v


def check(*tensors: Tensor, **changes: Any) -> None:
    hyper = HYPER | changes
    ours = run(*tensors, **hyper)
    exact = reference(*(t.double() for t in tensors), **hyper)
    plain = reference(*tensors, **hyper)
    for name, got, has, want in zip(("p", "m", "v"), ours, plain, exact, strict=True):
        check_budget(got, has, want, name)


@pytest.mark.parametrize("n", SIZES)
def test_sizes(n: int, isa: str) -> None:
    check(*make(n))


@pytest.mark.parametrize(
    "changes",
    [
        *({"step": t} for t in (1, 2, 1000, 10**6)),
        *({"betas": b} for b in ((0.0, 0.0), (0.3, 0.5), (0.5, 0.999), (0.95, 0.9))),
        {"eps": 1e-12},
        {"eps": 1.0},
        {"weight_decay": 0.0},
        {"lr": 0.0},
        *({"grad_scale": s} for s in (0.0, 1.0, 1e-3)),
    ],
    ids=str,
)
def test_hyperparameters(changes: dict[str, Any], isa: str) -> None:
    check(*make(111), **changes)


def test_step_by_hand() -> None:
    """m = .5 * 2 + .5 * 4 = 3, v = .75 * 4 + .25 * 16 = 7; at step 1 m / .5 = 6, v / .25 = 28;
    p = 10 - .1 * .2 * 10 - .1 * 6 / (sqrt(28) + 1)
    """
    param, grad, m, v = (torch.tensor([x]) for x in (10.0, 8.0, 2.0, 4.0))
    hyper = {"step": 1, "lr": 0.1, "betas": (0.5, 0.75), "eps": 1.0, "weight_decay": 0.2}
    adamw(param, grad, m, v, **hyper, grad_scale=0.5)
    assert (m.item(), v.item()) == (3.0, 7.0)
    assert param.item() == pytest.approx(9.8 - 0.6 / (28**0.5 + 1), rel=1e-7)


@pytest.mark.parametrize("n", [1, 33, 4099])
def test_twenty_steps_of_torch(n: int, isa: str) -> None:
    """With decay, clipping and a schedule of the rate: float rounding apart from torch's."""
    ours, *_ = make(n)
    theirs = torch.nn.Parameter(ours.clone())
    m, v = torch.zeros(n), torch.zeros(n)
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    adam = torch.optim.AdamW([theirs], lr=1.0, fused=True, **options)
    for step in range(1, 21):
        lr = 1e-2 * step / 20
        grad = make(n, seed=step)[1] * step
        norm = adamw_grad_norm([grad])
        scale = min(1.0, 0.3 / norm)
        adamw(ours, grad, m, v, step=step, lr=lr, grad_scale=scale, **options)
        theirs.grad = grad * scale
        adam.param_groups[0]["lr"] = lr
        adam.step()
    state = adam.state[theirs]
    # m passes through 0, where rounding is of the size of what it was before.
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(m, state["exp_avg"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(v, state["exp_avg_sq"], rtol=2e-6, atol=0)


@pytest.mark.parametrize("step", [run, run_8bit])
def test_a_gradient_of_zero_only_decays(step: Any) -> None:
    param = make(257)[0]
    zero = torch.zeros(257)
    moments = (zero, zero) if step is run else [Moment8bit.zeros_like(param)] * 2
    after = step(param, zero, *moments, lr=0.5, weight_decay=0.5)
    assert torch.equal(after[0], param * 0.75)


# Bits


@pytest.mark.parametrize(("of", "step"), [(make, run), (make_8bit, run_8bit)])
@pytest.mark.parametrize("n", [33, 16384, 70001])
def test_threads_change_nothing(of: Any, step: Any, n: int, restore_threads: None) -> None:
    inputs = of(n)
    pe.set_num_threads(1)
    one, norm = step(*inputs), adamw_grad_norm([inputs[1]])
    for threads in (2, 3):
        pe.set_num_threads(threads)
        again = step(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(again, one, strict=True)), threads
        assert adamw_grad_norm([inputs[1]]) == norm


@pytest.mark.parametrize(("of", "step"), [(make, run), (make_8bit, run_8bit)])
def test_instruction_sets_with_fma_agree_bitwise(of: Any, step: Any, restore_isa: None) -> None:
    inputs = of(4099)
    results = []
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results.append(step(*inputs))
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("n", "cut"), [(111, 16), (111, 50), (4099, 4096)])
def test_an_element_does_not_know_its_neighbours(n: int, cut: int, isa: str) -> None:
    tensors = make(n)
    whole = run(*tensors)
    for part in (slice(0, cut), slice(cut, n)):
        alone = run(*(t[part] for t in tensors))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, whole, strict=True))


# The norm


@pytest.mark.parametrize("n", SIZES)
def test_grad_norm(n: int, isa: str) -> None:
    """Squares are exact in float64: what is left are n roundings of 1e-16."""
    grads = [make(n, seed)[1].view(1, n) for seed in range(3)]
    exact = math.sqrt(math.fsum(x * x for g in grads for x in g.flatten().tolist()))
    assert adamw_grad_norm(grads) == pytest.approx(exact, rel=1e-14)


def test_grad_norm_has_the_same_bits_on_every_instruction_set(restore_isa: None) -> None:
    grads = [make(n, n)[1] for n in (70001, 33, 4099)]
    norms = set()
    for name in _C.available_isas():
        _C.set_isa(name)
        norms.add(adamw_grad_norm(grads))
    assert len(norms) == 1


def test_grad_norm_of_large_and_of_no_finite_gradients() -> None:
    assert adamw_grad_norm([torch.full((4,), 3e38)]) == pytest.approx(6e38)
    assert adamw_grad_norm([]) == 0.0
    for bad in (math.inf, -math.inf):
        assert adamw_grad_norm([torch.tensor([1.0, bad])]) == math.inf
    assert math.isnan(adamw_grad_norm([torch.zeros(3), torch.tensor([math.inf, math.nan])]))


# 8-bit moments


def test_the_256_values() -> None:
    """arXiv:2110.02861: seven decades, 0 and 1, half of the signed ones negative."""
    signed, unsigned = values(True), values(False)
    assert len(set(signed.tolist())) == len(set(unsigned.tolist())) == 256
    assert (signed[0] < 0, signed[127], signed[255]) == (True, 0.0, 1.0)
    assert torch.equal(signed[:127], -signed[128:255].flip(0))
    assert (unsigned[0], unsigned[255]) == (0.0, 1.0)
    assert unsigned[1].item() == pytest.approx(0.325e-6)
    assert signed[128].item() == pytest.approx(0.55e-6)


PATTERNS = {
    "normal": lambda rng, n: torch.randn(n, generator=rng),
    "seven decades": lambda rng, n: (
        torch.randn(n, generator=rng).sign() * 10 ** (-8 * torch.rand(n, generator=rng))
    ),
    "tiny": lambda rng, n: 1e-19 * torch.randn(n, generator=rng),
    "sparse": lambda rng, n: torch.randn(n, generator=rng) * (torch.rand(n, generator=rng) < 0.02),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("n", EIGHT_BIT_SIZES)
def test_codes_are_the_nearest(pattern: str, n: int, isa: str) -> None:
    """With both betas 0 the moments are g and g^2: every code against the reference."""
    grad = PATTERNS[pattern](torch.Generator().manual_seed(n), n)
    zero = torch.zeros(n)
    m, v = Moment8bit.zeros_like(zero), Moment8bit.zeros_like(zero)
    adamw(zero, grad, m, v, step=1, lr=0.1, betas=(0.0, 0.0))
    for moment, x, signed in ((m, grad, True), (v, grad * grad, False)):
        codes, absmax = quantise(x, signed)
        assert torch.equal(moment.absmax, absmax)
        assert torch.equal(moment.codes, codes)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_beside_every_threshold(signed: bool, isa: str) -> None:
    """The floats below, at and above each middle of two values; 1 in each block makes absmax 1."""
    table = values(signed)
    middle = ((table[:-1].double() + table[1:].double()) / 2).float()
    inf = torch.tensor(torch.inf)
    x = torch.cat([table, middle, torch.nextafter(middle, inf), torch.nextafter(middle, -inf)])
    x = torch.cat([torch.ones(1), x]) if signed else torch.cat([torch.ones(1), x[x >= 0]])
    rows = torch.nn.functional.pad(x, (0, -x.numel() % 255)).view(-1, 255)
    x = torch.cat([torch.ones(len(rows), 1), rows], 1).flatten()
    param, zero = torch.zeros_like(x), torch.zeros_like(x)
    if signed:
        m, v = Moment8bit.zeros_like(x), Moment8bit.zeros_like(x)
        adamw(param, x, m, v, step=1, lr=0.1, betas=(0.0, 0.0))
        assert torch.equal(m.codes, quantise(x, True)[0])
        return
    # Of v, whose squares round: those within the spacing of float32 around a threshold.
    root = x.sqrt()
    m, v = Moment8bit.zeros_like(x), Moment8bit.zeros_like(x)
    adamw(param, root, m, v, step=1, lr=0.1, betas=(0.0, 0.0))
    assert torch.equal(v.codes, quantise(root * root, False)[0])
    assert torch.equal(zero, torch.zeros_like(x))


def test_every_code_stands_for_its_value(isa: str) -> None:
    """v = 0, eps = 1, g = 0, b1 = 1/2: p moves by -m exactly. Then v halves, m = g."""
    codes = torch.arange(256, dtype=torch.uint8)
    for scale in (1.0, 3.7e-5):
        absmax = torch.tensor([scale])
        param, zero = torch.zeros(256), torch.zeros(256)
        m, v = Moment8bit(codes.clone(), absmax.clone()), Moment8bit.zeros_like(zero)
        adamw(param, zero, m, v, step=1, lr=1.0, betas=(0.5, 0.5), eps=1.0)
        assert torch.equal(param, -dequantise(codes, absmax, True))
        assert torch.equal(m.codes, codes)
        assert torch.equal(m.absmax, absmax / 2)
        m, v = Moment8bit.zeros_like(zero), Moment8bit(codes.clone(), absmax.clone())
        param, grad = torch.zeros(256), torch.full((256,), 1e-9)
        adamw(param, grad, m, v, step=1, lr=1.0, betas=(0.0, 0.5), eps=1e-9)
        want = reference(
            *(t.double() for t in (zero, grad, zero, dequantise(codes, absmax, False))),
            **{"step": 1, "lr": 1.0, "betas": (0.0, 0.5), "eps": 1e-9, "weight_decay": 0.0},
        )[0]
        torch.testing.assert_close(param.double(), want, rtol=1e-6, atol=0)
        assert torch.equal(v.codes, codes.clamp(min=1))  # 0 is g^2 / 2 now


@pytest.mark.parametrize("n", EIGHT_BIT_SIZES)
def test_8bit_step(n: int, isa: str) -> None:
    """The parameter moves as by the float64 step from the values that the codes stand for."""
    param, grad, m, v = make_8bit(n)
    after = run_8bit(param, grad, m, v)
    start = (param, grad, dequantise(*m, True), dequantise(*v, False))
    exact = reference(*(t.double() for t in start), **HYPER)
    plain = reference(*start, **HYPER)
    check_budget(after[0], plain[0], exact[0], "p")
    for moment, want, signed in ((after[1:3], plain[1], True), (after[3:5], plain[2], False)):
        codes, absmax = quantise(want, signed)
        torch.testing.assert_close(moment[1], absmax, rtol=1e-6, atol=0)
        # A float rounding may pass a middle.
        assert bool(((moment[0].int() - codes.int()).abs() <= 1).all())
        assert float((moment[0] != codes).float().sum()) <= 0.01 * n


def test_a_second_moment_never_becomes_zero() -> None:
    """Beside a gradient of 1, one of 1e-4 has v = 1e-8 of the largest: below every value but 0. As
    0 it would make the next step, of gradient 0, as large as 0.09 lr 1e-4 / eps.
    """
    param, grad = torch.zeros(256), torch.full((256,), 1e-4)
    grad[0] = 1.0
    m, v = Moment8bit.zeros_like(param), Moment8bit.zeros_like(param)
    hyper = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    adamw(param, grad, m, v, step=1, **hyper)
    assert bool((v.codes[1:] == 1).all())
    before = param.clone()
    adamw(param, torch.zeros(256), m, v, step=2, **hyper)
    assert float((param - before).abs().max()) < 1e-3


def test_moments_that_overflow_stay_in_their_place() -> None:
    """v = inf for one element: its block stays free of NaN."""
    param, grad = torch.zeros(256), torch.ones(256)
    grad[3] = 1e30
    m, v = Moment8bit.zeros_like(param), Moment8bit.zeros_like(param)
    for step in (1, 2):
        adamw(param, grad, m, v, step=step, lr=1e-3)
    assert bool(param.isfinite().all())
    assert bool(v.absmax.isfinite().all())


def test_8bit_converges_like_32bit() -> None:
    """Logistic regression, 200 steps: the loss of 8 bits is within 2 percent of that of 32 bits."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, 300, generator=rng) * torch.logspace(-1, 1, 300)
    y = (x @ torch.randn(300, generator=rng) + torch.randn(512, generator=rng) > 0).float()
    losses = []
    for eight_bit in (False, True):
        w = torch.zeros(300)
        m, v = (Moment8bit.zeros_like(w) if eight_bit else torch.zeros(300) for _ in range(2))
        for step in range(1, 201):
            grad = x.T @ ((x @ w).sigmoid() - y) / 512
            adamw(w, grad, m, v, step=step, lr=1e-3)
        losses.append(torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y).item())
    assert losses[0] < 0.3 * math.log(2)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_8bit_moments_take_two_bytes_and_a_block_eight() -> None:
    param = torch.zeros(100, 300)
    held = sum(t.nbytes for _ in range(2) for t in Moment8bit.zeros_like(param))
    assert held == 2 * 30000 + 8 * math.ceil(30000 / 256)


# What bad arguments get


def good() -> dict[str, Any]:
    return dict(zip(("param", "grad", "exp_avg", "exp_avg_sq"), make(6), strict=True)) | HYPER


def good_8bit() -> dict[str, Any]:
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    return dict(zip(names, make_8bit(300), strict=True)) | HYPER


@pytest.mark.parametrize("name", ["param", "grad", "exp_avg", "exp_avg_sq"])
def test_tensors_are_checked(name: str, reading: str) -> None:
    others = (
        (TypeError, None, "must be a torch.Tensor but is NoneType"),
        (TypeError, torch.zeros(6).double(), "must be float32 but is float64"),
        (
            ValueError,
            torch.zeros(6, 2)[:, 0],
            "must be contiguous but its stride in dimension 0 is 2",
        ),
    )
    for error, bad, message in others:
        arguments = {k: v for k, v in good().items() if k != "betas"}
        with pytest.raises(error) as caught:
            _C.adamw_step(**(arguments | {"beta1": 0.9, "beta2": 0.9, name: bad}))
        assert str(caught.value) == f"[adamw] {name} {message}"
    if name != "param":
        with pytest.raises(ValueError, match="must") as caught:
            adamw(**(good() | {name: torch.zeros(2, 3)}))
        message = "must have the shape of param (6,) but got (2, 3)"
        assert str(caught.value) == f"[adamw] {name} {message}"


def test_8bit_tensors_are_checked(reading: str) -> None:
    codes, absmax = good_8bit()["exp_avg"]
    cases = [
        ("", TypeError, Moment8bit(codes.int(), absmax), "must be uint8 but is int32"),
        ("", ValueError, Moment8bit(codes[:5], absmax),
         "must have the shape of param (300,) but got (5,)"),
        ("_absmax", ValueError, Moment8bit(codes, absmax[:1]),
         "must have shape (ceil(n/256),) = (2,) but got (1,)"),
        ("_absmax", TypeError, Moment8bit(codes, absmax.double()),
         "must be float32 but is float64"),
    ]  # fmt: skip
    for name in ("exp_avg", "exp_avg_sq"):
        for suffix, error, bad, message in cases:
            with pytest.raises(error) as caught:
                adamw(**(good_8bit() | {name: bad}))
            assert str(caught.value) == f"[adamw] {name}{suffix} {message}"
        with pytest.raises(TypeError, match="must both be tensors or both be Moment8bit"):
            adamw(**(good_8bit() | {name: torch.zeros(300)}))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("step", 0, ">= 1"),
        *[("lr", x, "finite and >= 0") for x in (-1.0, math.nan, math.inf)],
        *[("betas", (x, 0.9), "beta1 must be in [0, 1)") for x in (-0.5, 1.0, math.nan)],
        *[("betas", (0.9, x), "beta2 must be in [0, 1)") for x in (-0.5, 1.0, math.nan)],
        *[("eps", x, "finite and > 0") for x in (0.0, -1.0, math.nan, math.inf)],
        *[("weight_decay", x, "finite and >= 0") for x in (-1.0, math.nan)],
        *[("grad_scale", x, "finite and >= 0") for x in (-1.0, math.nan, math.inf)],
    ],
)
def test_numbers_are_checked(name: str, value: Any, rule: str) -> None:
    text = rule if name == "betas" else f"{name} must be {rule}"
    for arguments in (good(), good_8bit()):
        with pytest.raises(ValueError, match="must") as caught:
            adamw(**(arguments | {name: value}))
        assert str(caught.value).startswith(f"[adamw] {text} but is ")


def test_gradients_of_the_norm_are_checked() -> None:
    with pytest.raises(TypeError, match=r"^\[adamw\] grad must be float32 but is bfloat16$"):
        adamw_grad_norm([torch.zeros(3), torch.zeros(3).bfloat16()])
    with pytest.raises(ValueError, match=r"^\[adamw\] grad must be contiguous but its stride"):
        adamw_grad_norm([torch.zeros(3, 3).T])


def test_a_step_is_seen_by_the_version_counter() -> None:
    for arguments in (good(), good_8bit()):
        moments = [arguments["exp_avg"], arguments["exp_avg_sq"]]
        written = [arguments["param"]]
        for moment in moments:
            written += moment if isinstance(moment, Moment8bit) else [moment]
        before = [t._version for t in written]
        adamw(**arguments)
        assert all(t._version > b for t, b in zip(written, before, strict=True))


# Many tensors in one call


def test_many_tensors_in_one_call_have_the_bits_of_each_alone() -> None:
    wide, narrow = make(111), make_8bit(4099, 1)
    alone = run(*wide), run_8bit(*narrow)
    p, g, m, v = (t.clone() for t in wide)
    p8, g8 = narrow[0].clone(), narrow[1]
    m8, v8 = (Moment8bit(*(t.clone() for t in x)) for x in narrow[2:])
    adamw_steps([(p, g, m, v), (p8, g8, m8, v8)], **HYPER)()
    assert all(map(torch.equal, (p, m, v), alone[0]))
    assert all(map(torch.equal, (p8, *m8, *v8), alone[1]))


def test_nothing_is_written_where_one_of_many_tensors_is_refused() -> None:
    p, g, m, v = make(33)
    before = p.clone()
    with pytest.raises(
        ValueError, match=r"^\[adamw\] exp_avg must have the shape of param \(33,\)"
    ):
        adamw_steps([(p, g, m, v), (p, g, m[:5], v)], **HYPER)()
    with pytest.raises(ValueError, match=r"^\[adamw\] an entry must be 4 or 6 tensors but is 3"):
        _C.adamw_steps([(p, g, m, v), (p, g, m)], 1, 0.1, 0.9, 0.9, 1e-8, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"^\[adamw\] step must be >= 1 but is 0"):
        adamw_steps([(p, g, m, v)], **(HYPER | {"step": 0}))()
    assert torch.equal(p, before)


# A GPU


def test_parts_of_the_norm_add_up_to_its_bits() -> None:
    grads = [make(n, n)[1] for n in (0, 33, 70001)]
    parts = torch.empty(3, SQUARES_PARTS, dtype=torch.float64)
    _C.adamw_square_parts(grads, parts)
    total = reduce(operator.add, parts.flatten().tolist(), 0.0)
    assert total == _C.adamw_sum_squares(grads)
    with pytest.raises(ValueError, match=r"^\[adamw\] parts must have shape \(gradients, 64\) = "):
        _C.adamw_square_parts(grads, parts[:2])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [*EIGHT_BIT_SIZES, 300_001])
def test_cuda_gives_the_bits_of_the_cpu(n: int) -> None:
    wide, (p, g, m, v) = make(n), make_8bit(n)
    there = [t.cuda() for t in wide]
    narrow = p.cuda(), g.cuda(), *(Moment8bit(*(t.cuda() for t in x)) for x in (m, v))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(run(*there), run(*wide), strict=True))
    results = zip(run_8bit(*narrow), run_8bit(p, g, m, v), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in results)
    assert adamw_grad_norm([there[1], narrow[1]]) == adamw_grad_norm([wide[1], g])
    with pytest.raises(ValueError, match=r"^\[adamw\] grad must be on cuda:0 like param but is on"):
        run(there[0], wide[1], *there[2:])
