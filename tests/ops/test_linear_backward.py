"""The backward of linear: one chain over tokens an element of dweight, however calls are cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from reference.linear import dweight_in_order
from reference.linear import linear as reference_forward
from reference.linear import linear_backward as reference
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import linear, linear_pack
from pyengine.ops.linear import Kind, linear_backward, linear_pack_columns, linear_transpose

F32, BF16 = torch.float32, torch.bfloat16
KINDS: dict[torch.dtype, Kind] = {F32: "float32", BF16: "bfloat16"}
DTYPES = [(F32, F32), (BF16, BF16), (F32, BF16), (BF16, F32)]  # of dy and x
FMA_ISAS = [isa for isa in _C.available_isas() if isa != "baseline"]
GROUPS = (5, 1, 0, 32, 7, 0, 64, 2)  # rows of each
Dtypes = tuple[torch.dtype, torch.dtype]

each_dtype = pytest.mark.parametrize(
    "dtypes", DTYPES, ids=lambda d: "-".join(str(x).removeprefix("torch.") for x in d)
)


class Case:
    """dy (T, N), x (T, K), and what the gradients' buffers hold before."""

    def __init__(self, T: int, N: int, K: int, dtypes: Dtypes, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.dy = torch.randn(T, N, generator=rng).to(dtypes[0])
        self.x = torch.randn(T, K, generator=rng).to(dtypes[1])
        self.dweight = torch.randn(N, K, generator=rng)
        self.dbias = torch.randn(N, generator=rng)

    def run(self, *sizes: int, calls: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Groups of `sizes` rows, by default one of all; after `calls` groups another call."""
        ends = [0, *itertools.accumulate(sizes or (len(self.dy),))]
        dweight, dbias = self.dweight.clone(), self.dbias.clone()
        for a, b in itertools.pairwise((0, *calls, len(ends) - 1)):
            rows = slice(ends[a], ends[b])
            groups = torch.tensor(ends[a : b + 1]) - ends[a]
            linear_backward(self.dy[rows], self.x[rows], groups, dweight, dbias)
        return dweight, dbias

    def check(self, *sizes: int) -> None:
        dweight, dbias = self.run(*sizes)
        exact = reference(self.dy, self.x)
        plain = self.dy.to(self.x.dtype).float().T @ self.x.float()
        check_budget(dweight, self.dweight + plain, self.dweight.double() + exact[0], "dweight")
        plain = self.dbias + self.dy.float().sum(0)
        check_budget(dbias, plain, self.dbias.double() + exact[1], "dbias")


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@each_dtype
@pytest.mark.parametrize("T", [0, 1, 31, 32, 33, 111, 1500])
def test_rows(T: int, dtypes: Dtypes, isa: str) -> None:
    Case(T, 40, 70, dtypes).check()


@each_dtype
@pytest.mark.parametrize("N", [0, 1, 31, 32, 33, 111, 4099])
def test_outputs(N: int, dtypes: Dtypes, isa: str) -> None:
    Case(7, N, 33, dtypes).check()


@each_dtype
@pytest.mark.parametrize("K", [0, 1, 31, 32, 33, 111, 4099])
def test_inputs(K: int, dtypes: Dtypes, isa: str) -> None:
    Case(7, 33, K, dtypes).check()


@each_dtype
@pytest.mark.parametrize("sizes", [(1,), (2,), (7,), (1, 1, 1), (3, 0, 4, 1, 5), GROUPS], ids=str)
def test_one_accumulator_walks_tokens_in_order(
    sizes: tuple[int, ...], dtypes: Dtypes, isa: str
) -> None:
    case = Case(sum(sizes), 35, 70, dtypes)
    dweight, dbias = case.run(*sizes)
    chain = case.dbias.clone()
    for row in case.dy:
        chain += row
    assert torch.equal(dbias, chain)
    if isa == "baseline" and dtypes[1] == F32:
        return  # without FMA each product of floats is rounded too
    groups = torch.tensor([0, *itertools.accumulate(sizes)])
    assert torch.equal(dweight, dweight_in_order(case.dy, case.x, groups, case.dweight))


@each_dtype
def test_calls_may_be_cut_between_any_groups(dtypes: Dtypes, isa: str) -> None:
    case = Case(sum(GROUPS), 45, 50, dtypes)
    whole = case.run(*GROUPS)
    cuts = range(len(GROUPS) + 1)
    for calls in [*itertools.combinations(cuts, 1), *itertools.combinations(cuts, 2), (*cuts,)]:
        assert same(case.run(*GROUPS, calls=calls), whole), calls


@each_dtype
def test_empty_groups_change_nothing(dtypes: Dtypes) -> None:
    case = Case(12, 45, 50, dtypes)
    assert same(case.run(0, 5, 0, 0, 7, 0), case.run(5, 7))
    empty = Case(0, 45, 50, dtypes)
    assert same(empty.run(0, 0), (empty.dweight, empty.dbias))


def test_groups_are_pairs_of_their_own() -> None:
    """Two tokens far apart in size: their order inside a pair shows."""
    case = Case(3, 1, 1, (BF16, BF16))
    case.dy[:] = 1
    case.dweight[:] = 0
    case.x[:, 0] = torch.tensor([1, 2.0**24, -(2.0**24)])
    # Pairs (1, 2^24), (-2^24, 0): 2^24 + 1 loses the 1. Pairs (1, 0), (2^24, -2^24): 1 is lost
    # going down to -2^24 + 1, which is a float, and comes back.
    assert case.run(3)[0].item() == 0.0
    assert case.run(1, 2)[0].item() == 1.0


@each_dtype
def test_bits_are_the_same_for_any_threads(dtypes: Dtypes, restore_threads: None) -> None:
    case = Case(150, 400, 130, dtypes)
    results = []
    for threads in (1, 2, 3):
        pe.set_num_threads(threads)
        results.append(case.run(77, 73))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@each_dtype
def test_instruction_sets_with_fma_agree(dtypes: Dtypes, restore_isa: None) -> None:
    case = Case(sum(GROUPS), 66, 97, dtypes)
    results = []
    for isa in FMA_ISAS:
        _C.set_isa(isa)
        results.append(case.run(*GROUPS))
    assert all(same(r, results[0]) for r in results)


@each_dtype
def test_strided_rows(dtypes: Dtypes) -> None:
    case = Case(13, 40, 50, dtypes)
    expected = case.run(6, 7)
    for name in ("dy", "x", "dweight"):
        tensor = getattr(case, name)
        wide = torch.full((len(tensor), 60), torch.nan, dtype=tensor.dtype)
        wide[:, 3 : 3 + tensor.shape[1]] = tensor
        setattr(case, name, wide[:, 3 : 3 + tensor.shape[1]])
    assert same(case.run(6, 7), expected)
    # run() copies the buffer: here it goes on in a part of a wider one.
    wide = torch.full((40, 60), torch.nan)
    wide[:, :50] = case.dweight
    linear_backward(case.dy, case.x, torch.tensor([0, 6, 13]), wide[:, :50])
    assert torch.equal(wide[:, :50], expected[0])
    assert bool(wide[:, 50:].isnan().all())


@each_dtype
def test_either_gradient_alone(dtypes: Dtypes) -> None:
    case, groups = Case(13, 40, 50, dtypes), torch.tensor([0, 13])
    expected = case.run()
    linear_backward(case.dy, case.x, groups, None, case.dbias)
    assert torch.equal(case.dbias, expected[1])
    linear_backward(case.dy, case.x, groups, case.dweight)
    assert torch.equal(case.dweight, expected[0])
    linear_backward(case.dy, case.x, groups, None)


def test_buffers_count_as_changed() -> None:
    case = Case(3, 4, 5, (F32, F32))
    versions = case.dweight._version, case.dbias._version
    linear_backward(case.dy, case.x, torch.tensor([0, 3]), case.dweight, case.dbias)
    assert case.dweight._version > versions[0]
    assert case.dbias._version > versions[1]


def test_denormals_count_as_zero_in_bfloat16(isa: str) -> None:
    case = Case(2, 1, 1, (BF16, BF16))
    case.dy[:], case.x[:], case.dweight[:] = 2.0**-70, 2.0**-70, 2.0**-140
    assert case.run()[0].item() == 0.0


PARTS = [(1,), (32,), (5,), (3, 4, 6), (1, 1, 1), (33, 32, 1), (9, 3, 3)]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", PARTS, ids=str)
@pytest.mark.parametrize("N", [1, 31, 32, 33, 111])
def test_packed_columns_are_the_packed_transpose(
    N: int, rows: tuple[int, ...], dtype: torch.dtype, kind: Kind, isa: str
) -> None:
    weight = torch.randn(sum(rows), N, generator=torch.Generator().manual_seed(N)).to(dtype)
    columns = linear_pack_columns(weight.split(rows), kind)
    rows_packed = linear_pack(weight.T.contiguous(), kind)
    assert (columns.N, columns.K, columns.kind) == (N, sum(rows), kind)
    assert torch.equal(columns.data, rows_packed.data)
    # Again in place, over other values.
    again = linear_pack_columns((weight + 1).split(rows), kind)
    assert not torch.equal(again.data, columns.data)
    assert linear_pack_columns(weight.split(rows), kind, out=again) is again
    assert torch.equal(again.data, columns.data)


def test_packed_columns_of_strided_rows_and_any_threads(restore_threads: None) -> None:
    wide = torch.full((111, 80), torch.nan)
    wide[:, :70] = torch.randn(111, 70)
    expected = linear_pack(wide[:, :70].T.contiguous(), "bfloat16").data
    for threads in (1, 2, 3):
        pe.set_num_threads(threads)
        columns = linear_pack_columns(wide[:, :70].split((50, 61)), "bfloat16")
        assert torch.equal(columns.data, expected)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), [(2, 1), (30, 33), (64, 64), (66, 111), (130, 31), (98, 200)])
def test_a_transposed_packed_weight_is_packed_by_columns(
    N: int, K: int, kind: Kind, gated: bool, isa: str, restore_threads: None
) -> None:
    """Also into memory that held something else, for odd sizes, and on any threads."""
    weight = torch.randn(N - (not gated) * (N > 2), K, generator=torch.Generator().manual_seed(N))
    parts = list(weight.split(N // 2)) if gated else [weight]
    packed, expected = linear_pack(parts, kind, gated), linear_pack_columns(parts, kind)
    out = linear_pack_columns([torch.full_like(p, torch.nan) for p in parts], kind)
    for threads in (1, 2, 3):
        pe.set_num_threads(threads)
        assert linear_transpose(packed, out) is out
        assert torch.equal(out.data, expected.data)
    made = linear_transpose(packed)
    assert (made.N, made.K, made.kind, made.gated) == (expected.N, expected.K, kind, False)
    assert torch.equal(made.data, expected.data)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("T", [0, 1, 13, 111])
def test_dx_is_a_product_with_the_columns(T: int, dtype: torch.dtype, isa: str) -> None:
    rng = torch.Generator().manual_seed(0)
    dy = torch.randn(T, 75, generator=rng).to(dtype)
    weights = [torch.randn(n, 70, generator=rng).to(dtype) for n in (45, 15, 15)]
    dx = linear(dy, linear_pack_columns(weights, KINDS[dtype]), out_dtype=F32)
    assert isinstance(dx, Tensor)
    # The gradient of (dy * y).sum(), y = x weight.T.
    x = torch.zeros(T, 70, dtype=torch.float64, requires_grad=True)
    y = reference_forward(x, torch.cat(weights))
    (exact,) = torch.autograd.grad(y, x, dy.double())
    check_budget(dx, dy.float() @ torch.cat(weights).float(), exact)
    transposed = linear_pack(torch.cat(weights).T.contiguous(), KINDS[dtype])
    assert torch.equal(dx, linear(dy, transposed, out_dtype=F32))
