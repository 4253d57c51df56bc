"""listwise_loss against its float64 reference: losses, slopes, ranking, bits."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from reference.listwise_loss import listwise_loss as reference
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.objectives.lists.listwise import ranking_metrics
from pyengine.ops import ListSurrogate, ListwiseLoss, listwise_loss
from pyengine.ops.listwise_loss import ListFamily

SIZES: dict[str, list[int]] = {
    "none": [],
    "empty": [0, 0],
    "one": [1],
    "each": [0, 1, 2, 3, 4, 7, 8, 9, 0, 16, 24, 25, 33, 111, 300, 2],
    "fours": [4] * 200,
    "ones and nones": [i % 2 for i in range(900)],
}
FAMILIES = get_args(ListFamily)
each_family = pytest.mark.parametrize("family", FAMILIES)


def make(sizes: list[int], indexed: bool = False, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Sums about -50 with references some away; values in steps of 1/8, so that some are equal."""
    rng = torch.Generator().manual_seed(seed + sum(sizes))
    S, G = sum(sizes), len(sizes)
    policy = -50 + 10 * torch.randn(S, generator=rng, dtype=torch.float64)
    given = {
        "policy": policy,
        "values": torch.randint(0, 9, (S,), generator=rng).double() / 8,
        "groups": torch.tensor([0, *sizes]).cumsum(0),
        "reference": policy + 5 * torch.randn(S, generator=rng, dtype=torch.float64),
        "index": torch.randperm(S, generator=rng) if indexed else None,
        "weight": torch.rand(G, generator=rng, dtype=torch.float64),
        "beta": 0.1,
    }
    return given | more


def exact(s: ListSurrogate, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    wide = dict(given)
    for name in ("policy", "values", "reference"):
        wide[name] = None if given[name] is None else given[name].double()
    weight, policy = wide.pop("weight"), wide.pop("policy").clone().requires_grad_()
    losses = reference(s.family, policy, temperature=s.temperature, mean=s.mean, **wide)
    (slopes,) = torch.autograd.grad(
        losses, policy, weight, materialize_grads=True, allow_unused=True
    )
    return losses.detach(), slopes


def check(s: ListSurrogate, given: dict[str, Any]) -> None:
    got = listwise_loss(s, **given)
    losses, slopes = exact(s, given)
    assert got.losses.dtype == got.dsums.dtype == torch.float64
    torch.testing.assert_close(got.losses, losses, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got.dsums, slopes, rtol=1e-10, atol=1e-13)
    assert got.ranking is None


@each_family
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_values(family: ListFamily, sizes: list[int], isa: str) -> None:
    check(ListSurrogate(family), make(sizes))


@each_family
def test_places_in_any_order(family: ListFamily, isa: str) -> None:
    check(ListSurrogate(family), make(SIZES["each"], indexed=True))


@pytest.mark.parametrize("family", ["pairs", "lambda_pairs"])
def test_the_mean_of_pairs(family: ListFamily, isa: str) -> None:
    check(ListSurrogate(family, mean=True), make(SIZES["each"]))


@pytest.mark.parametrize("family", ["infonca", "nca"])
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 7.0])
def test_temperatures(family: ListFamily, temperature: float, isa: str) -> None:
    check(ListSurrogate(family, temperature), make(SIZES["each"]))


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_and_no_reference(family: ListFamily, dtype: torch.dtype, isa: str) -> None:
    """Scores as they stand; the numbers of float32 are computed in float64."""
    given = make([4, 0, 5, 8], reference=None, beta=1.0)
    given["policy"] = (given["policy"] / 10).to(dtype)
    check(ListSurrogate(family), given | {"values": given["values"].to(dtype)})


