"""rope against its float64 reference, and its promises: gradient, bits, layouts, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference.rope import rope as reference
from reference.rope import rope_with_gradient
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

F32, BF16 = torch.float32, torch.bfloat16
SIZES = (0, 1, 31, 32, 33, 111, 4099)
HEAD_DIMS = (2, 4, 6, 30, 32, 34, 62, 64, 80, 128, 130, 256)
DTYPES = [(x, y) for x in (F32, BF16) for y in (F32, BF16)]
NAMES = {F32: "f32", BF16: "bf16"}
P = 50


def make(
    T: int, heads: int, head_dim: int, dtypes: tuple[torch.dtype, ...] = (F32, F32), seed: int = 0
) -> tuple[Tensor, ...]:
    """x (T, heads, head_dim), cos, sin (P, head_dim / 2), positions (T,), dy like x."""
    rng = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(T, heads, head_dim, generator=rng) * 2.0 for _ in range(2))
    angles = torch.rand(P, head_dim // 2, generator=rng) * 100.0
    positions = torch.randint(0, P, (T,), generator=rng)
    return x.to(dtypes[0]), angles.cos() * 1.1, angles.sin() * 1.1, positions, dy.to(dtypes[1])


def run(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """(y, dx) through autograd; dy has the dtype wanted of y."""
    x = x.detach().requires_grad_()
    y = pe.ops.rope(x, cos, sin, positions, out_dtype=dy.dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx


def check(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, dy: Tensor) -> None:
    results = run(x, cos, sin, positions, dy)
    exact = rope_with_gradient(x, cos, sin, positions, dy)
    plain = rope_with_gradient(x, cos, sin, positions, dy, dtype=F32)
    dtypes = (dy.dtype, x.dtype)
    for name, got, want, torch_has, dtype in zip(
        ("y", "dx"), results, exact, plain, dtypes, strict=True
    ):
        assert got.dtype == dtype
        check_budget(got, torch_has.to(dtype), want, name)
        # Nothing is fused, so every instruction set has the bits of the formula in float32.
        assert torch.equal(got, torch_has.to(dtype)), name


@pytest.mark.parametrize("T", SIZES)
def test_rows(T: int, isa: str) -> None:
    check(*make(T, 3, 34))


@pytest.mark.parametrize("heads", [0, 1, 2, 9, 33])
def test_heads(heads: int, isa: str) -> None:
    check(*make(17, heads, 34))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(NAMES[t] for t in d))
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims_and_dtypes(head_dim: int, dtypes: tuple[torch.dtype, ...], isa: str) -> None:
    check(*make(5, 3, head_dim, dtypes))


def test_value_by_hand() -> None:
    """(3, 4) turned by 90 degrees is (-4, 3); by 0 it stays; back by 90 it is (4, -3)."""
    cos, sin = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    x = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    positions = torch.tensor([1, 0])
    y = pe.ops.rope(x, cos, sin, positions)
    assert y.tolist() == [[[-4.0, 3.0]], [[3.0, 4.0]]]
    back = torch.empty_like(x)
    _C.rope(x, cos, sin, positions, back, True)
    assert back.tolist() == [[[4.0, -3.0]], [[3.0, 4.0]]]


def test_scores_depend_on_the_distance_alone() -> None:
    """q at position m times k at position n is the same for equal m - n: the point of rotating."""
    angles = torch.arange(32)[:, None] * 10.0 ** -torch.linspace(0, 4, 32)
    cos, sin = angles.cos(), angles.sin()
    q_and_k, *_ = make(2, 1, 64)

    def score(m: int, n: int) -> float:
        turned = pe.ops.rope(q_and_k, cos, sin, torch.tensor([m, n]))
        return float((turned[0] * turned[1]).sum())

    for m, n in ((7, 3), (20, 16), (31, 27)):
        assert math.isclose(score(m, n), score(4, 0), rel_tol=1e-4), (m, n)
    assert not math.isclose(score(7, 4), score(4, 0), rel_tol=1e-2)


def test_inverse_turns_back(isa: str) -> None:
    x, cos, sin, positions, _ = make(33, 3, 34)
    cos, sin = cos / 1.1, sin / 1.1
    y, back = torch.empty_like(x), torch.empty_like(x)
    _C.rope(x, cos, sin, positions, y, False)
    _C.rope(y, cos, sin, positions, back, True)
    torch.testing.assert_close(back, x, rtol=0, atol=4e-6)
    negated = torch.empty_like(x)
    _C.rope(y, cos, -sin, positions, negated, False)
    assert torch.equal(back, negated)


def test_extreme_values(isa: str) -> None:
    """An infinity or NaN spoils its own pair only; tiny and huge values stay exact."""
    x, cos, sin, positions, _ = make(4, 2, 34)
    x[0] *= 1e-38
    x[1] *= 1e37
    clean = pe.ops.rope(x, cos, sin, positions)
    assert torch.equal(clean, reference(x, cos, sin, positions))
    x[2, 0, 5], x[3, 1, 20] = float("inf"), float("nan")
    y = pe.ops.rope(x, cos, sin, positions)
    spoiled = {(2, 0, 5), (2, 0, 22), (3, 1, 3), (3, 1, 20)}
    assert {tuple(i) for i in (~y.isfinite()).nonzero().tolist()} == spoiled
    assert torch.equal(y[y.isfinite()], clean[y.isfinite()])


def test_finite_differences() -> None:
    """d loss along a random direction, from the float64 reference, equals our gradient along it."""
    x, cos, sin, positions, dy = make(7, 3, 34)
    _, dx = run(x, cos, sin, positions, dy)
    rng = torch.Generator().manual_seed(1)
    step = 1e-6
    for _ in range(8):
        u = torch.randn(dx.shape, generator=rng, dtype=torch.float64)

        def loss(h: float, u: Tensor = u) -> Tensor:
            moved = reference(x.double() + h * u, cos.double(), sin.double(), positions)
            return (moved * dy.double()).sum()

        slope = float(loss(step) - loss(-step)) / (2 * step)
        scale = float((dx.double() * u).abs().sum())
        assert abs(float((dx.double() * u).sum()) - slope) <= FINITE_DIFFERENCE_RTOL * scale


def test_second_derivative() -> None:
    """y is linear in x: the gradient of the gradient along v is v turned."""
    x, cos, sin, positions, dy = make(5, 2, 34)
    x.requires_grad_()
    dy.requires_grad_()
    (dx,) = torch.autograd.grad(pe.ops.rope(x, cos, sin, positions), x, dy, create_graph=True)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    (ddy,) = torch.autograd.grad(dx, dy, v)
    assert torch.equal(ddy, pe.ops.rope(v, cos, sin, positions))


def test_gradient_that_is_broadcast() -> None:
    """y.sum() sends back a gradient of stride 0."""
    x, cos, sin, positions, _ = make(5, 2, 34)
    x.requires_grad_()
    pe.ops.rope(x, cos, sin, positions).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, run(x, cos, sin, positions, torch.ones(5, 2, 34))[1])


def test_without_gradients_the_same_bits_and_no_graph() -> None:
    x, cos, sin, positions, dy = make(5, 2, 34)
    y, _ = run(x, cos, sin, positions, dy)
    x.requires_grad_()
    with torch.no_grad():
        plain = pe.ops.rope(x, cos, sin, positions)
    assert not plain.requires_grad
    assert torch.equal(plain, y)


LAYOUTS = {
    "q of a fused qkv": lambda x: torch.cat([x, x, x], 1)[:, : x.shape[1]],
    "k of a fused qkv": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "heads first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "heads apart": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    x, cos, sin, positions, dy = make(33, 3, 34)
    want = run(x, cos, sin, positions, dy)
    strided, strided_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    assert not strided.is_contiguous()
    assert torch.equal(strided, x)
    got = run(strided, cos, sin, positions, strided_dy)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_rows_of_the_tables_may_be_apart() -> None:
    x, cos, sin, positions, _ = make(9, 3, 34)
    both = torch.cat([cos, sin], 1)
    y = pe.ops.rope(x, both[:, :17], both[:, 17:], positions)
    assert torch.equal(y, pe.ops.rope(x, cos, sin, positions))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_y_may_be_x(dtype: torch.dtype, isa: str) -> None:
    for head_dim in (2, 34, 64):
        x, cos, sin, positions, dy = make(33, 3, head_dim, (dtype, dtype))
        y, _ = run(x, cos, sin, positions, dy)
        fused = torch.cat([x, x], 1)
        untouched = fused.clone()
        _C.rope(fused[:, :3], cos, sin, positions, fused[:, :3], False)
        assert torch.equal(fused[:, :3], y)
        assert torch.equal(fused[:, 3:], untouched[:, 3:])


def test_a_row_does_not_know_its_batch(isa: str) -> None:
    x, cos, sin, positions, dy = make(111, 3, 34)
    y, dx = run(x, cos, sin, positions, dy)
    for row in (0, 15, 16, 110):
        one = slice(row, row + 1)
        alone = run(x[one], cos, sin, positions[one], dy[one])
        assert torch.equal(alone[0][0], y[row])
        assert torch.equal(alone[1][0], dx[row])


def test_repeat_is_bitwise(isa: str) -> None:
    inputs = make(111, 3, 34, (BF16, F32))
    first = run(*inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), first, strict=True))


@pytest.mark.parametrize("shape", [(4099, 3, 6), (17, 33, 64), (1, 3, 34)])
def test_threads_change_nothing(shape: tuple[int, int, int], restore_threads: None) -> None:
    inputs = make(*shape)
    pe.set_num_threads(1)
    one = run(*inputs)
    for n in (2, 3):
        pe.set_num_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), one, strict=True)), n


def test_every_instruction_set_agrees_bitwise(restore_isa: None) -> None:
    inputs = make(33, 3, 34, (BF16, F32))
    results = []
    for name in _C.available_isas():
        _C.set_isa(name)
        results.append(run(*inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(*make(9, 3, 34, (BF16, F32)))


def test_opcheck() -> None:
    x, cos, sin, positions, _ = make(5, 2, 34)
    args = (x.requires_grad_(), cos, sin, positions, BF16, False)
    torch.library.opcheck(torch.ops.pyengine.rope.default, args)


@pytest.mark.parametrize("out_dtype", [None, BF16])
def test_compiled_equals_eager(out_dtype: torch.dtype | None) -> None:
    x, cos, sin, positions, dy = make(6, 2, 34)

    def layer(x: Tensor) -> Tensor:
        return pe.ops.rope(x * 2.0, cos, sin, positions, out_dtype).float() * 3.0

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for f in (layer, compiled):
        a = x.detach().requires_grad_()
        y = f(a)
        results.append((y.detach(), *torch.autograd.grad(y, a, dy)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


# What bad arguments get. x (4, 3, 8), tables (20, 4).


def good() -> dict[str, Any]:
    zeros = torch.zeros
    tables = {"cos": zeros(20, 4), "sin": zeros(20, 4)}
    return {"x": zeros(4, 3, 8), **tables, "positions": torch.arange(4), "y": zeros(4, 3, 8)}


def refuses(error: type[Exception], message: str, **changes: Any) -> None:
    with pytest.raises(error) as caught:
        _C.rope(**{**good(), "inverse": False, **changes})
    assert type(caught.value) is error
    assert str(caught.value) == f"[rope] {message}"


@pytest.mark.parametrize("name", good())
def test_not_a_tensor_is_refused(name: str, reading: str) -> None:
    for value, kind in ((None, "NoneType"), ([1.0], "list")):
        refuses(TypeError, f"{name} must be a torch.Tensor but is {kind}", **{name: value})


@pytest.mark.parametrize("name", good())
def test_other_dtypes_are_refused(name: str) -> None:
    allowed = {"cos": "float32", "sin": "float32", "positions": "int64"}
    wanted = allowed.get(name, "float32 or bfloat16")
    value = good()[name].to(torch.float64)
    refuses(TypeError, f"{name} must be {wanted} but is float64", **{name: value})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (4, 24), "have shape (T, heads, head_dim) but got (4, 24)"),
        ("x", (4, 3, 7), "have an even head_dim >= 2 but got shape (4, 3, 7)"),
        ("x", (4, 3, 0), "have an even head_dim >= 2 but got shape (4, 3, 0)"),
        ("cos", (80,), "have shape (P, head_dim / 2) but got (80,)"),
        ("cos", (20, 8), "have shape (P, head_dim / 2) = (20, 4) but got (20, 8)"),
        ("sin", (19, 4), "have shape (P, head_dim / 2) = (20, 4) but got (19, 4)"),
        ("y", (4, 8, 3), "have shape (T, heads, head_dim) = (4, 3, 8) but got (4, 8, 3)"),
    ],
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    refuses(ValueError, f"{name} must {message}", **{name: torch.zeros(shape)})


def test_other_numbers_of_positions_are_refused() -> None:
    message = "positions must have shape (T,) = (4,) but got (5,)"
    refuses(ValueError, message, positions=torch.arange(5))


@pytest.mark.parametrize("bad", [20, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("index", [0, 3])
def test_positions_outside_the_tables_are_refused(index: int, bad: int) -> None:
    positions = torch.arange(4)
    positions[index] = bad
    message = f"positions must be in [0, 20) but positions[{index}] = {bad}"
    refuses(ValueError, message, positions=positions)


@pytest.mark.parametrize("name", ["x", "y"])
def test_layouts_that_are_refused(name: str) -> None:
    message = f"{name} must have a contiguous last dimension but its stride is 3"
    refuses(ValueError, message, **{name: torch.zeros(4, 8, 3).transpose(1, 2)})
    message = f"{name} must have its heads side by side, 8 apart, but their stride is 16"
    refuses(ValueError, message, **{name: torch.zeros(4, 6, 8)[:, ::2]})


@pytest.mark.parametrize("name", ["cos", "sin"])
def test_layouts_of_tables_that_are_refused(name: str) -> None:
    message = f"{name} must have a contiguous last dimension but its stride is 20"
    refuses(ValueError, message, **{name: torch.zeros(4, 20).T})


def test_layout_of_positions_that_is_refused() -> None:
    message = "positions must be contiguous but its stride is 2"
    refuses(ValueError, message, positions=torch.arange(8)[::2])


def test_python_raises_the_same_errors() -> None:
    x, cos, sin, positions, _ = make(4, 3, 8)
    with pytest.raises(ValueError, match=r"\[rope\] x must have shape \(T, heads, head_dim\)"):
        pe.ops.rope(x.view(4, 24), cos, sin, positions)
    with pytest.raises(ValueError, match=r"\[rope\] positions must be in \[0, 50\) but positions"):
        pe.ops.rope(x.requires_grad_(), cos, sin, positions + 50)
