"""Labels turned round at a known rate: noise for methods that are to withstand it."""

from __future__ import annotations

from dataclasses import replace

from pyengine.preferences.groups import Comparison, Preferences
from pyengine.preferences.keyed_draws import keyed_uniforms


def with_flips(data: Preferences, rate: float, seed: int) -> tuple[Preferences, int]:
    """The data with a share of its labels turned round, and how many were.

    Of comparisons winner and loser change places, and a margin its sign; of labelled responses
    desirable becomes undesirable, and the reward goes with the label. Rewards of ranked lists stay.

    rate  of each label, by itself
    seed  with the tokens of prompt and responses the key of every draw: a label's fate depends on
          nothing else in the data
    Source: the noise of Ray Chowdhury et al., arXiv:2403.00409, section 2.2.
    """
    comparisons = [_turned(c) if _flips(data, c, rate, seed) else c for c in data.comparisons]
    turned = sum(a is not b for a, b in zip(comparisons, data.comparisons, strict=True))
    feedback = data.feedback
    if feedback is not None and feedback.labels is not None:
        labels = [
            [
                label != (keyed_uniforms(seed, "flip", group.prompt_ids, r.token_ids)[0] < rate)
                for label, r in zip(row, group.responses, strict=True)
            ]
            for row, group in zip(feedback.labels, data.groups, strict=True)
        ]
        turned += sum(
            a != b
            for now, then in zip(labels, feedback.labels, strict=True)
            for a, b in zip(now, then, strict=True)
        )
        rewards: list[list[float | None]] = [[float(label) for label in row] for row in labels]
        feedback = replace(feedback, labels=labels, rewards=rewards)
    return replace(data, comparisons=comparisons, feedback=feedback), turned


def _flips(data: Preferences, c: Comparison, rate: float, seed: int) -> bool:
    group = data.groups[c.group]
    pair = [group.responses[k].token_ids for k in (c.winner, c.loser)]
    return keyed_uniforms(seed, "flip", group.prompt_ids, *sorted(pair))[0] < rate


def _turned(c: Comparison) -> Comparison:
    margin = None if c.margin is None else -c.margin
    return replace(c, winner=c.loser, loser=c.winner, margin=margin)
