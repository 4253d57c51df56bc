"""Random numbers that depend on a seed and on what they are drawn for, and on nothing else."""

from __future__ import annotations

import hashlib
import random

from pyengine.preferences.groups import Group


def keyed(seed: int, *what: object) -> random.Random:
    """A generator keyed by a seed and by numbers, texts and tuples of them.

    It is the same in every process and whatever was drawn before, so that a run that was killed
    draws again what it drew.
    """
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def content(group: Group) -> tuple[object, ...]:
    """A group's tokens as a key: draws keyed by it do not depend on the groups beside it."""
    return tuple(group.prompt_ids), tuple(tuple(r.token_ids) for r in group.responses)
