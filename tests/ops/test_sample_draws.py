"""Frequencies of sample's draws against exact probabilities: chi-square over 108 settings.

10^5 draws a setting, 1.08 * 10^7 in all; none may lie outside its kept set. The significance of the
whole is 1e-6 (Bonferroni: 1e-6 / 108 a setting); the draws are Philox's, so the outcome is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.sample import distribution
from torch import Tensor

from pyengine.ops import philox_uniform, sample

DRAWS = 100_000
SIGNIFICANCE = 1e-6
VOCABULARIES = (50, 300, 1000)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top_k 7": {"top_k": 7},
    "top_k 40": {"top_k": 40},
    "top_p 0.3": {"top_p": 0.3},
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.1": {"min_p": 0.1},
    "top_k top_p": {"top_k": 30, "top_p": 0.8},
    "hot top_p": {"temperature": 1.7, "top_p": 0.95},
    "cold min_p": {"temperature": 0.7, "min_p": 0.02},
    "all": {"temperature": 1.5, "top_k": 45, "top_p": 0.95, "min_p": 0.05},
}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda x: x,
    "peaked": lambda x: 3 * x,
    "ties": lambda x: torch.round(2 * x) / 2,
}
CASES = [(V, kind, name) for V in VOCABULARIES for kind in KINDS for name in SETTINGS]


def uniforms(key: int) -> Tensor:
    request = torch.arange(DRAWS)
    same = torch.zeros_like(request)
    return philox_uniform(same + key, request, same, same)


def p_value(counts: Tensor, p: Tensor) -> float:
    """Of Pearson's chi-square; words expected less than 10 times are one bin."""
    expected = p * counts.sum()
    rare = expected < 10
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    used = expected > 0
    assert int(observed[~used].sum()) == 0
    freedom = int(used.sum()) - 1
    if freedom == 0:
        return 1.0
    statistic = ((observed - expected)[used].square() / expected[used]).sum()
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), statistic / 2))


def case(V: int, kind: str, name: str) -> tuple[Tensor, dict[str, Any], int]:
    key = CASES.index((V, kind, name))
    rng = torch.Generator().manual_seed(key)
    return KINDS[kind](torch.randn(V, generator=rng)), SETTINGS[name], key


@pytest.mark.parametrize(("V", "kind", "name"), CASES)
def test_frequencies_follow_the_exact_distribution(V: int, kind: str, name: str) -> None:
    z, settings, key = case(V, kind, name)
    want = distribution(z, **settings)
    rows = torch.zeros(DRAWS, dtype=torch.int64)
    tokens = sample(z[None], uniforms(key), rows=rows, **settings).token_ids
    counts = torch.bincount(tokens, minlength=V)
    assert int(counts[~want.kept].sum()) == 0, "a draw outside the kept set"
    assert p_value(counts, want.p) > SIGNIFICANCE / len(CASES)


def test_chi_square_sees_a_small_difference() -> None:
    """The same draws against a distribution where 2 % of the likeliest word is elsewhere."""
    z, settings, key = case(50, "flat", "plain")
    p = distribution(z, **settings).p
    rows = torch.zeros(DRAWS, dtype=torch.int64)
    counts = torch.bincount(sample(z[None], uniforms(key), rows=rows).token_ids, minlength=50)
    best, worst = int(p.argmax()), int(p.argmin())
    p[worst] += 0.02 * p[best]
    p[best] *= 0.98
    assert p_value(counts, p) < SIGNIFICANCE / len(CASES)


def test_there_are_as_many_draws_as_promised() -> None:
    assert len(CASES) >= 100
    assert len(CASES) * DRAWS >= 10**7
