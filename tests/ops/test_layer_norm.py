"""layer_norm against its float64 reference, and its promises: gradient, bits, layouts, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.layer_norm import layer_norm as reference
from reference.layer_norm import layer_norm_with_gradients, parameters_in_row_order
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

EPS = 1e-5
F32, BF16 = torch.float32, torch.bfloat16
SIZES = (0, 1, 31, 32, 33, 111, 4099)
DTYPES = [(x, w, b, y) for x in (F32, BF16) for w in (F32, BF16) for b in (F32, BF16)
          for y in (F32, BF16)]  # fmt: skip
NAMES = {F32: "f32", BF16: "bf16"}
MIXED = (BF16, F32, BF16, F32)


def make(
    N: int, D: int, dtypes: tuple[torch.dtype, ...] = (F32,) * 4, seed: int = 0
) -> tuple[Tensor, ...]:
    """x (N, D), weight, bias (D,), dy (N, D)."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=rng) * 2.0 + 1.0
    weight = 1.0 + 0.3 * torch.randn(D, generator=rng)
    bias = 0.5 * torch.randn(D, generator=rng)
    dy = torch.randn(N, D, generator=rng)
    return x.to(dtypes[0]), weight.to(dtypes[1]), bias.to(dtypes[2]), dy.to(dtypes[3])


def run(
    x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, eps: float = EPS
) -> tuple[Tensor, ...]:
    """(y, dx, dweight, dbias) through autograd; dy has the dtype wanted of y."""
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = pe.ops.layer_norm(x, weight, bias, eps, out_dtype=dy.dtype)
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)


def check(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, eps: float = EPS) -> None:
    results = run(x, weight, bias, dy, eps)
    exact = layer_norm_with_gradients(x, weight, bias, eps, dy)
    # torch in float32, rounded once to the dtype of the result: as good as that dtype gets.
    plain_y, plain_dx, *_ = layer_norm_with_gradients(x, weight, bias, eps, dy, dtype=F32)
    plain = (plain_y, plain_dx, *parameters_in_row_order(x, eps, dy))
    dtypes = (dy.dtype, x.dtype, weight.dtype, bias.dtype)
    for name, got, want, torch_has, dtype in zip(
        ("y", "dx", "dweight", "dbias"), results, exact, plain, dtypes, strict=True
    ):
        assert got.dtype == dtype
        check_budget(got, torch_has.to(dtype), want, name)


@pytest.mark.parametrize("N", SIZES)
def test_rows(N: int, isa: str) -> None:
    check(*make(N, 111))


@pytest.mark.parametrize("D", SIZES[2:])
def test_columns(D: int, isa: str) -> None:
    check(*make(33, D))


def test_one_column_is_the_bias(isa: str) -> None:
    """A row of one is its own mean: y = bias, dx = 0, dweight = 0."""
    x, weight, bias, dy = make(33, 1)
    y, dx, dweight, dbias = run(x, weight, bias, dy)
    assert torch.equal(y, bias.expand(33, 1))
    assert torch.equal(dx, torch.zeros(33, 1))
    assert torch.equal(dweight, torch.zeros(1))
    check_budget(dbias, dy.sum(0), dy.double().sum(0))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(NAMES[t] for t in d))
@pytest.mark.parametrize("D", [32, 111])
def test_dtypes(D: int, dtypes: tuple[torch.dtype, ...], isa: str) -> None:
    check(*make(33, D, dtypes))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2, 1.0])
def test_eps(eps: float) -> None:
    check(*make(5, 64), eps)


