"""linear against its float64 reference, and its promises: one chain an output, bits, layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference.linear import int8_values, product_in_order
from reference.linear import linear as reference
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import PackedWeight, linear, linear_pack

F32, BF16 = torch.float32, torch.bfloat16
KINDS = ("float32", "bfloat16", "int8")
FMA_ISAS = [isa for isa in _C.available_isas() if isa != "baseline"]
SIZES = (1, 31, 32, 33, 111, 4099)


def x_dtype(kind: str) -> torch.dtype:
    return F32 if kind == "float32" else BF16


def make(T: int, N: int, K: int, kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (T, K) in the kind's dtype; weight (N, K) float32 with the values that it multiplies."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(T, K, generator=rng).to(x_dtype(kind))
    weight = torch.randn(N, K, generator=rng)
    if kind == "bfloat16":
        weight = weight.to(BF16).float()
    if kind == "int8":
        q, scale = int8_values(weight)
        weight = q * scale[:, None]
    return x, weight


def check(T: int, N: int, K: int, kind: str) -> None:
    x, weight = make(T, N, K, kind)
    y = linear(x, linear_pack(weight, kind), out_dtype=F32)
    assert isinstance(y, Tensor)
    check_budget(y, x.float() @ weight.T, reference(x, weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [0, 1, 2, 5, 12, 13, 64, 193])
def test_rows(T: int, kind: str, isa: str) -> None:
    check(T, 64, 96, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", SIZES)
def test_outputs(N: int, kind: str, isa: str) -> None:
    check(5, N, 40, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", SIZES)
def test_depth(K: int, kind: str, isa: str) -> None:
    check(5, 33, K, kind)


@pytest.mark.parametrize("K", [1, 2, 7, 96])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_one_accumulator_walks_k_in_order(kind: str, K: int, isa: str) -> None:
    x, weight = make(14, 35, K, kind)
    y = linear(x, linear_pack(weight, kind), out_dtype=F32)
    if isa == "baseline" and kind == "float32":
        pytest.skip("without FMA each product of floats is rounded too")
    assert torch.equal(y, product_in_order(x, weight, pairs=kind == "bfloat16"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [111, 1024, 2051])  # int8 is widened for several rows, 1024 at a time
def test_a_row_depends_on_nothing_but_itself(K: int, kind: str, isa: str) -> None:
    x, weight = make(50, 70, K, kind)
    packed = linear_pack(weight, kind)
    together = linear(x, packed, out_dtype=F32)
    for n in (1, 2, 7, 12, 13, 49):
        for start in (0, 50 - n):
            part = linear(x[start : start + n], packed, out_dtype=F32)
            assert torch.equal(part, together[start : start + n])


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_same_for_any_threads(kind: str, restore_threads: None) -> None:
    x, weight = make(400, 200, 64, kind)
    packed = linear_pack(weight, kind)
    results = []
    for threads in (1, 2, 3):
        pe.set_num_threads(threads)
        results.append(linear(x, packed))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [None, "silu_gate", "gelu_tanh"])
def test_instruction_sets_with_fma_agree(
    kind: str, activation: str | None, restore_isa: None
) -> None:
    x, weight = make(14, 66, 97, kind)
    gated = activation == "silu_gate"
    packed = linear_pack(weight.chunk(2) if gated else weight, kind, gated)
    results = []
    for isa in FMA_ISAS:
        _C.set_isa(isa)
        results.append(linear(x, packed, activation=activation, out_dtype=F32))
    assert all(torch.equal(r, results[0]) for r in results)


def test_denormals_count_as_zero_in_bfloat16(isa: str) -> None:
    x = torch.full((1, 2), 2.0**-70, dtype=BF16)
    y = linear(x, linear_pack(torch.full((1, 2), 2.0**-70), "bfloat16"), out_dtype=F32)
    assert y.item() == 0.0
    y = linear(torch.full((1, 1), 2.0**-130, dtype=BF16), linear_pack(torch.ones(1, 1), "bfloat16"))
    assert y.item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner", [8, 16, 20, 33, 64])
def test_silu_gate(inner: int, bias: bool, kind: str, isa: str) -> None:
    x, weight = make(7, 2 * inner, 48, kind)
    b = torch.linspace(-1, 1, 2 * inner) if bias else None
    packed = linear_pack(weight.chunk(2), kind, gated=True)
    y = linear(x, packed, b, "silu_gate", out_dtype=F32)
    plain = reference(x, weight, b, "silu_gate").float()
    check_budget(y, plain, reference(x, weight, b, "silu_gate"))


@pytest.mark.parametrize("kind", KINDS)
def test_bias_and_gelu(kind: str, isa: str) -> None:
    x, weight = make(7, 45, 48, kind)
    b = torch.linspace(-1, 1, 45)
    for activation in (None, "gelu_tanh"):
        y = linear(x, linear_pack(weight, kind), b, activation, out_dtype=F32)
        exact = reference(x, weight, b, activation)
        check_budget(y, exact.float(), exact)


@pytest.mark.parametrize("N", [16, 33, 40])
def test_residual_is_added_in_place(N: int, isa: str) -> None:
    x, weight = make(5, N, 48, "bfloat16")
    packed, residual = linear_pack(weight, "bfloat16"), torch.randn(5, N)
    before, version = residual.clone(), residual._version
    y = linear(x, packed, residual=residual)
    assert y is residual
    assert residual._version > version
    assert torch.equal(residual, before + linear(x, packed, out_dtype=F32))


@pytest.mark.parametrize("splits", [(32, 16, 16), (40, 8, 8), (9, 3, 3), (56,)])
def test_splits_are_the_columns_of_one_product(splits: tuple[int, ...], isa: str) -> None:
    x, weight = make(5, sum(splits), 48, "bfloat16")
    parts = list(weight.split(splits))
    packed = linear_pack(parts, "bfloat16")
    b = torch.linspace(-1, 1, sum(splits))
    whole = linear(x, linear_pack(weight, "bfloat16"), b, out_dtype=F32)
    assert isinstance(whole, Tensor)
    ys = linear(x, packed, b, out_dtype=F32, splits=splits)
    assert all(torch.equal(y, w) for y, w in zip(ys, whole.split(splits, 1), strict=True))


def test_bfloat16_results_are_rounded_once() -> None:
    x, weight = make(5, 40, 48, "bfloat16")
    packed = linear_pack(weight, "bfloat16")
    exact = linear(x, packed, out_dtype=F32)
    assert isinstance(exact, Tensor)
    assert torch.equal(linear(x, packed), exact.to(BF16))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_strided_rows(kind: str) -> None:
    x, weight = make(6, 40, 48, kind)
    wide = torch.full((6, 60), torch.nan, dtype=x.dtype)
    wide[:, :48] = x
    tall = torch.full((40, 50), torch.nan)
    tall[:, :48] = weight
    assert torch.equal(
        linear(wide[:, :48], linear_pack(tall[:, :48], kind)), linear(x, linear_pack(weight, kind))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_packing_again_in_place(kind: str) -> None:
    x, weight = make(6, 40, 48, kind)
    packed = linear_pack(torch.randn(40, 48), kind)
    assert linear_pack(weight, kind, out=packed) is packed
    assert torch.equal(linear(x, packed), linear(x, linear_pack(weight, kind)))


def test_a_bfloat16_weight_packs_like_its_float32_values() -> None:
    _, weight = make(1, 40, 49, "bfloat16")
    packed = linear_pack(weight, "bfloat16")
    assert torch.equal(packed.data, linear_pack(weight.to(BF16), "bfloat16").data)


def test_int8_of_a_zero_row() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0
    y = linear(torch.randn(2, 8).to(BF16), linear_pack(weight, "int8"))
    assert isinstance(y, Tensor)
    assert y[:, 1].tolist() == [0.0, 0.0]
    assert bool(y.isfinite().all())


def test_bytes_read() -> None:
    # 33 outputs are two panels of 32; K = 5 is three pairs.
    assert linear_pack(torch.zeros(33, 5), "bfloat16").num_bytes == 2 * 3 * 32 * 4
    assert linear_pack(torch.zeros(33, 5), "float32").num_bytes == 2 * 5 * 32 * 4
    assert linear_pack(torch.zeros(33, 5), "int8").num_bytes == 2 * 3 * 32 * 2 + 64 * 4


P: PackedWeight = linear_pack(torch.zeros(4, 6), "float32")
B: PackedWeight = linear_pack(torch.zeros(4, 6), "bfloat16")
G: PackedWeight = linear_pack([torch.zeros(4, 6)] * 2, "float32", gated=True)
X = torch.zeros(3, 6)

REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: linear(X[:, :5], P), ValueError, r"x must have shape \(T, K\) = \(3, 6\)"),
    (lambda: linear(X[0], P), ValueError, r"x must have shape \(T, K\) but got \(6,\)"),
    (lambda: linear(X.to(BF16), P), TypeError, "x must be float32 but is bfloat16"),
    (lambda: linear(X, B), TypeError, "x must be bfloat16 but is float32"),
    (lambda: linear(X.T.contiguous().T, P), ValueError, "x must have a contiguous last dimension"),
    (lambda: linear(X, P, torch.zeros(5)), ValueError, r"bias must have shape \(N,\) = \(4,\)"),
    (lambda: linear(X, P, torch.zeros(4, dtype=BF16)), TypeError, "bias must be float32"),
    (lambda: linear(X, P, activation="silu_gate"), ValueError, "'silu_gate' is of gated weights"),
    (lambda: linear(X, G), ValueError, "'silu_gate' is of gated weights"),
    (
        lambda: linear(X, P, activation="relu"),  # type: ignore[arg-type]
        ValueError,
        "epilogue must be 'store', 'add', 'silu_gate' or 'gelu_tanh' but is 'relu'",
    ),
    (lambda: linear(X, P, splits=(1, 1, 1, 1)), ValueError, "y must be 1 to 3 tensors but is 4"),
    (lambda: linear(X, P, splits=(1, 2)), ValueError, "y must have 4 columns in all but has 3"),
    (
        lambda: linear(X, P, residual=torch.zeros(3, 4), splits=(4,)),
        ValueError,
        "residual must come without activation and splits",
    ),
    (lambda: linear(X, P, residual=torch.zeros(3, 5)), ValueError, "y must have 4 columns in all"),
    (lambda: linear(X, P, residual=torch.zeros(3, 4, dtype=BF16)), TypeError, "y must be float32"),
    (lambda: linear_pack(torch.zeros(4), "float32"), ValueError, "weights must be matrices"),
    (lambda: linear_pack([], "float32"), ValueError, "weights must be matrices of equal K"),
    (
        lambda: linear_pack([X, torch.zeros(3, 5)], "float32"),
        ValueError,
        r"weights must be matrices of equal K but have shapes \[\(3, 6\), \(3, 5\)\]",
    ),
    (
        lambda: linear_pack([X, X[:2]], "float32", gated=True),
        ValueError,
        "a gated pair must be two matrices of one shape",
    ),
    (lambda: linear_pack(X, "int4"), ValueError, "kind must be .* but is 'int4'"),  # type: ignore[arg-type]
    (lambda: linear_pack(X.double(), "float32"), TypeError, "weight must be float32 or bfloat16"),
    (lambda: linear_pack(X[:, :0], "float32"), ValueError, "N and K must be >= 1"),
    (
        lambda: linear_pack(X, "float32", out=P),
        ValueError,
        r"out must be a float32 matrix of .*3, 6",
    ),
]


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=lambda i: REFUSED[i][2][:40])
def test_refused(index: int) -> None:
    run, error, message = REFUSED[index]
    with pytest.raises(error, match=message):
        run()


def test_the_binding_checks_the_packed_words() -> None:
    y = [torch.empty(3, 4)]
    words = P.data[:-1]
    with pytest.raises(ValueError, match=r"data must have shape \(packed words,\) = \(192,\)"):
        _C.linear_forward(X, words, None, "float32", 4, 6, None, "store", y, [])
    with pytest.raises(ValueError, match="scale must be given when kind is 'int8'"):
        _C.linear_forward(X, P.data[:48], None, "int8", 4, 6, None, "store", y, [])
    with pytest.raises(ValueError, match="scale must be None unless kind is 'int8'"):
        _C.linear_forward(X, P.data, torch.ones(32), "float32", 4, 6, None, "store", y, [])
    with pytest.raises(ValueError, match="of 3 rows from output 2 must fit N = 4"):
        _C.linear_pack(X, P.data, None, "float32", 4, 6, 2, False)
