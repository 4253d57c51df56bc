"""Random draws that are functions of a key alone: of a seed, of tokens, of what is compared.

The same key draws the same in any process, batch and order of calls, so a run that was killed and
resumed draws what the uninterrupted one did.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from pyengine.preferences.groups import Group


def keyed_random(*key: Any) -> random.Random:
    """A generator for integers, strings and nested lists of them; many draws of one key."""
    return random.Random(int.from_bytes(_digest(key), "big"))


def keyed_uniforms(*key: Any) -> tuple[float, float, float, float]:
    """Four numbers in [0, 1) from one digest, each of 53 bits."""
    digest = _digest(key)
    words = (int.from_bytes(digest[at : at + 8], "big") >> 11 for at in (0, 8, 16, 24))
    a, b, c, d = (word / 2**53 for word in words)
    return a, b, c, d


def content(group: Group) -> tuple[list[int], list[list[int]]]:
    """A group's tokens as a key: draws keyed by it do not depend on the groups beside it."""
    return group.prompt_ids, [response.token_ids for response in group.responses]


def _digest(key: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).digest()