def test_value_by_hand() -> None:
    """mean(1, 5) = 3, variance 4, eps 5: y = (-2, 2) / 3 * (1, 2) + (0, 1)."""
    x, weight, bias = torch.tensor([[1.0, 5.0]]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    y = pe.ops.layer_norm(x, weight, bias, 5.0)
    torch.testing.assert_close(y, torch.tensor([[-2.0 / 3, 7.0 / 3]]))


def test_a_large_mean_leaves_the_variance_whole(isa: str) -> None:
    """The squares are summed about the mean: E[x^2] - mean^2 would round to steps of 8 here."""
    x, weight, bias, dy = make(5, 111)
    x += 10_000.0
    y, dx, *_ = run(x, weight, bias, dy)
    exact_y, exact_dx, *_ = layer_norm_with_gradients(x, weight, bias, EPS, dy)
    # What is left is the mean's rounding: a float32 step is 1e-3 there, and x spreads by 2.
    assert float((y - exact_y).abs().max()) < 3e-3
    assert float((dx - exact_dx).abs().max()) < 3e-3


def test_extreme_rows(isa: str) -> None:
    """Constant, tiny and large rows stay exact; an infinity or NaN spoils its own row only."""
    x, weight, bias, _ = make(6, 37)
    x[0] = 3.0
    x[1] *= 1e-18
    x[2] *= 1e17
    x[3, 5] = float("inf")
    x[4, 5] = float("nan")
    y = pe.ops.layer_norm(x, weight, bias, EPS)
    rows = [0, 1, 2, 5]
    exact = reference(x[rows].double(), weight.double(), bias.double(), EPS)
    check_budget(y[rows], reference(x[rows], weight, bias, EPS), exact)
    assert bool(y[3:5].isnan().all())


def test_finite_differences() -> None:
    """d loss along a random direction, from the float64 reference, equals our gradient along it."""
    *inputs, dy = make(7, 33)
    _, *grads = run(*inputs, dy)
    rng = torch.Generator().manual_seed(1)
    step = 1e-6
    for place, grad in enumerate(grads):
        for _ in range(8):
            u = torch.randn(grad.shape, generator=rng, dtype=torch.float64)

            def loss(h: float, u: Tensor = u, place: int = place) -> Tensor:
                moved = [t.double() + h * u if i == place else t.double()
                         for i, t in enumerate(inputs)]  # fmt: skip
                return (reference(*moved, EPS) * dy.double()).sum()

            slope = float(loss(step) - loss(-step)) / (2 * step)
            scale = float((grad.double() * u).abs().sum())
            error = abs(float((grad.double() * u).sum()) - slope)
            assert error <= FINITE_DIFFERENCE_RTOL * scale, place


def test_shapes_of_any_rank() -> None:
    x, weight, bias, dy = make(24, 33)
    y, dx, dweight, dbias = run(x, weight, bias, dy)
    for shape in ((2, 3, 4, 33), (24, 1, 33), (1, 24, 33)):
        got = run(x.view(shape), weight, bias, dy.view(shape))
        assert got[0].shape == got[1].shape == shape
        assert torch.equal(got[0].view(24, 33), y)
        assert torch.equal(got[1].view(24, 33), dx)
        assert torch.equal(got[2], dweight)
        assert torch.equal(got[3], dbias)
    assert torch.equal(pe.ops.layer_norm(x[3], weight, bias, EPS), y[3])  # (D,)


LAYOUTS = {
    "strided rows": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "3-d, permuted": lambda x: x.view(3, 11, -1).permute(1, 0, 2).contiguous().permute(1, 0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    x, weight, bias, dy = make(33, 47)
    want = run(x, weight, bias, dy)
    strided, strided_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    assert not strided.is_contiguous()
    got = run(strided, weight, bias, strided_dy)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.reshape(b.shape), b)


def test_gradient_that_is_broadcast() -> None:
    """y.sum() sends back a gradient of stride 0."""
    x, weight, bias, _ = make(5, 33)
    x.requires_grad_()
    pe.ops.layer_norm(x, weight, bias, EPS).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, run(x, weight, bias, torch.ones(5, 33))[1])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_wanted_gradients(wanted: tuple[int, ...]) -> None:
    *inputs, dy = make(5, 33)
    _, *grads = run(*inputs, dy)
    for i, t in enumerate(inputs):
        t.requires_grad_(i in wanted)
    pe.ops.layer_norm(*inputs, EPS).backward(dy)
    for i, (t, grad) in enumerate(zip(inputs, grads, strict=True)):
        assert torch.equal(t.grad, grad) if i in wanted else t.grad is None


def test_without_gradients_the_same_bits_and_no_graph() -> None:
    x, weight, bias, dy = make(5, 33)
    y, *_ = run(x, weight, bias, dy)
    assert torch.equal(pe.ops.layer_norm(x, weight, bias, EPS), y)
    with torch.no_grad():
        plain = pe.ops.layer_norm(x.requires_grad_(), torch.nn.Parameter(weight), bias, EPS)
    assert not plain.requires_grad
    assert torch.equal(plain, y)


def test_y_may_be_x() -> None:
    x, weight, bias, dy = make(33, 47)
    y, *_ = run(x, weight, bias, dy)
    _C.layer_norm_forward(x, weight, bias, EPS, x, None, None)
    assert torch.equal(x, y)


def moments(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    mean, rstd = torch.empty(x.shape[0]), torch.empty(x.shape[0])
    _C.layer_norm_forward(x, weight, bias, EPS, torch.empty_like(x), mean, rstd)
    return mean, rstd


def test_moments() -> None:
    x, weight, bias, _ = make(9, 47)
    mean, rstd = moments(x, weight, bias)
    exact_mean = x.double().mean(-1)
    exact_rstd = (x.double().var(-1, correction=0) + EPS).rsqrt()
    check_budget(mean, exact_mean.float(), exact_mean, "mean")
    check_budget(rstd, exact_rstd.float(), exact_rstd, "rstd")


def test_chains_of_dweight_and_dbias_continue() -> None:
    """They are accumulated: two calls over parts of the rows give the bits of one over all."""
    x, weight, bias, dy = make(111, 47)
    mean, rstd = moments(x, weight, bias)
    start = torch.randn(2, 47, generator=torch.Generator().manual_seed(5))
    whole = start.clone()
    _C.layer_norm_backward(dy, x, weight, mean, rstd, None, whole[0], whole[1])
    for cut in (1, 16, 50, 110):
        parts = start.clone()
        for r in (slice(0, cut), slice(cut, 111)):
            args = (dy[r], x[r], weight, mean[r], rstd[r], None, parts[0], parts[1])
            _C.layer_norm_backward(*args)
        assert torch.equal(parts, whole), cut
    assert not torch.equal(whole[0], start[0])
    assert not torch.equal(whole[1], start[1])


def test_a_row_does_not_know_its_batch(isa: str) -> None:
    x, weight, bias, dy = make(111, 47)
    y, dx, *_ = run(x, weight, bias, dy)
    for row in (0, 15, 16, 110):
        alone = run(x[row : row + 1], weight, bias, dy[row : row + 1])
        assert torch.equal(alone[0][0], y[row])
        assert torch.equal(alone[1][0], dx[row])


def test_repeat_is_bitwise(isa: str) -> None:
    inputs = make(111, 111, MIXED)
    first = run(*inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), first, strict=True))


