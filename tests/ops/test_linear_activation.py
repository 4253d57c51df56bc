"""What an activation of linear keeps for its backward, and that backward over a wide range."""

from __future__ import annotations

import itertools

import pytest
import torch
from reference.linear import activation_backward as reference
from tolerances import ACTIVATION_BACKWARD_ULPS
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import linear, linear_pack
from pyengine.ops.linear import Activation, Kind, linear_activation_backward

F32, BF16 = torch.float32, torch.bfloat16
ACTIVATIONS: tuple[Activation, ...] = ("silu_gate", "gelu_tanh")
FMA_ISAS = [isa for isa in _C.available_isas() if isa != "baseline"]
DTYPES = [*itertools.product((F32, BF16), repeat=3)]  # of dy, kept, dx


def pieces(activation: Activation) -> int:
    return 2 if activation == "silu_gate" else 1


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("N", [1, 16, 31, 32, 45, 111])
def test_kept_is_what_the_activation_takes(
    N: int, activation: Activation, kind: Kind, isa: str
) -> None:
    rng, n = torch.Generator().manual_seed(N), pieces(activation)
    x = torch.randn(14, 49, generator=rng).to(F32 if kind == "float32" else BF16)
    weights = [torch.randn(N, 49, generator=rng) for _ in range(n)]
    apart, packed = linear_pack(weights, kind), linear_pack(weights, kind, gated=n == 2)
    for b, dtype in itertools.product((None, torch.randn(n * N, generator=rng)), (F32, BF16)):
        plain = linear(x, apart, b, out_dtype=F32, splits=(N,) * n)
        wide = [torch.full((14, N + 5), torch.nan, dtype=dtype) for _ in range(n)]
        kept = [w[:, :N] for w in wide]
        versions = [k._version for k in kept]
        y = linear(x, packed, b, activation, kept=kept)
        assert isinstance(y, Tensor)
        assert torch.equal(y, linear(x, packed, b, activation))
        for k, w, values, version in zip(kept, wide, plain, versions, strict=True):
            assert torch.equal(k, values.to(dtype))
            assert bool(w[:, N:].isnan().all())
            assert k._version > version


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("splits", [(32, 32, 16), (40, 8, 32), (64, 5, 11)], ids=str)
def test_kept_has_the_columns_of_all_splits(
    splits: tuple[int, ...], activation: Activation, isa: str
) -> None:
    N, n = sum(splits), pieces(activation)
    x, weight = torch.randn(14, 20), torch.randn(n * N, 20)
    packed = linear_pack(weight.chunk(2) if n == 2 else weight, "float32", gated=n == 2)
    whole = [torch.empty(14, N) for _ in range(n)]
    y = linear(x, packed, activation=activation, kept=whole)
    assert isinstance(y, Tensor)
    kept = [torch.full((14, N), torch.nan) for _ in range(n)]
    parts = linear(x, packed, activation=activation, splits=splits, kept=kept)
    assert all(torch.equal(p, q) for p, q in zip(parts, y.split(splits, 1), strict=True))
    assert all(torch.equal(k, w) for k, w in zip(kept, whole, strict=True))


def wide_range() -> Tensor:
    """Floats of both signs: denormals, every binade up to 1e4, and densely where slopes bend."""
    sizes = torch.logspace(-45, 4, 3001, dtype=torch.float64).float()
    dense = torch.linspace(0, 20, 4001)
    some = torch.tensor([0.0, 2.0**-149, 2.0**-126, 1e4, 64.0, 87.0, 88.0, 104.0, 150.0, 15.0])
    x = torch.cat([sizes, dense, some])
    return torch.cat([x, -x])


def term_sizes(dy: Tensor, kept: list[Tensor]) -> Tensor:
    """Sum of the sizes of a slope's terms, in float64: near the slope's zeros they cancel."""
    dy, first = dy.double(), kept[0].double()
    if len(kept) == 2:
        up, s = kept[1].double(), torch.sigmoid(first)
        silu = dy * first * s
        return torch.cat([dy * up * s * (1 + first.abs() * (1 - s)), silu], dim=-1).abs()
    # The rounding of z = 2 sqrt(2 / pi) (x + 0.044715 x^3) is |z| times as large in e^z.
    z = 1.5957691216057308 * (first + 0.044715 * first**3)
    s, slope = torch.sigmoid(z), 1.5957691216057308 * (1 + 3 * 0.044715 * first**2)
    far = 1 + z.clamp(max=0).abs()
    return (dy * (s + first.abs() * s * (1 - s) * slope) * far).abs()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_backward(activation: Activation, isa: str) -> None:
    x = wide_range()
    rng = torch.Generator().manual_seed(0)
    order = [torch.randperm(len(x), generator=rng) for _ in range(2)]
    kept = [x[None], x[order[0]][None]][: pieces(activation)]
    dy = torch.randn(len(x), generator=rng)[None]
    dx = linear_activation_backward(dy, kept)
    assert bool(dx.isfinite().all())
    exact, size = reference(dy, kept), term_sizes(dy, kept)
    # A sigmoid below the smallest normal float has lost bits: absolutely that is nothing.
    ulps = ((dx.double() - exact).abs() - 1e-36).clamp(min=0) / (size * 2.0**-23 + 1e-300)
    assert float(ulps.max()) < ACTIVATION_BACKWARD_ULPS[activation]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("N", [1, 16, 45, 111])