def test_plackett_luce_by_hand() -> None:
    """Scores log 1, log 2, log 5, the order 2, 0, 1: 5/8 * 1/3. Slopes as in test_listwise.py."""
    got = listwise_loss(
        ListSurrogate("plackett_luce"),
        torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log(),
        torch.tensor([2.0, 1.0, 3.0]),
        torch.tensor([0, 3]),
    )
    assert got.losses.item() == pytest.approx(math.log(24 / 5), rel=1e-14)
    expected = [1 / 8 + 1 / 3 - 1, 2 / 8 + 2 / 3, 5 / 8 - 1]
    assert got.dsums.tolist() == pytest.approx(expected, rel=1e-13)


def test_pairs_by_hand() -> None:
    """Scores (1, 0, 0), values (2, 1, 1): 2 log(1 + e^-1); slopes -2 q, q, q, q = 1 / (1 + e)."""
    got = listwise_loss(
        ListSurrogate("pairs"),
        torch.tensor([1.0, 0.0, 0.0]),
        torch.tensor([2.0, 1.0, 1.0]),
        torch.tensor([0, 3]),
    )
    q = 1 / (1 + math.e)
    assert got.losses.item() == pytest.approx(2 * math.log1p(math.exp(-1)), rel=1e-15)
    assert got.dsums.tolist() == pytest.approx([-2 * q, q, q], rel=1e-14)


@pytest.mark.parametrize("K", [2, 8, 24, 25, 100])
def test_ties_are_by_index(K: int, isa: str) -> None:
    """All values are equal: the ranking is the order of the places."""
    policy = torch.randn(K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    groups = torch.tensor([0, K])
    s = ListSurrogate("plackett_luce")
    tied = listwise_loss(s, policy, torch.ones(K), groups, ranking=True)
    falling = listwise_loss(s, policy, -torch.arange(K).float(), groups, ranking=True)
    assert torch.equal(tied.losses, falling.losses)
    assert torch.equal(tied.dsums, falling.dsums)
    assert tied.ranking is not None
    assert tied.ranking.flatten().tolist() == [policy[0].item(), policy[-1].item(), 0.0]


@pytest.mark.parametrize("sizes", [SIZES["fours"], [1, 2, 3, 0, 5, 111]], ids=["fours", "mixed"])
def test_ranking(sizes: list[int], isa: str) -> None:
    given = make(sizes, indexed=True)
    got = listwise_loss(ListSurrogate("nca"), **given, ranking=True).ranking
    assert got is not None
    scores = 0.1 * (given["policy"] - given["reference"])
    for g, n in enumerate(sizes):
        places = given["index"][given["groups"][g] : given["groups"][g] + n]
        if n == 0:
            assert got[:, g].tolist() == [0.0, 0.0, 0.0]
            continue
        want = ranking_metrics(scores[places][None], given["values"][places][None])
        names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies")
        assert got[:, g].tolist() == pytest.approx([want[x].item() for x in names], rel=1e-7)


@each_family
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_scores_of_1e4_stay_finite(family: ListFamily, size: float, isa: str) -> None:
    given = make([4, 4], beta=1.0)
    given["policy"][1] += size
    check(ListSurrogate(family), given)
    got = listwise_loss(ListSurrogate(family), **given)
    assert bool(got.losses.isfinite().all())
    assert bool(got.dsums.isfinite().all())


@each_family
@pytest.mark.parametrize("K", [5, 40])
def test_nan_is_seen_and_stays_in_its_group(family: ListFamily, K: int, isa: str) -> None:
    given = make([K] * 3)
    given["values"] = torch.rand(3 * K, generator=torch.Generator().manual_seed(1)).double()
    given["policy"][K + 2] = torch.nan
    got = listwise_loss(ListSurrogate(family), **given, ranking=True)
    assert got.losses.isnan().tolist() == [False, True, False]
    assert bool(got.dsums[K : 2 * K].isnan().any())
    assert not bool(got.dsums[[*range(K), *range(2 * K, 3 * K)]].isnan().any())


def test_values_that_are_nan_come_first_and_crash_nothing(isa: str) -> None:
    values = torch.rand(60, generator=torch.Generator().manual_seed(1))
    values[::7] = torch.nan
    order = values.argsort(stable=True, descending=True)
    falling = torch.empty(60).scatter_(0, order, -torch.arange(60.0))
    for K in (10, 60):
        given = make([K], seed=3)
        got = [
            listwise_loss(ListSurrogate("plackett_luce"), **(given | {"values": x})).losses
            for x in (values[:K].clone(), falling[:K].clone())
        ]
        assert torch.equal(got[0], got[1])


# Bits


def same(a: ListwiseLoss, b: ListwiseLoss) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x is not None and y is not None and torch.equal(x, y) for x, y in pairs)


