"""Loops over prompts on an engine without a model, made alike."""

from __future__ import annotations

import hashlib

from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.preferences import BestWorst, Feedback

PROMPTS = [f"prompt {i}" for i in range(6)]


def number(*parts) -> float:
    """In (0, 1), the same for the same parts, and never the same for others."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class ByDigest:
    """Rewards that no two responses share."""

    name = "by_digest"

    def __call__(self, groups):
        return Feedback.from_rewards(
            [
                [number(group.prompt, k, r.token_ids) for k, r in enumerate(group.responses)]
                for group in groups
            ]
        )


def make(cls, objective, engine=None, pairing=None, **changes):
    """The loop on a new fake engine, with three prompts a round and four samples each."""
    settings = {
        "source": ByDigest(),
        "objective": objective,
        "sampling": SamplingParams(n=4, max_tokens=6, seed=2),
        "prompts_per_round": 3,
    } | changes
    if "pairing" in cls.__init__.__annotations__:
        settings["pairing"] = pairing or BestWorst()
    return cls(engine or FakeEngine(), settings.pop("prompts", PROMPTS), **settings)


def named(engine, kind):
    """The calls of one kind, without it."""
    return [call[1:] for call in engine.calls if call[0] == kind]


def kinds(engine):
    """What was called, in order, each run of equal calls once."""
    found = []
    for call in engine.calls:
        if not found or found[-1] != call[0]:
            found.append(call[0])
    return found