@pytest.mark.parametrize("shape", [(4099, 47), (17, 4099), (1, 33)])
def test_threads_change_nothing(shape: tuple[int, int], restore_threads: None) -> None:
    inputs = make(*shape)
    pe.set_num_threads(1)
    one = run(*inputs)
    for n in (2, 3):
        pe.set_num_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), one, strict=True)), n


def test_instruction_sets_with_fma_agree_bitwise(restore_isa: None) -> None:
    inputs = make(33, 111, MIXED)
    results = {}
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results[name] = run(*inputs)
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    first, *others = results.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(*make(9, 33, MIXED))


def test_second_derivative_is_refused() -> None:
    x, weight, bias, _ = make(3, 8)
    x.requires_grad_()
    y = pe.ops.layer_norm(x, weight, bias, EPS)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_opcheck() -> None:
    x, weight, bias, dy = make(5, 33, (F32, F32, BF16, F32))
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.pyengine.layer_norm.default, (*inputs, EPS, BF16))
    args = (dy, x, weight, torch.rand(5), torch.rand(5))
    torch.library.opcheck(torch.ops.pyengine.layer_norm_backward.default, args)


@pytest.mark.parametrize("out_dtype", [None, BF16])
def test_compiled_equals_eager(out_dtype: torch.dtype | None) -> None:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pe.ops.layer_norm(x * 2.0, weight, bias, EPS, out_dtype).float() * 3.0

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, *parameters, dy = make(6, 33, (F32, F32, BF16, F32))
    results = []
    for f in (layer, compiled):
        inputs = [t.detach().requires_grad_() for t in (x.view(2, 3, 33), *parameters)]
        y = f(*inputs)
        results.append((y.detach(), *torch.autograd.grad(y, inputs, dy.view(2, 3, 33))))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


