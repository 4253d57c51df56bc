"""Two models on the same prompts: who wins how often, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from pyengine.errors import RewardError
from pyengine.evaluation.standard_errors import mean_and_error
from pyengine.loops.evaluate import Evaluation


@dataclass(frozen=True)
class HeadToHead:
    """Sample k of the first model against sample k of the second, prompt by prompt.

    wins, losses, ties  pairs in which the first's reward is higher, lower, equal
    failed          pairs in which one has no reward: the source abstained or failed
    shares          what the first wins of each prompt's pairs that have both rewards, a tie being
                    half a win; None where a prompt has no such pair
    win_rate        mean of the shares
    standard_error  of that mean, over prompts (pairs of one prompt are not independent); None for
                    one prompt
    gain            mean difference of rewards, first less second, and its error, paired by prompt
    """

    wins: int
    losses: int
    ties: int
    failed: int
    shares: list[float | None]
    win_rate: float
    standard_error: float | None
    gain: tuple[float, float | None]


def head_to_head(first: Evaluation, second: Evaluation) -> HeadToHead:
    """Compares two evaluations of the same prompts, with as many samples each.

    Raises
        ConfigError  the prompts differ
        RewardError  no pair has both rewards
    """
    first.check_same_prompts(second, "head_to_head")
    rows = [
        [_score(a, b) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(first.rewards, second.rewards, strict=True)
    ]
    scores = [score for row in rows for score in row]
    shares = [_mean([score for score in row if score is not None]) for row in rows]
    known = [share for share in shares if share is not None]
    if not known:
        raise RewardError(
            f"[head_to_head] at least one pair of samples must have both rewards but 0 of "
            f"{len(scores)} have"
        )
    rate, error = mean_and_error(known)
    return HeadToHead(
        wins=scores.count(1.0),
        losses=scores.count(0.0),
        ties=scores.count(0.5),
        failed=scores.count(None),
        shares=shares,
        win_rate=rate,
        standard_error=error,
        gain=first.gain_over(second),
    )


def _score(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