@each_family
def test_threads_and_instruction_sets_change_nothing(
    family: ListFamily, restore_threads: None, restore_isa: None
) -> None:
    given = make([*SIZES["each"], *SIZES["fours"] * 6, 2100], indexed=True)
    if family in ("pairs", "lambda_pairs"):
        given = make([*SIZES["each"], *SIZES["fours"] * 6], indexed=True)
    s = ListSurrogate(family)
    pe.set_num_threads(1)
    _C.set_isa("baseline")
    one = listwise_loss(s, **given, ranking=True)
    for isa in _C.available_isas():
        _C.set_isa(isa)
        for threads in (1, 2, 3):
            pe.set_num_threads(threads)
            assert same(one, listwise_loss(s, **given, ranking=True))


@each_family
def test_a_group_does_not_depend_on_the_others(family: ListFamily, isa: str) -> None:
    sizes = SIZES["each"]
    given = make(sizes)
    together = listwise_loss(ListSurrogate(family, mean=True), **given)
    for g, n in enumerate(sizes):
        part = slice(int(given["groups"][g]), int(given["groups"][g + 1]))
        alone = listwise_loss(
            ListSurrogate(family, mean=True),
            given["policy"][part].clone(),
            given["values"][part],
            torch.tensor([0, n]),
            reference=given["reference"][part],
            weight=given["weight"][g : g + 1],
            beta=0.1,
        )
        assert torch.equal(alone.losses[0], together.losses[g])
        assert torch.equal(alone.dsums, together.dsums[part])


def test_both_ways_of_reading(reading: str) -> None:
    given = make([3, 4], ranking=True)
    kept = given | {"policy": torch.nn.Parameter(given["policy"])}
    s = ListSurrogate("infonca")
    assert same(listwise_loss(s, **kept), listwise_loss(s, **given))


# Checks

SEVEN, TWO = torch.zeros(7), torch.zeros(2).double()
GIVEN: dict[str, Any] = {
    "surrogate": ListSurrogate("infonca"), "policy": SEVEN, "values": SEVEN,
    "groups": torch.tensor([0, 3, 7]), "reference": SEVEN, "index": torch.arange(7), "weight": TWO,
}  # fmt: skip


def of(**changes: Any) -> dict[str, Any]:
    return {"surrogate": ListSurrogate("infonca")._replace(**changes)}


