"""Random numbers of samplers: each a function of what it decides, and of nothing else."""

from __future__ import annotations

import hashlib


def uniform(*key: int | str) -> float:
    """In [0, 1), the same for the same key wherever and whenever it is drawn.

    key  the sampler's name, the seed, the request's id and the place in its work
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) * 2.0**-53
