"""philox_uniform in Python integers: Philox4x32-10. Source: Salmon et al., SC 2011, section 3.4."""

from __future__ import annotations

MASK = 0xFFFFFFFF


def philox4x32(
    key: tuple[int, int], counter: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Ten rounds of Philox on 32-bit words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & MASK, (low >> 32) ^ c3 ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def philox_uniform(seed: int, request: int, sample: int, position: int) -> float:
    """53 random bits over 2^53; seed keys the generator, the other three count."""
    word = philox4x32(
        (seed & MASK, seed >> 32 & MASK),
        (request & MASK, request >> 32 & MASK, sample & MASK, position & MASK),
    )
    return ((word[0] << 32 | word[1]) >> 11) / 2**53
