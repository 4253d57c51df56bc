"""Simulated annotators: people who disagree and err, made of a gold source's rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.bradley_terry_model import preference
from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.comparators.rewards_once import RewardsOnce
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.rules import (
    COUNT,
    FLIP_RATE,
    NOT_NEGATIVE,
    WHOLE,
    Rule,
    check_fields,
    checked,
)

FLIP_RATES = Rule(
    "in [0, 0.5), or a list of such, one for each annotator",
    lambda v: (
        bool(v) and all(map(FLIP_RATE.holds, v))
        if isinstance(v, (list, tuple))
        else FLIP_RATE.holds(v)
    ),
)


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Labels of a pool of simulated annotators, drawn from gold rewards with noise and flips.

    gold         sources of the true rewards: annotator a judges by gold[a % len(gold)], so several
                 are groups of people who want different things
    annotators   how many there are. A prompt is labelled by one of them, drawn by its tokens: the
                 prompts are split among them
    votes        annotators of a prompt; P is the share of their votes, so 1 gives labels of 0 and 1
                 and all of them the pool's opinion
    flip_rate    share of labels that are turned round: of all annotators, or a list of each's
    temperature  the better one is preferred with P = sigmoid(difference / temperature); 0: always
    margin       a difference that is not greater is a tie, P = 1/2, as two equal responses are
    seed         with prompt and responses the key of every draw: a pair has one label, in whatever
                 order, round or run it is asked for
    Source: Dubois et al., arXiv:2305.14387, section 3; groups in Chakraborty et al.,
    arXiv:2402.08925.
    """

    name: ClassVar[str] = "simulated_annotator"
    gold: Any = bound("sources")
    annotators: int = checked(1, COUNT)
    votes: int = checked(1, COUNT)
    flip_rate: float | Sequence[float] = checked(0.0, FLIP_RATES)
    temperature: float = checked(0.0, NOT_NEGATIVE)
    margin: float = checked(0.0, NOT_NEGATIVE)
    seed: int = checked(0, WHOLE)
    _rewards: RewardsOnce = field(
        default_factory=RewardsOnce, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.gold, (list, tuple)) or not self.gold:
            raise ConfigError(
                f"[{self.name}] gold must be a list of at least one source but is {self.gold!r}"
            )
        if self.votes > self.annotators:
            raise ConfigError(
                f"[{self.name}] votes must be at most annotators, {self.annotators}, but is "
                f"{self.votes}"
            )
        rates = self.flip_rate
        if isinstance(rates, Sequence) and len(rates) != self.annotators:
            raise ConfigError(
                f"[{self.name}] flip_rate must have one number for each of the {self.annotators} "
                f"annotators but has {len(rates)}"
            )

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """The share of votes for the first of each pair; none where no voter knows both rewards."""
        gold, calls = self._rewards.ask(self.gold, groups)
        counts = {
            "comparisons": float(len(duels)), "calls": float(calls), "votes": 0.0, "ties": 0.0,
            "flipped": 0.0,
        }  # fmt: skip
        panels = {g: self._panel(groups[g]) for g in dict.fromkeys(g for g, _, _ in duels)}
        found = [self._share(groups[d[0]], panels[d[0]], gold, d, counts) for d in duels]
        errors = [message for feedback in gold for message in feedback.errors] if calls else []
        return Compared(found, errors[:MAX_ERRORS], counts)

    def _panel(self, group: Group) -> list[int]:
        """Who labels this prompt."""
        draw = keyed_random(self.seed, "annotators", tuple(group.prompt_ids))
        return draw.sample(range(self.annotators), self.votes)

    def _share(
        self,
        group: Group,
        panel: Sequence[int],
        gold: Sequence[Feedback],
        duel: Duel,
        counts: dict[str, float],
    ) -> float | None:
        g, i, j = duel
        one, other = group.responses[i].token_ids, group.responses[j].token_ids
        if one == other:
            counts["ties"] += 1
            return 0.5
        # One order for every draw: (j, i) gets the label of (i, j).
        turned = other < one
        if turned:
            i, j, one, other = j, i, other, one
        votes = []
        for a in panel:
            rewards = gold[a % len(gold)].rewards[g]
            key = (a, tuple(group.prompt_ids), tuple(one), tuple(other))
            vote = self._vote(a, rewards[i], rewards[j], key, counts)
            if vote is not None:
                votes.append(vote)
        counts["votes"] += len(votes)
        if not votes:
            return None
        share = math.fsum(votes) / len(votes)
        return 1 - share if turned else share

    def _vote(
        self,
        annotator: int,
        one: float | None,
        other: float | None,
        key: tuple[Any, ...],
        counts: dict[str, float],
    ) -> float | None:
        """1 for the first, 0 for the second, 1/2 of a tie."""
        if one is None or other is None:
            return None
        if abs(one - other) <= self.margin:
            counts["ties"] += 1
            return 0.5
        draw = keyed_random(self.seed, "label", *key)
        noise, flip = draw.random(), draw.random()
        wins = one > other
        if self.temperature:
            wins = noise < (preference(one, other, self.temperature) or 0.0)
        rates = self.flip_rate
        rate = rates[annotator] if isinstance(rates, Sequence) else rates
        if flip < rate:
            counts["flipped"] += 1
            wins = not wins
        return float(wins)
