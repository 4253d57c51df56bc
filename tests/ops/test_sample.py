"""sample against its float64 reference: kept sets, log-probs, penalties, mixtures, ties, bits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from reference.sample import Adjustment, Distribution, adjust, distribution, inverse_cdf, mixture
from reference.sample import entropy as exact_entropy
from tolerances import CDF_ATOL, ENTROPY_RTOL, KEPT_MASS_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import LogitAdjustments, Sampled, sample

INF = math.inf
LAST = 1 - 2.0**-53  # the largest uniform there is
SIZES = (1, 2, 31, 255, 256, 257, 600)
LARGE = (49152, 151936)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top_k 1": {"top_k": 1},
    "top_k 50": {"top_k": 50},
    "top_k 300": {"top_k": 300},
    "top_p 0.5": {"top_p": 0.5},
    "top_p 0.99": {"top_p": 0.99},
    "min_p": {"min_p": 0.07},
    "top_k top_p": {"top_k": 90, "top_p": 0.8},
    "all": {"temperature": 1.6, "top_k": 120, "top_p": 0.95, "min_p": 0.02},
}


def logits_of(V: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(V, generator=torch.Generator().manual_seed(seed + V))


def draw(z: Tensor, uniform: Tensor, **settings: Any) -> Sampled:
    """Many draws from one row."""
    rows = torch.zeros(len(uniform), dtype=torch.int64)
    return sample(z[None], uniform, rows=rows, **settings)


def check_kept_set(z: Tensor, want: Distribution, **settings: Any) -> Sampled:
    """Uniforms in the middle of each kept word's probability draw exactly the kept words."""
    ids = (want.p > 0).nonzero()[:, 0]
    middle = ((want.p.cumsum(0) - want.p / 2)[ids]).clamp(max=LAST)
    got = draw(z, middle, **settings)
    assert not got.status.any()
    clear = want.p[ids] > 4 * CDF_ATOL if len(ids) < 1000 else want.p[ids] > 1e-7
    assert torch.equal(got.token_ids[clear], ids[clear])
    assert bool(want.kept[got.token_ids].all())
    ends = draw(z, torch.tensor([0.0, LAST], dtype=torch.float64), **settings).token_ids
    assert bool(want.kept[ends].all())
    assert int(ends[0]) == int(ids[0])
    torch.testing.assert_close(
        got.kept_mass, torch.full((len(ids),), want.kept_mass), rtol=KEPT_MASS_RTOL, atol=0
    )
    sampling = torch.log(want.p)[got.token_ids]
    plain = torch.log_softmax(want.z.masked_fill(~want.kept, -INF), 0)[got.token_ids]
    check_budget(got.sampling_logprobs, plain, sampling, "sampling_logprobs")
    assert float(got.sampling_logprobs.max()) <= 0
    return got


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("V", SIZES)
def test_kept_sets(V: int, name: str, isa: str) -> None:
    z = logits_of(V)
    want = distribution(z, **SETTINGS[name])
    got = check_kept_set(z, want, **SETTINGS[name])
    exact = torch.log_softmax(z.double(), 0)[got.token_ids]
    check_budget(got.logprobs[:, 0], torch.log_softmax(z, 0)[got.token_ids], exact, "logprobs")


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("V", LARGE)
def test_kept_sets_of_real_vocabularies(V: int, name: str, scale: float) -> None:
    z = logits_of(V, scale=scale)
    want = distribution(z, **SETTINGS[name])
    if scale == 3.0:  # many words are too unlikely to aim at: the kept mass tells
        got = draw(z, torch.rand(50, dtype=torch.float64), **SETTINGS[name])
        assert bool(want.kept[got.token_ids].all())
        torch.testing.assert_close(
            float(got.kept_mass[0]), want.kept_mass, rtol=KEPT_MASS_RTOL, atol=0
        )
    else:
        check_kept_set(z, want, **SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("V", [40, 700, 5000])
@pytest.mark.parametrize("step", [0.25, 2.0])
def test_massive_ties(V: int, name: str, step: float) -> None:
    """Logits on a coarse grid: of equals, the lowest ids are kept."""
    z = torch.round(logits_of(V) / step) * step
    check_kept_set(z, distribution(z, **SETTINGS[name]), **SETTINGS[name])


@pytest.mark.parametrize("V", [1, 2, 64, 256, 1024, 8192])
def test_ties_at_every_boundary(V: int) -> None:
    """Equal logits: top_k k and top_p k/V keep the words 0 .. k-1, exactly, for every k."""
    z = torch.full((V,), -1.25)
    ends = torch.tensor([0.0, LAST], dtype=torch.float64)
    for k in range(1, V + 1, max(1, V // 64)):
        for settings in ({"top_k": k}, {"top_p": k / V}, {"top_k": V, "top_p": k / V}):
            got = draw(z, ends, **settings)
            assert got.token_ids.tolist() == [0, k - 1], settings
            assert float(got.kept_mass[0]) == k / V
        above = draw(z, ends, top_p=min(1.0, (k + 0.5) / V))  # k words hold less than that
        assert above.token_ids.tolist() == [0, min(k, V - 1)]


@pytest.mark.parametrize("V", [1, 2, 64, 256, 1024, 4096])
def test_uniforms_at_exact_boundaries(V: int, isa: str) -> None:
    """Of V equal words, uniform k/V draws word k, and the double below it word k-1."""
    z = torch.full((V,), 3.5)
    k = torch.arange(V, dtype=torch.float64)
    assert torch.equal(draw(z, k / V).token_ids, torch.arange(V))
    below = torch.nextafter((k[1:] / V), torch.zeros(1, dtype=torch.float64))
    assert torch.equal(draw(z, below).token_ids, torch.arange(V - 1))
    assert int(draw(z, torch.tensor([LAST], dtype=torch.float64)).token_ids[0]) == V - 1


def test_minus_zero_equals_zero() -> None:
    z = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    ends = torch.tensor([0.0, LAST], dtype=torch.float64)
    for k in (1, 2, 3):
        assert draw(z, ends, top_k=k).token_ids.tolist() == [0, k - 1]
    got = sample(z[None], ends[:1], top_logprobs=4, temperature=0)
    assert got.top_ids is not None
    assert got.top_ids.tolist() == [[0, 1, 2, 3]]
    assert int(got.token_ids[0]) == 0


@pytest.mark.parametrize("V", [1, 2, 255, 256, 257, 1000])
def test_greedy_takes_the_lowest_of_equals(V: int, isa: str) -> None:
    for best in {0, V // 2, V - 1}:
        z = logits_of(V)
        z[best:] = z.max() + 1
        got = draw(z, torch.rand(3, dtype=torch.float64), temperature=0, top_k=3, top_p=0.2)
        assert got.token_ids.tolist() == [best] * 3
        assert got.sampling_logprobs.tolist() == [0.0] * 3
        assert got.kept_mass.tolist() == [1.0] * 3


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    z = torch.tensor([3e38, -3e38, 2e38, 3e38, 1.0])
    u = torch.linspace(0, LAST, 50, dtype=torch.float64)
    want = distribution(z, temperature)
    got = draw(z, u, temperature=temperature)
    assert torch.equal(got.token_ids, inverse_cdf(want.p, u))
    assert bool(got.sampling_logprobs.isfinite().all())


def to_csr(changes: list[list[Adjustment]]) -> LogitAdjustments:
    counts = torch.tensor([0] + [len(c) for c in changes])
    flat = list(itertools.chain.from_iterable(changes))
    columns = [torch.tensor([a[i] for a in flat], dtype=torch.float32) for i in (1, 2, 3)]
    ids = torch.tensor([a.id for a in flat], dtype=torch.int64)
    return LogitAdjustments(counts.cumsum(0), ids, *columns)


def test_penalties_by_hand() -> None:
    """repetition 2: 4 -> 2 and -1 -> -2; subtract 0.5: 1 -> 0.5; bias 3: 0 -> 3."""
    z = torch.tensor([[4.0, -1.0, 1.0, 0.0, 0.25]])
    changes = [
        Adjustment(0, repetition=2.0),
        Adjustment(1, repetition=2.0),
        Adjustment(2, subtract=0.5),
        Adjustment(3, bias=3.0),
    ]
    changed = torch.tensor([2.0, -2.0, 0.5, 3.0, 0.25])
    u = torch.linspace(0, LAST, 100, dtype=torch.float64)
    got = sample(z.expand(100, 5), u, adjustments=to_csr([changes] * 100))
    assert torch.equal(got.token_ids, inverse_cdf(torch.softmax(changed.double(), 0), u))
    exact = torch.log_softmax(changed.double(), 0)[got.token_ids]
    check_budget(
        got.sampling_logprobs, torch.log_softmax(changed, 0)[got.token_ids], exact, "sampling"
    )
    raw = torch.log_softmax(z[0].double(), 0)[got.token_ids]
    check_budget(got.logprobs[:, 0], torch.log_softmax(z[0], 0)[got.token_ids], raw, "raw")


def test_all_three_penalties_in_order() -> None:
    """(3 / 1.5 - 0.7) + 0.2 = 1.5 and (-3 * 1.5 - 0.7) + 0.2 = -5: the logit decides the way."""
    z = torch.tensor([[3.0, -3.0, 1.5]])
    changes = [Adjustment(i, 1.5, 0.7, 0.2) for i in (0, 1)]
    changed = adjust(z[0], changes)
    torch.testing.assert_close(changed, torch.tensor([1.5, -5.0, 1.5]))
    got = sample(z, torch.tensor([0.3], dtype=torch.float64), adjustments=to_csr([changes]))
    exact = torch.log_softmax(changed.double(), 0)
    assert abs(float(got.sampling_logprobs[0]) - float(exact[int(got.token_ids[0])])) < 1e-6


def test_each_draw_has_its_own_changes(isa: str) -> None:
    """-inf bias: min_tokens and banned words; draws of one row do not share them."""
    z = logits_of(300).expand(4, 300)
    best = int(z[0].argmax())
    second = int(z[0].topk(2).indices[1])
    banned = [Adjustment(best, bias=-INF)]
    u = torch.rand(4, dtype=torch.float64)
    changes = to_csr([[], banned, [], banned])
    got = sample(z[:1], u, rows=torch.zeros(4).long(), temperature=0, adjustments=changes)
    assert got.token_ids.tolist() == [best, second, best, second]
    many = torch.linspace(0, LAST, 2000, dtype=torch.float64)
    got = sample(
        z[:1],
        many,
        rows=torch.zeros(2000).long(),
        adjustments=to_csr([banned] * 2000),
        top_k=5,
    )
    want = distribution(adjust(z[0], banned), top_k=5)
    assert sorted(set(got.token_ids.tolist())) == want.kept.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    "coefficients", [(0.7, 0.3), (1.5, -0.5), (1.0, 0.0), (0.5, 0.25, 0.25), (2.0,)]
)
@pytest.mark.parametrize("name", ["plain", "all", "greedy", "top_p 0.5"])
def test_mixtures_of_models(coefficients: tuple[float, ...], name: str, isa: str) -> None:
    """(1 - a) z + a z_ref and (1 + b) z - b z_ref, with each model's own log-prob."""
    V = 600
    models = [logits_of(V, seed)[None] for seed in range(len(coefficients))]
    z = mixture([m[0] for m in models], coefficients)
    want = distribution(z, **SETTINGS[name])
    ids = (want.p > 1e-5).nonzero()[:, 0]
    middle = (want.p.cumsum(0) - want.p / 2)[ids]
    rows = torch.zeros(len(ids), dtype=torch.int64)
    got = sample(models, middle, rows=rows, coefficients=coefficients, **SETTINGS[name])
    assert torch.equal(got.token_ids, ids)
    assert got.logprobs.shape == (len(ids), len(models))
    for m, model in enumerate(models):
        exact = torch.log_softmax(model[0].double(), 0)[ids]
        check_budget(got.logprobs[:, m], torch.log_softmax(model[0], 0)[ids], exact, f"model {m}")
    exact = torch.log(want.p)[ids]
    plain = torch.log_softmax(want.z.masked_fill(~want.kept, -INF), 0)[ids]
    check_budget(got.sampling_logprobs, plain, exact, "sampling_logprobs")


@pytest.mark.parametrize("V", [*SIZES, 49152])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_entropy_and_most_likely_words(V: int, scale: float, isa: str) -> None:
    z = torch.round(logits_of(V, scale=scale) * 8) / 8
    z[V // 2 + 1 :: 3] = -INF
    k = min(V, 20)
    got = draw(z, torch.rand(2, dtype=torch.float64), entropy=True, top_logprobs=k)
    assert got.entropy is not None
    assert abs(float(got.entropy[0]) - exact_entropy(z)) < ENTROPY_RTOL * max(1.0, exact_entropy(z))
    order = torch.sort(z, descending=True, stable=True).indices[:k]
    assert got.top_ids is not None
    assert got.top_logprobs is not None
    assert got.top_ids.tolist() == [order.tolist()] * 2
    exact = torch.log_softmax(z.double(), 0)[order]
    check_budget(got.top_logprobs[1], torch.log_softmax(z, 0)[order], exact, "top_logprobs")


def test_every_word_as_most_likely_words() -> None:
    z = torch.round(logits_of(700))
    got = sample(z[None], torch.zeros(1, dtype=torch.float64), top_logprobs=700)
    assert got.top_ids is not None
    assert torch.equal(got.top_ids[0], torch.sort(z, descending=True, stable=True).indices)


def test_words_of_no_probability_are_never_drawn(isa: str) -> None:
    """-inf, and what exp makes 0 of; first, last, whole blocks."""
    z = torch.full((1100,), -INF)
    z[300:305] = 1.0
    z[700] = 1.0 - 200.0
    u = torch.linspace(0, LAST, 1000, dtype=torch.float64)
    for settings in ({}, {"top_k": 50}, {"top_p": 0.999}, {"min_p": 1e-30}, {"temperature": 3.0}):
        assert set(draw(z, u, **settings).token_ids.tolist()) == set(range(300, 305))


BAD = {
    "NaN": lambda z: z.fill_(0).index_fill_(0, torch.tensor(len(z) - 1), math.nan),
    "+inf": lambda z: z.fill_(0).index_fill_(0, torch.tensor(0), INF),
    "all -inf": lambda z: z.fill_(-INF),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("V", [1, 40, 600])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_status_of_a_row_that_is_not_finite(
    kind: str, V: int, temperature: float, isa: str
) -> None:
    good = logits_of(V)
    z = torch.stack([good, BAD[kind](torch.zeros(V)), good])
    u = torch.full((4,), 0.5, dtype=torch.float64)
    rows = torch.tensor([0, 1, 1, 2])
    got = sample(z, u, rows=rows, temperature=temperature, entropy=True, top_logprobs=1)
    assert got.status.tolist() == [0, 1, 1, 0]
    assert got.token_ids[1:3].tolist() == [-1, -1]
    for field in (got.logprobs, got.sampling_logprobs, got.kept_mass, got.entropy):
        assert field is not None
        assert field.isnan().flatten().tolist() == [False, True, True, False]
    assert got.top_ids is not None
    assert got.top_ids[1, 0] == -1
    assert int(got.token_ids[0]) == int(got.token_ids[3])
    pair = sample([z[:1], z[1:2]], u[:1], temperature=temperature)  # of the second model
    assert pair.status.tolist() == [1]


def test_status_of_changes_that_leave_nothing() -> None:
    z = torch.zeros(3, 2)
    changes = [[Adjustment(0, bias=-INF), Adjustment(1, bias=-INF)], [Adjustment(0, bias=-INF)], []]
    for temperature in (0.0, 1.0, 0.5):
        u = torch.zeros(3, dtype=torch.float64)
        got = sample(z, u, temperature=temperature, adjustments=to_csr(changes))
        assert got.status.tolist() == [1, 0, 0]
        assert got.token_ids.tolist() == [-1, 1, 0]
    z = torch.tensor([[1.0, -INF]])  # -inf times a negative coefficient
    got = sample([z, z], torch.zeros(1, dtype=torch.float64), coefficients=(1.5, -2.0))
    assert got.status.tolist() == [1]


# Bits


@pytest.mark.parametrize("V", [1, 31, 257, 5000])
def test_logprobs_are_the_bits_of_linear_logprob(V: int, isa: str) -> None:
    """With the identity as weight the products give the logits themselves."""
    z = torch.stack([logits_of(V, seed) for seed in range(3)])
    u = torch.tensor([0.1, 0.6, 0.95], dtype=torch.float64)
    got = sample(z, u)
    # logits[t, v] = hidden[t, :3] . weight[v, :3] picks z[t, v]: one product with 1, the rest 0
    scored = pe.ops.linear_logprob(torch.eye(3), z.T.contiguous(), got.token_ids)
    assert torch.equal(got.logprobs[:, 0], scored)
    assert torch.equal(got.sampling_logprobs, got.logprobs[:, 0])


def all_fields(got: Sampled) -> list[Tensor]:
    return [field for field in got if field is not None]


def mixed_batch(V: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """48 draws of every setting over 7 rows, some in a row of equals."""
    names = list(SETTINGS)
    chosen = [SETTINGS[names[(i // 2) % len(names)]] for i in range(48)]
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    settings: dict[str, Any] = {
        key: torch.tensor(
            [c.get(key, default) for c in chosen],
            dtype=torch.int64 if key == "top_k" else torch.float64,
        )
        for key, default in defaults.items()
    }
    settings["rows"] = torch.arange(48) // 7
    changes = [[Adjustment(i % V, 1.3, 0.1, 0.5)] if i % 3 == 0 else [] for i in range(48)]
    settings["adjustments"] = to_csr(changes)
    z = torch.stack([logits_of(V, seed) for seed in range(7)])
    u = torch.rand(48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return z, u, settings


@pytest.mark.parametrize("V", [2, 700, 5000])
def test_a_draw_alone_equals_it_in_a_batch(V: int, isa: str) -> None:
    z, u, settings = mixed_batch(V)
    together = sample(z, u, entropy=True, top_logprobs=2, **settings)
    for b in range(48):
        a = settings["adjustments"]
        span = slice(int(a.offsets[b]), int(a.offsets[b + 1]))
        alone = {k: v[b : b + 1] for k, v in settings.items() if k not in ("rows", "adjustments")}
        offsets = torch.tensor([0, span.stop - span.start])
        changes = LogitAdjustments(offsets, *(column[span] for column in a[1:]))
        row = z[int(settings["rows"][b])][None]
        got = sample(row, u[b : b + 1], entropy=True, top_logprobs=2, adjustments=changes, **alone)
        for x, y in zip(all_fields(got), all_fields(together), strict=True):
            assert torch.equal(x[0], y[b])


@pytest.mark.parametrize("V", [700, 49152])
def test_same_bits_with_one_and_two_threads(V: int, restore_threads: None) -> None:
    z, u, settings = mixed_batch(V)
    runs = []
    for threads in (1, 2, 2):
        pe.set_num_threads(threads)
        runs.append(all_fields(sample(z, u, entropy=True, top_logprobs=2, **settings)))
    for fields in zip(*runs, strict=True):
        assert torch.equal(fields[0], fields[1])
        assert torch.equal(fields[1], fields[2])


@pytest.mark.parametrize("V", [33, 700, 49152])
def test_same_bits_on_every_instruction_set_with_fma(V: int, restore_isa: None) -> None:
    z, u, settings = mixed_batch(V)
    runs = []
    for name in _C.available_isas():
        _C.set_isa(name)
        runs.append(all_fields(sample(z, u, entropy=True, top_logprobs=2, **settings)))
    for run in runs[2:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[1], run, strict=True))
    assert torch.equal(runs[0][0], runs[-1][0])  # here the baseline draws the same tokens


def test_strided_rows_and_no_draws() -> None:
    z = torch.randn(3, 90)
    u = torch.rand(3, dtype=torch.float64)
    for x, y in zip(
        all_fields(sample(z[:, :40], u)), all_fields(sample(z[:, :40].clone(), u)), strict=True
    ):
        assert torch.equal(x, y)
    assert sample(z, u[:0], rows=torch.zeros(0).long()).token_ids.shape == (0,)
