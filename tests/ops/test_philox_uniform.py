"""philox_uniform: published vectors, the Python reference, uniformity, batch independence."""

from __future__ import annotations

import random

import pytest
import torch
from reference.philox_uniform import philox4x32
from reference.philox_uniform import philox_uniform as reference
from torch import Tensor

import pyengine as pe

# Known answers for philox4x32 with 10 rounds, published with Random123: (key, counter, result).
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000),
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(value: int) -> int:
    """The int64 with these 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def keys(n: int, **fixed: Tensor) -> dict[str, Tensor]:
    """n keys that are 0 except for the ones given."""
    return {
        name: fixed.get(name, torch.zeros(n, dtype=torch.int64))
        for name in ("seed", "request", "sample", "position")
    }


def chi_square(u: Tensor, bins: int) -> float:
    """Of the counts in equal bins, as standard deviations from what a uniform gives."""
    counts = torch.bincount((u * bins).long(), minlength=bins).double()
    expected = u.numel() / bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = bins - 1
    return (statistic - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize(("key", "counter", "result"), KNOWN_ANSWERS)
def test_known_answers(
    key: tuple[int, ...], counter: tuple[int, ...], result: tuple[int, ...], isa: str
) -> None:
    assert philox4x32(key, counter) == result
    u = pe.ops.philox_uniform(
        torch.tensor([signed(key[1] << 32 | key[0])]),
        torch.tensor([signed(counter[1] << 32 | counter[0])]),
        torch.tensor([counter[2]]),
        torch.tensor([counter[3]]),
    )
    assert u.dtype == torch.float64
    assert float(u[0]) == ((result[0] << 32 | result[1]) >> 11) * 2.0**-53


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 111, 4099])
def test_equals_the_reference(n: int, isa: str) -> None:
    rng = random.Random(n)
    seed = [rng.randrange(-(2**63), 2**63) for _ in range(n)]
    request = [rng.randrange(-(2**63), 2**63) for _ in range(n)]
    sample = [rng.randrange(2**32) for _ in range(n)]
    position = [rng.randrange(2**32) for _ in range(n)]
    columns = [torch.tensor(c, dtype=torch.int64) for c in (seed, request, sample, position)]
    expected = [reference(*key) for key in zip(seed, request, sample, position, strict=True)]
    assert pe.ops.philox_uniform(*columns).tolist() == expected


@pytest.mark.parametrize("axis", ["seed", "request", "sample", "position"])
def test_uniform_along_every_axis(axis: str) -> None:
    """Counting up one part of the key: 2^20 draws in 256 bins, and neighbours in 32 x 32."""
    n = 1 << 20
    u = pe.ops.philox_uniform(**keys(n, **{axis: torch.arange(n)}))
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert abs(chi_square(u, 256)) < 4.0
    pairs = ((u[0::2] * 32).floor() + u[1::2]) / 32
    assert abs(chi_square(pairs, 1024)) < 4.0
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / n) ** 0.5
    # The lowest of the 53 bits are as random as the highest.
    low = (u * 2**53).long() & 255
    assert abs(chi_square(low.double() / 256, 256)) < 4.0


def test_every_part_of_the_key_matters() -> None:
    base = {"seed": 7, "request": 5, "sample": 3, "position": 2}
    draws = [base]
    for name in base:
        draws += [{**base, name: value} for value in (base[name] + 1, 1 << 20)]
    draws += [{**base, name: base[name] + (1 << 32)} for name in ("seed", "request")]
    draws += [{"seed": 5, "request": 7, "sample": 3, "position": 2}]
    columns = {name: torch.tensor([draw[name] for draw in draws]) for name in base}
    u = pe.ops.philox_uniform(**columns)
    assert len(set(u.tolist())) == len(draws)


def test_a_draw_does_not_know_its_batch(isa: str) -> None:
    rng = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, 2**31, (4099,), generator=rng) for _ in range(4)]
    u = pe.ops.philox_uniform(*columns)
    order = torch.randperm(4099, generator=rng)
    assert torch.equal(pe.ops.philox_uniform(*(c[order] for c in columns)), u[order])
    for rows in (slice(0, 1), slice(17, 18), slice(4098, 4099), slice(100, 133)):
        assert torch.equal(pe.ops.philox_uniform(*(c[rows] for c in columns)), u[rows])


def test_threads_change_nothing(restore_threads: None) -> None:
    columns = keys(4099, position=torch.arange(4099))
    pe.set_num_threads(1)
    one = pe.ops.philox_uniform(**columns)
    pe.set_num_threads(2)
    assert torch.equal(pe.ops.philox_uniform(**columns), one)


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    u = pe.ops.philox_uniform(**keys(5, position=torch.arange(5)))
    assert u.tolist() == [reference(0, 0, 0, position) for position in range(5)]
