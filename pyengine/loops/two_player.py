"""Two players: the policy's samples against those of a mixture of policy and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.duels import DuelSource
from pyengine.loops.exploring import explores
from pyengine.loops.loop import Report
from pyengine.loops.opponents import (
    OPPONENT,
    against_opponent,
    ours_alone,
    preferred,
)
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.loops.prompted_checks import check_counts, check_fraction
from pyengine.loops.rehearsal import made_up_group
from pyengine.preferences.groups import Comparison, Preferences
from pyengine.samplers.joining import joined, with_origin

if TYPE_CHECKING:
    from pyengine.preferences.comparators.comparator import Comparator
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


class TwoPlayer(Prompted):
    """A round samples y from the policy and y' from the opponent, sampling.n of each to a prompt,
    asks which is preferred, and takes one step.

    source             judges both players' responses: P(y > y') is the mean of the preference
                       matrix over the opponent's, or of rewards 1, 1/2 or 0. None with a
                       comparator, which then needs an eval_source to evaluate with
    comparator         is asked only for the duels of sample k against sample k; None: the source
    objective          of responses, the policy's alone, whose reward is P(y > y'): NashMD; or of
                       comparisons: sample k against sample k, the preferred one first. Objectives
                       that take a response to explore (XPO) get the opponent's
    mixture            c: the opponent's tokens are drawn from policy^(1 - c) reference^c; 0: the
                       policy itself, 1: the reference
    updates_per_round  optimizer steps on each round's batch
    others             see Prompted

    Source: Munos et al., arXiv:2312.00886, section 7; Xie et al., arXiv:2405.21046 (mixture 1).
    """

    name: ClassVar[str] = "two_player"
    draws_itself: ClassVar[bool] = True

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source | None,
        objective: Any,
        sampling: Any,
        *,
        comparator: Comparator | None = None,
        mixture: float = 0.125,
        updates_per_round: int = 1,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.mixture, self.comparator = mixture, comparator
        self.updates_per_round = self.epochs = updates_per_round
        check_fraction(self, "mixture")
        check_counts(self, updates_per_round=1)
        if mixture and not engine.has_reference:
            raise ConfigError(
                f"[TwoPlayer] mixture must be 0 where the engine has no reference but is {mixture}"
            )
        asked: Source | None = source if comparator is None else DuelSource(comparator)
        if asked is None:
            raise ConfigError("[TwoPlayer] source or comparator must be given but neither is")
        if options.get("eval_source") is None and source is not None:
            options = {**options, "eval_source": source}
        super().__init__(engine, prompts, asked, objective, sampling, **options)

    def _fixed(self) -> dict[str, Any]:
        return super()._fixed() | {"mixture": self.mixture}

    def _made_up(self, index: int) -> Group:
        n = self.sampling.n
        group = made_up_group(index, 2 * n)
        for response in group.responses[n:]:
            response.origin = OPPONENT
        return group

    def _samples(self, indices: Sequence[int], first: int) -> tuple[list[Group], list[int]]:
        ours = self._drawn(indices, first)
        models: Mapping[str, float] | None = {"policy": 1 - self.mixture, "reference": self.mixture}
        if self.mixture in (0, 1):
            models = {"reference": 1.0} if self.mixture else None
        theirs = self._drawn(indices, first, models=models, draw=1)
        return joined(ours, with_origin(theirs, OPPONENT)), list(indices)

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        rates = against_opponent(groups, feedback)
        ours = [
            rate
            for group, row in zip(groups, rates, strict=True)
            for response, rate in zip(group.responses, row, strict=True)
            if response.origin != OPPONENT and rate is not None
        ]
        report: Report = {"two_player/win_rate": sum(ours) / len(ours) if ours else None}
        if self.objective.unit != "comparison":
            return Preferences(groups, (), ours_alone(groups, feedback)), report
        comparisons, counts = self._comparisons(groups, feedback)
        report |= {f"pairs/{name}": count for name, count in counts.items()}
        return Preferences(groups, comparisons, feedback), report

    def _comparisons(
        self, groups: Sequence[Group], feedback: Feedback
    ) -> tuple[list[Comparison], dict[str, int]]:
        """Sample k against sample k; what has no verdict, or no winner, is counted."""
        counts = dict.fromkeys(("ties", "equal", "failed"), 0)
        takes_one = explores(self.objective)
        found = []
        for g, group in enumerate(groups):
            n = len(group.responses) // 2
            for k in range(n):
                p = preferred(feedback, g, k, n + k)
                a, b = group.responses[k], group.responses[n + k]
                if p is None or not a.token_ids or not b.token_ids:
                    counts["failed"] += 1
                elif p == 0.5:
                    counts["ties"] += 1
                elif a.token_ids == b.token_ids:
                    counts["equal"] += 1
                else:
                    winner, loser = (k, n + k) if p > 0.5 else (n + k, k)
                    explored = ((g, n + k),) if takes_one else ()
                    found.append(Comparison(g, winner, loser, auxiliary=explored))
        return found, counts
