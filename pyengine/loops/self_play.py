"""Self-play: the policy, or answers that are given, against the policy's own past."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.gold import given_response
from pyengine.loops.iterates import BASE, keep_base, last_iterates
from pyengine.loops.iterative import Iterative
from pyengine.loops.loop import Report
from pyengine.loops.opponents import OPPONENT, win_rates
from pyengine.loops.prompted import PromptedOptions
from pyengine.loops.prompted_checks import check_choice, check_counts, check_fraction
from pyengine.samplers.joining import joined, with_origin

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group, Preferences
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection
    from pyengine.preferences.sources.source import Source

_AVERAGE = "opponent"


class SelfPlay(Iterative):
    """Iterations in which one side is the policy or given answers, and the other an opponent made
    of the policy's past.

    opponent  what samples: "last": the policy of before the iteration, pi_t; "mixture": tokens from
              pi_t^(1 - mixture) pi_0^mixture; "average": the mean of the weights of the iterates
              pi_0 ... pi_t; "uniform": each prompt's from one of them, drawn alike
    mixture   share of pi_0 in the mixture, in [0, 1]
    history   how many of the newest iterates "average" and "uniform" take; None: all. Each is a
              snapshot on disk
    gold      the column of given responses, text or messages: each is the first of its group,
              before the opponent's samples (preferences' ByOrigin as source lets it win). None: the
              policy's own sampling.n samples play. The opponent "last" is the policy itself then,
              and a group's samples play each other
    reference_policy, epochs, batch_size  see Iterative; the default reference is pi_t
    others    see Paired and Prompted

    Where a source compares pairs, "win_rate" is against the opponent's samples alone.
    Source: Chen et al., arXiv:2401.01335 (gold, "last"); Alami et al., arXiv:2404.04291 ("mixture",
    "uniform"); Wu et al., arXiv:2405.00675 and Zhang et al., arXiv:2407.00617 (no gold).
    """

    name: ClassVar[str] = "self_play"
    draws_itself: ClassVar[bool] = True

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        pairing: Pairing,
        objective: Any,
        sampling: Any,
        *,
        selection: Selection | None = None,
        opponent: str = "last",
        mixture: float = 0.0,
        history: int | None = None,
        gold: str | None = None,
        epochs: int = 1,
        batch_size: int | None = None,
        reference_policy: str = "last",
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.opponent, self.mixture = opponent, mixture
        self.history, self.gold = history, gold
        self._check_opponent(options)
        if opponent in ("average", "uniform"):
            self.iterates = history
        super().__init__(
            engine,
            prompts,
            source,
            pairing,
            objective,
            sampling,
            selection=selection,
            epochs=epochs,
            batch_size=batch_size,
            reference_policy=reference_policy,
            **options,
        )

    def _check_opponent(self, options: PromptedOptions) -> None:
        check_choice(self, "opponent", "last", "mixture", "average", "uniform")
        check_fraction(self, "mixture")
        if (self.mixture > 0) != (self.opponent == "mixture"):
            raise ConfigError(
                f"[SelfPlay] mixture must be > 0 with the opponent 'mixture' and 0 with others but "
                f"is {self.mixture} with {self.opponent!r}"
            )
        if self.history is not None:
            check_counts(self, history=1)
            if self.opponent not in ("average", "uniform"):
                raise ConfigError(
                    "[SelfPlay] history must be None unless the opponent is 'average' or 'uniform' "
                    f"but is {self.history} with {self.opponent!r}"
                )
        known = options.get("columns") or {}
        if self.gold is not None and self.gold not in known:
            raise ConfigError(
                f"[SelfPlay] gold must be one of the columns ({', '.join(known) or 'none'}) but is "
                f"{self.gold!r}"
            )

    def _fixed(self) -> dict[str, Any]:
        settings = ("opponent", "mixture", "history", "gold")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    @property
    def _own(self) -> int:
        """How many responses of a group come first and are not the opponent's."""
        if self.gold is not None:
            return 1
        return 0 if self.opponent == "last" else int(self.sampling.n)

    def _made_up(self, index: int) -> Group:
        made, own = super()._made_up(index), self._own
        total = own + self.sampling.n
        if own:
            sides = [*["gold" if self.gold else None] * own, *["opponent"] * self.sampling.n]
            one = made.responses[0]
            made.responses = [
                dataclasses.replace(one, token_ids=[index, *[k] * 3], origin=sides[k])
                for k in range(total)
            ]
        return made

    def _begin(self) -> None:
        super()._begin()
        if self.opponent == "mixture":
            keep_base(self.engine)
        elif self.opponent == "average":
            names = last_iterates(self.round, self.history)
            self.engine.average(names, _AVERAGE, overwrite=True)

    def _samples(self, indices: Sequence[int], first: int) -> tuple[list[Group], list[int]]:
        if self.opponent == "last" and self.gold is None:
            return super()._samples(indices, first)
        ours = self._drawn(indices, first) if self.gold is None else []
        theirs = self._opponents(indices, first)
        if self.opponent != "last":
            theirs = with_origin(theirs, OPPONENT)
        if self.gold is None:
            return joined(ours, theirs), list(indices)
        for i, group in zip(indices, theirs, strict=True):
            group.responses.insert(0, given_response(self, self.gold, i))
        return theirs, list(indices)

    def _opponents(self, indices: Sequence[int], first: int) -> list[Group]:
        """The opponent's samples, with random numbers that are not the policy's."""
        if self.opponent != "uniform":
            models: Mapping[str, float] | None = {
                "last": None,
                "mixture": {"policy": 1 - self.mixture, BASE: self.mixture},
                "average": {_AVERAGE: 1.0},
            }[self.opponent]
            if self.mixture == 1:
                models = {BASE: 1.0}
            return self._drawn(indices, first, models=models, draw=1)
        names = last_iterates(self.round, self.history)
        drawn = [names[self._draw(first + k) % len(names)] for k in range(len(indices))]
        groups: dict[int, Group] = {}
        for name in dict.fromkeys(drawn):
            # Each request keeps the id of its place, whichever iterate it is asked of.
            counts = [self.sampling.n if each == name else 0 for each in drawn]
            found = self._drawn(indices, first, counts=counts, models={name: 1.0}, draw=1)
            groups |= zip([k for k, count in enumerate(counts) if count], found, strict=True)
        return [groups[k] for k in range(len(indices))]

    def _draw(self, request: int) -> int:
        digest = hashlib.sha256(f"opponent/{self.seed}/{request}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        if self._own and self.gold is None:
            feedback = win_rates(groups, feedback)
        return super()._batch(groups, feedback)