def test_what_was_activated_comes_again(N: int, activation: Activation, isa: str) -> None:
    """Bit for bit in float32, so that the forward pass need not keep it."""
    n = pieces(activation)
    weights = [30 * torch.randn(N, 49) for _ in range(n)]
    kept = [torch.empty(14, N) for _ in range(n)]
    y = linear(
        torch.randn(14, 49),
        linear_pack(weights, "float32", gated=n == 2),
        None,
        activation,
        kept=kept,
    )
    wide = torch.full((14, N + 5), torch.nan)
    dy, again = torch.randn(14, N), wide[:, :N]
    version = again._version
    dx = linear_activation_backward(dy, kept, again=again)
    assert isinstance(y, Tensor)
    assert torch.equal(again, y)
    assert again._version > version
    assert bool(wide[:, N:].isnan().all())
    assert torch.equal(dx, linear_activation_backward(dy, kept))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-149, -(2.0**-149), 1e4, -1e4, 1e30, -1e30])
def test_activation_backward_far_out(value: float, activation: Activation, isa: str) -> None:
    """Slopes 1/2 at 0, 1 and 0 far out, exactly."""
    kept = [torch.full((1, 33), value), torch.ones(1, 33)][: pieces(activation)]
    slope = linear_activation_backward(torch.ones(1, 33), kept)[:, :33]
    expected = 0.5 if abs(value) < 1e-30 else float(value > 0)
    assert slope.tolist() == [[expected] * 33]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("N", [0, 1, 15, 16, 17, 33, 111])
@pytest.mark.parametrize("T", [0, 1, 9])
def test_a_row_depends_on_nothing_but_itself(
    T: int, N: int, activation: Activation, isa: str
) -> None:
    rng = torch.Generator().manual_seed(0)
    dy, *kept = (torch.randn(T, N, generator=rng) for _ in range(1 + pieces(activation)))
    dx = linear_activation_backward(dy, kept)
    assert dx.shape == (T, N * len(kept))
    for t in range(T):
        columns = [
            linear_activation_backward(dy[t : t + 1, n:], [k[t : t + 1, n:] for k in kept])
            for n in (0, N // 2)
        ]
        assert torch.equal(dx[t : t + 1], columns[0])
        halves = dx[t].reshape(len(kept), N)[:, N // 2 :]
        assert torch.equal(halves.reshape(1, -1), columns[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes_are_rounded_once(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype], activation: Activation, isa: str
) -> None:
    rng = torch.Generator().manual_seed(0)
    dy = torch.randn(9, 70, generator=rng).to(dtypes[0])
    kept = [torch.randn(9, 70, generator=rng).to(dtypes[1]) for _ in range(pieces(activation))]
    dx = linear_activation_backward(dy, kept, dtypes[2])
    assert dx.dtype == dtypes[2]
    wide = linear_activation_backward(dy.float(), [k.float() for k in kept])
    assert torch.equal(dx, wide.to(dtypes[2]))
    assert linear_activation_backward(dy, kept).dtype == dtypes[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_of_threads_and_instruction_sets(
    activation: Activation, restore_isa: None, restore_threads: None
) -> None:
    x = wide_range()[: 150 * 91].reshape(150, 91)
    kept = [x, x.flip(0)][: pieces(activation)]
    results = []
    for isa, threads in itertools.product(FMA_ISAS, (1, 2, 3)):
        _C.set_isa(isa)
        pe.set_num_threads(threads)
        results.append(linear_activation_backward(torch.ones(x.shape), kept))
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_strided_rows(activation: Activation) -> None:
    wide = [torch.full((5, 60), torch.nan) for _ in range(1 + pieces(activation))]
    dy, *kept = (w[:, :45].copy_(torch.randn(5, 45)) for w in wide)
    expected = linear_activation_backward(dy.contiguous(), [k.contiguous() for k in kept])
    assert torch.equal(linear_activation_backward(dy, kept), expected)