# What bad arguments get. N = 4, D = 8.

FORWARD, BACKWARD = "layer_norm_forward", "layer_norm_backward"


def good(function: str) -> dict[str, Any]:
    matrix, columns, rows = torch.zeros(4, 8), torch.zeros(8), torch.zeros(4)
    moments = {"mean": rows, "rstd": rows.clone()}
    if function == FORWARD:
        inputs = {"x": matrix, "weight": columns, "bias": columns}
        return {**inputs, "eps": EPS, "y": matrix.clone(), **moments}
    gradients = {"dx": matrix.clone(), "dweight": columns.clone(), "dbias": columns.clone()}
    return {"dy": matrix, "x": matrix, "weight": columns, **moments, **gradients}


TENSORS = [(f, name) for f in (FORWARD, BACKWARD) for name in good(f) if name != "eps"]
OPTIONAL = {(FORWARD, "mean"), (FORWARD, "rstd")}
OPTIONAL |= {(BACKWARD, name) for name in ("dx", "dweight", "dbias")}


def refuses(function: str, error: type[Exception], message: str, **changes: Any) -> None:
    with pytest.raises(error) as caught:
        getattr(_C, function)(**{**good(function), **changes})
    assert type(caught.value) is error
    assert str(caught.value) == f"[layer_norm] {message}"


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_not_a_tensor_is_refused(function: str, name: str, reading: str) -> None:
    refuses(function, TypeError, f"{name} must be a torch.Tensor but is list", **{name: [1.0]})
    if (function, name) in OPTIONAL:
        assert getattr(_C, function)(**{**good(function), name: None}) is None
    else:
        message = f"{name} must be a torch.Tensor but is NoneType"
        refuses(function, TypeError, message, **{name: None})


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_other_dtypes_are_refused(function: str, name: str) -> None:
    free = name in ("x", "y", "dy", "weight", "bias")
    value = good(function)[name].double()
    message = f"{name} must be {'float32 or bfloat16' if free else 'float32'} but is float64"
    refuses(function, TypeError, message, **{name: value})


def test_dx_has_the_dtype_of_x() -> None:
    message = "dx must be float32 but is bfloat16"
    refuses(BACKWARD, TypeError, message, dx=torch.zeros(4, 8, dtype=BF16))


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_other_shapes_are_refused(function: str, name: str) -> None:
    symbols = {2: "(N, D)"}.get(good(function)[name].dim())
    if symbols is None:
        symbols = "(N,)" if name in ("mean", "rstd") else "(D,)"
    sizes = {"(N, D)": "(4, 8)", "(N,)": "(4,)", "(D,)": "(8,)"}[symbols]
    wanted = symbols if name == "x" else f"{symbols} = {sizes}"
    message = f"{name} must have shape {wanted} but got (7, 1, 2)"
    refuses(function, ValueError, message, **{name: torch.zeros(7, 1, 2)})


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_other_layouts_are_refused(function: str, name: str) -> None:
    value = good(function)[name]
    if value.dim() == 2:
        message = f"{name} must have a contiguous last dimension but its stride is 4"
        refuses(function, ValueError, message, **{name: torch.zeros(8, 4).T})
    else:
        message = f"{name} must be contiguous but its stride is 3"
        refuses(function, ValueError, message, **{name: value.repeat_interleave(3)[::3]})


def test_no_columns_are_refused() -> None:
    empty = torch.zeros(4, 0)
    changes = {"x": empty, "y": empty, "weight": empty[0], "bias": empty[0]}
    refuses(FORWARD, ValueError, "x must have D >= 1 but got shape (4, 0)", **changes)


@pytest.mark.parametrize(("eps", "text"), [(-1.0, "-1.000000"), (float("nan"), "nan")])
def test_bad_eps_is_refused(eps: float, text: str) -> None:
    refuses(FORWARD, ValueError, f"eps must be >= 0 but is {text}", eps=eps)


def test_python_raises_the_same_errors() -> None:
    x, weight, bias, _ = make(4, 8)
    with pytest.raises(ValueError, match=r"\[layer_norm\] bias must have shape \(D,\) = \(8,\)"):
        pe.ops.layer_norm(x, weight, bias[:7], EPS)
