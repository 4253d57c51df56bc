"""Pairing: from rewards of a group's responses to comparisons between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group


@dataclass
class Pairs:
    """Comparisons into the groups, and why others were not made.

    counts  "ties" not more than min_margin apart; "equal" the same tokens with
            different rewards; "too_few" groups with fewer than two responses that have tokens
            and a reward; "capped" pairs beyond max_pairs
    """

    comparisons: list[Comparison]
    counts: dict[str, int] = field(default_factory=dict)


class Pairing(Protocol):
    """A rule that picks which responses of each group are compared."""

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs: ...


@dataclass(frozen=True)
class BestWorst:
    """The best response of a group against its worst; the first of equals.

    min_margin  the reward difference must be greater than this, or the group is a tie
    """

    min_margin: float = 0.0

    def __post_init__(self) -> None:
        _check_min_margin("BestWorst", self.min_margin)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """At most one comparison a group; its margin is the reward difference."""
        counts = dict.fromkeys(("ties", "equal", "too_few"), 0)
        comparisons = []
        for g, rewards in enumerate(_valid_rewards("BestWorst", groups, feedback)):
            if len(rewards) < 2:
                counts["too_few"] += 1
                continue
            best = max(rewards, key=lambda k: (rewards[k], -k))
            worst = min(rewards, key=lambda k: (rewards[k], k))
            if not rewards[best] - rewards[worst] > self.min_margin:
                counts["ties"] += 1
            elif _same_tokens(groups[g], best, worst):
                counts["equal"] += 1
            else:
                comparisons.append(_comparison(g, best, worst, rewards))
        return Pairs(comparisons, counts)


@dataclass(frozen=True)
class AllPairs:
    """Every two responses of a group whose rewards differ, the widest margins first.

    min_margin  the reward difference must be greater than this, or the pair is a tie
    max_pairs   comparisons kept per group; None keeps all
    """

    min_margin: float = 0.0
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        _check_min_margin("AllPairs", self.min_margin)
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"[AllPairs] max_pairs must be >= 1 or None but is {self.max_pairs}")

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """Comparisons group by group; the margin of each is the reward difference."""
        counts = Counter(dict.fromkeys(("ties", "equal", "too_few", "capped"), 0))
        comparisons: list[Comparison] = []
        for g, rewards in enumerate(_valid_rewards("AllPairs", groups, feedback)):
            if len(rewards) < 2:
                counts["too_few"] += 1
                continue
            found = self._pairs_of(groups[g], g, rewards, counts)
            kept = found[: self.max_pairs]
            counts["capped"] += len(found) - len(kept)
            comparisons += kept
        return Pairs(comparisons, dict(counts))

    def _pairs_of(
        self, group: Group, g: int, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Comparison]:
        found = []
        order = sorted(rewards, key=lambda k: (-rewards[k], k))
        for i, winner in enumerate(order):
            for loser in order[i + 1 :]:
                if not rewards[winner] - rewards[loser] > self.min_margin:
                    counts["ties"] += 1
                elif _same_tokens(group, winner, loser):
                    counts["equal"] += 1
                else:
                    found.append(_comparison(g, winner, loser, rewards))
        return sorted(found, key=lambda c: (-(c.margin or 0.0), c.winner, c.loser))


def _valid_rewards(who: str, groups: Sequence[Group], feedback: Feedback) -> list[dict[int, float]]:
    """Per group: response index -> reward, of the responses that have tokens and a reward."""
    sizes = [len(group.responses) for group in groups]
    given = [len(row) for row in feedback.rewards]
    if sizes != given:
        raise RequestError(
            f"[{who}] feedback must have one reward per response, {sizes} a group, but has {given}"
        )
    return [
        {
            k: reward
            for k, (response, reward) in enumerate(zip(group.responses, row, strict=True))
            if reward is not None and response.token_ids
        }
        for group, row in zip(groups, feedback.rewards, strict=True)
    ]


def _comparison(g: int, winner: int, loser: int, rewards: dict[int, float]) -> Comparison:
    return Comparison(g, winner, loser, margin=rewards[winner] - rewards[loser])


def _same_tokens(group: Group, a: int, b: int) -> bool:
    return list(group.responses[a].token_ids) == list(group.responses[b].token_ids)


def _check_min_margin(who: str, min_margin: float) -> None:
    if not 0.0 <= min_margin < float("inf"):
        raise ConfigError(f"[{who}] min_margin must be finite and >= 0 but is {min_margin}")