TWICE = torch.tensor([0, 1, 2, 3, 4, 5, 5])
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"policy": [1.0]}, TypeError, r"policy must be a torch.Tensor but is list"),
    ({"policy": SEVEN.bfloat16()}, TypeError, r"policy must be float32 or float64 but is bfloat16"),
    ({"policy": SEVEN[None]}, ValueError, r"policy must have shape \(S,\) but got \(1, 7\)"),
    ({"policy": torch.zeros(14)[::2]}, ValueError, r"policy must be contiguous but its stride"),
    ({"reference": SEVEN[:6]}, ValueError, r"reference must have shape \(S,\) = \(7,\) but got"),
    ({"values": SEVEN[:6]}, ValueError, r"values must have shape \(S,\) = \(7,\) but got \(6,\)"),
    ({"values": SEVEN.int()}, TypeError, r"values must be float32 or float64 but is int32"),
    ({"groups": torch.tensor([0, 8])}, ValueError, r"groups must rise from 0 to S = 7"),
    ({"groups": torch.tensor([0, 5, 4, 7])}, ValueError, r"groups must rise from 0 to S = 7"),
    ({"groups": torch.zeros(1, 3).long()}, ValueError, r"groups must have shape \(G \+ 1,\) but"),
    ({"groups": None}, TypeError, r"groups must be a torch.Tensor but is NoneType"),
    ({"index": torch.arange(6)}, ValueError, r"index must have shape \(S,\) = \(7,\) but got"),
    ({"index": torch.arange(7) + 1}, ValueError, r"index must be in \[0, 7\) but is 7 at 6"),
    ({"index": TWICE}, ValueError, r"index must have every response once but has 5 twice"),
    ({"index": SEVEN}, TypeError, r"index must be int64 but is float32"),
    ({"weight": TWO.float()}, TypeError, r"weight must be float64 but is float32"),
    ({"weight": SEVEN.double()}, ValueError, r"weight must have shape \(G,\) = \(2,\) but got"),
    ({"beta": math.inf}, ValueError, r"beta must be finite but is inf"),
    (of(temperature=0.0), ValueError, r"temperature must be > 0 and finite but is 0.0"),
    (of(family="x"), ValueError, r"family must be one of plackett_luce, softmax, infonca, nca, pa"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_checks(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"^\[listwise_loss\] " + message):
        listwise_loss(**(GIVEN | changes))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, TWO.float(), r"losses must be float64 but is float32"),
        (1, TWO, r"dsums must have shape \(S,\) = \(7,\) but got \(2,\)"),
        (2, TWO[None], r"ranking must have shape \(3, G\) = \(3, 2\) but got \(1, 2\)"),
    ],
)
def test_output_checks(place: int, value: Any, message: str) -> None:
    outputs: list[Any] = [TWO.clone(), SEVEN.double(), None]
    outputs[place] = value
    with pytest.raises((TypeError, ValueError), match=message):
        _C.listwise_loss(
            SEVEN, None, SEVEN, GIVEN["groups"], None, None, "infonca", 1.0, 1.0, False, *outputs
        )


def test_the_cpu_takes_no_workspace() -> None:
    losses, dsums, workspace = TWO.clone(), SEVEN.double(), torch.zeros(8)
    with pytest.raises(ValueError, match="workspace must be None on the CPU"):
        _C.listwise_loss(
            SEVEN, None, SEVEN, GIVEN["groups"], None, None, "infonca", 1.0, 1.0, False,
            losses, dsums, None, workspace,
        )  # fmt: skip


# On a GPU


def on_gpu(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in given.items()}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_family
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_gpu_gives_the_same_bits(family: ListFamily, mean: bool, sizes: list[int]) -> None:
    given = make(sizes, indexed=True)
    s = ListSurrogate(family, 0.7, mean)
    there = listwise_loss(s, **on_gpu(given), ranking=True)
    ours = ListwiseLoss(*(None if x is None else x.cpu() for x in there))
    assert same(ours, listwise_loss(s, **given, ranking=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_family
def test_a_gpu_does_without_what_may_be_left_out(family: ListFamily) -> None:
    given = make([4, 0, 5, 8], reference=None, weight=None)
    there = listwise_loss(ListSurrogate(family), **on_gpu(given))
    here = listwise_loss(ListSurrogate(family), **given)
    assert there.ranking is None
    assert torch.equal(there.losses.cpu(), here.losses)
    assert torch.equal(there.dsums.cpu(), here.dsums)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["values", "groups", "reference", "index", "weight"])
def test_all_on_one_device(name: str) -> None:
    message = rf"\[listwise_loss\] {name} must be on cpu like policy but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        listwise_loss(**(GIVEN | {name: GIVEN[name].cuda()}))
