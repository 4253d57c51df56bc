"""CURATRON: a ranking from comparisons of which some are missing and some are corrupted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.low_rank import Mask, Matrix, robust_low_rank
from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.schedules import drawn_opponents
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import COUNT, OPEN_HALF, POSITIVE, check_fields, checked, or_none

RANK = 2  # of Bradley and Terry's logits, w 1' - 1 w'


@dataclass(frozen=True)
class Curatron:
    """CURATRON: low-rank completion and robust PCA of the logits, so that gross errors drop out.

    opponents  duels that a response starts, in a circle drawn by lot: it meets twice as many and
               n times that are asked; None: all pairs
    clip       probabilities are taken within [clip, 1 - clip]
    tolerance  logits; an entry that is further than this from the low-rank matrix is corrupted and
               counts for nothing
    Logits of Bradley-Terry probabilities are a matrix of rank 2: it is found from the entries seen,
    and the score is the mean probability of being preferred that it gives, over all others.
    Source: Nguyen et al., arXiv:2403.02745, algorithms 1 and 2.
    """

    name: ClassVar[str] = "curatron"
    opponents: int | None = checked(None, or_none(COUNT))
    clip: float = checked(0.01, OPEN_HALF)
    tolerance: float = checked(1.0, POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def asks_all_pairs(self) -> bool:
        """Whether no pair is left out, however many responses there are."""
        return self.opponents is None

    def tournament(self, n: int, seed: int) -> Tournament:
        """One round."""
        board = Scoreboard(n)
        draw = keyed_random(seed, self.name, n)
        yield from board.ask(drawn_opponents(n, self.opponents, draw))
        scores: list[float | None] = [None] * n
        judged = board.judged()
        if judged:
            low, _ = self.recovered(board, judged)
            preferred = np.exp(-np.logaddexp(0, -low))
            np.fill_diagonal(preferred, 0.0)
            for k, total in zip(judged, preferred.sum(1), strict=True):
                scores[k] = float(total) / (len(judged) - 1)
        return standing(scores)

    def recovered(self, board: Scoreboard, judged: list[int]) -> tuple[Matrix, Mask]:
        """Logits of all pairs of those judged, and which of the verdicts are corrupted."""
        place = {k: at for at, k in enumerate(judged)}
        logits = np.zeros((len(judged), len(judged)))
        seen = np.eye(len(judged), dtype=bool)
        for i, j, p in board.verdicts():
            kept = min(max(p, self.clip), 1 - self.clip)
            a, b = place[i], place[j]
            logits[a, b] = np.log(kept / (1 - kept))
            logits[b, a] = -logits[a, b]
            seen[a, b] = seen[b, a] = True
        low, wrong = robust_low_rank(logits, seen, RANK, self.tolerance)
        return (low - low.T) / 2, wrong
