"""Which sampled responses are good enough to imitate, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group


def kept_rewards(
    groups: Sequence[Group],
    feedback: Feedback,
    *,
    above: float | Sequence[float | None] | None,
    best: int | None,
    dedupe: bool,
) -> tuple[list[list[float | None]], dict[str, int]]:
    """Rewards of the responses that are kept, None in the place of the others, and counts.

    above   a reward must be greater than this, of each group or of all; None: any
    best    at most so many of a prompt, those of the highest rewards, of equals the first; None:
            all
    dedupe  of responses with the same tokens only the first of the best is kept

    Counts: "kept"; "below" not above; "duplicates"; "beyond" the best; "failed" without a reward or
    without tokens; "prompts" with something kept.
    """
    counts = dict.fromkeys(("kept", "below", "duplicates", "beyond", "failed", "prompts"), 0)
    table = []
    limits = above if isinstance(above, Sequence) else [above] * len(groups)
    for group, row, limit in zip(groups, feedback.rewards, limits, strict=True):
        kept = _kept(group, row, limit, best, dedupe, counts)
        counts["kept"] += len(kept)
        counts["prompts"] += bool(kept)
        table.append([reward if k in kept else None for k, reward in enumerate(row)])
    return table, counts


def _kept(
    group: Group,
    rewards: Sequence[float | None],
    above: float | None,
    best: int | None,
    dedupe: bool,
    counts: dict[str, int],
) -> set[int]:
    valid = {
        k: reward
        for k, reward in enumerate(rewards)
        if reward is not None and group.responses[k].token_ids
    }
    counts["failed"] += len(rewards) - len(valid)
    good = [k for k, reward in valid.items() if above is None or reward > above]
    counts["below"] += len(valid) - len(good)
    order = sorted(good, key=lambda k: (-valid[k], k))
    if dedupe:
        first: dict[tuple[int, ...], int] = {}
        for k in order:
            first.setdefault(tuple(group.responses[k].token_ids), k)
        counts["duplicates"] += len(order) - len(first)
        order = list(first.values())
    counts["beyond"] += len(order[best:]) if best is not None else 0
    return set(order[:best])
