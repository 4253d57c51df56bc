"""sample on a GPU: the CPU's bits, draws of the exact distribution, arguments on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.sample import Adjustment, distribution
from test_sample import LARGE, SETTINGS, all_fields, logits_of, mixed_batch, to_csr
from test_sample_draws import CASES, DRAWS, SIGNIFICANCE, case, p_value, uniforms
from torch import Tensor

from pyengine.ops import LogitAdjustments, Sampled, sample

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def on_gpu(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.cuda()
    if isinstance(given, LogitAdjustments):
        return LogitAdjustments(*(x.cuda() for x in given))
    if isinstance(given, list):
        return [on_gpu(x) for x in given]
    return given


def check_same(logits: Tensor | list[Tensor], uniform: Tensor, **settings: Any) -> Sampled:
    here = sample(logits, uniform, **settings)
    there = sample(on_gpu(logits), uniform.cuda(), **{k: on_gpu(v) for k, v in settings.items()})
    for x, y in zip(all_fields(there), all_fields(here), strict=True):
        assert torch.equal(x.cpu().nan_to_num(), y.nan_to_num())
    return there


@pytest.mark.parametrize("V", [2, 33, 700, 5000, 49152, 128256])
def test_a_gpu_gives_the_same_bits(V: int) -> None:
    z, u, settings = mixed_batch(V)
    check_same(z, u, entropy=True, top_logprobs=min(V, 5), **settings)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("V", LARGE)
def test_real_vocabularies(V: int, name: str, scale: float) -> None:
    z = logits_of(V, scale=scale)[None]
    u = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(V))
    check_same(z, u, rows=torch.zeros(20, dtype=torch.int64), **SETTINGS[name])


def test_mixtures_and_a_long_report() -> None:
    z = [torch.stack([logits_of(3000, 10 * m + r) for r in range(4)]) for m in range(3)]
    u = torch.full((4,), 0.7, dtype=torch.float64)
    changes = to_csr([[Adjustment(i, 1.3, 0.1, 0.5) for i in range(0, 3000, 7)], [], [], []])
    settings = {"coefficients": (0.5, 1.0, -0.25), "temperature": 0.8, "top_p": 0.9}
    check_same(z, u, adjustments=changes, top_logprobs=3000, entropy=True, **settings)


def test_more_draws_than_are_made_at_a_time() -> None:
    z = torch.stack([logits_of(900, seed) for seed in range(1000)])
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    first = check_same(z, u, top_p=0.9)
    again = sample(z.cuda()[500:], u.cuda()[500:], top_p=0.9)
    for x, y in zip(all_fields(first), all_fields(again), strict=True):
        assert torch.equal(x[500:], y)


@pytest.mark.parametrize("name", ["plain", "top_p 0.9", "all"])
def test_frequencies_follow_the_exact_distribution(name: str) -> None:
    z, settings, key = case(300, "flat", name)
    want = distribution(z, **settings)
    rows = torch.zeros(DRAWS, dtype=torch.int64, device="cuda")
    got = sample(z[None].cuda(), uniforms(key).cuda(), rows=rows, **settings)
    counts = torch.bincount(got.token_ids.cpu(), minlength=len(z))
    assert int(counts[~want.kept].sum()) == 0, "a draw outside the kept set"
    assert p_value(counts, want.p) > SIGNIFICANCE / len(CASES)


def test_rows_that_are_not_there_or_not_finite() -> None:
    z = torch.zeros(3, 40)
    z[1, 7] = torch.nan
    u = torch.full((4,), 0.5, dtype=torch.float64)
    rows = torch.tensor([0, 1, 3, -1])
    got = sample(z.cuda(), u.cuda(), rows=rows.cuda(), entropy=True, top_logprobs=2)
    assert got.status.tolist() == [0, 1, 1, 1]
    assert got.token_ids.tolist() == [20, -1, -1, -1]


@pytest.mark.parametrize("name", ["uniform", "rows", "top_k", "temperature"])
def test_all_on_one_device(name: str) -> None:
    given: dict[str, Any] = {
        "uniform": torch.zeros(2, dtype=torch.float64),
        "rows": torch.zeros(2, dtype=torch.int64),
        "top_k": torch.zeros(2, dtype=torch.int64),
        "temperature": torch.ones(2, dtype=torch.float64),
    }
    given[name] = given[name].cuda()
    message = rf"\[sample\] {name} must be on cpu like logits but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 5), **given)
