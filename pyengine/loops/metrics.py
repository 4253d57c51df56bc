"""A round's report on its samples, rewards and updates, under the names TRL's users know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pyengine.loops.reward_spread import spread_metrics

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group, Preferences
    from pyengine.preferences.pairings.pairing import Pairs
    from pyengine.preferences.subset import Unit

# Metrics that say where the optimizer is; the others are averaged over the updates of a round.
_LAST_VALUE = frozenset({"lr", "step"})
# Metrics that count events are summed.
_SUMMED = frozenset({"skipped"})


def sample_metrics(
    groups: Sequence[Group], reference_logprobs: Sequence[Sequence[float]] | None
) -> dict[str, float | None]:
    """Statistics of sampled responses under the policy that drew them; of those that another model
    drew, or that are given, there are none.

    objective/kl       mean over responses of sum_t (log pi - log pi_ref); absent without a
                       reference
    objective/entropy  mean over responses of -sum_t log pi: a one-sample estimate of the
                       sequence entropy

    groups              responses with `logprobs`
    reference_logprobs  [group][response] sums of the reference's token log-probs
    """
    places = [
        (g, k)
        for g, group in enumerate(groups)
        for k, response in enumerate(group.responses)
        if response.origin in (None, "policy")
    ]
    if not places:
        return {}
    responses = [groups[g].responses[k] for g, k in places]
    policy = [math.fsum(r.logprobs or ()) for r in responses]
    lengths = [len(r.token_ids) for r in responses]
    stopped = [r.finish_reason == "stop" for r in responses]
    n = len(responses)
    metrics: dict[str, float | None] = {}
    if reference_logprobs is not None:
        reference = [reference_logprobs[g][k] for g, k in places]
        metrics["objective/kl"] = (
            math.fsum(p - q for p, q in zip(policy, reference, strict=True)) / n
        )
    metrics |= {
        "objective/entropy": -math.fsum(policy) / n,
        "val/contain_eos_token": sum(stopped) / n,
        "completions/mean_length": sum(lengths) / n,
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
    }
    return metrics


def feedback_metrics(groups: Sequence[Group], feedback: Feedback) -> dict[str, float | int | None]:
    """Mean reward of the round ("objective/scores"), and every counter of the source: what became
    of the responses, and under "judge/" what it counted of itself. See spread_metrics for more."""
    valid = [r for row in feedback.rewards for r in row if r is not None]
    mean = math.fsum(valid) / len(valid) if valid else None
    metrics: dict[str, float | int | None] = {
        "objective/scores": mean,
        "objective/scores_std": _std(valid, mean),
        "reward/valid_fraction": feedback.valid_fraction,
        **spread_metrics(groups, feedback),
    }
    if len(feedback.components) > 1:  # each function's own mean and spread
        metrics |= {k: v for k, v in feedback.metrics().items() if k.startswith("rewards/")}
    metrics |= {f"reward/{name}": count for name, count in feedback.counts.items()}
    metrics |= {f"judge/{name}": count for name, count in feedback.counts_by_name.items()}
    return metrics


def pair_metrics(feedback: Feedback, pairs: Pairs) -> dict[str, float | int | None]:
    """Every counter of pairing and selection.

    objective/scores_margin is the mean reward difference between winners and losers; None without
    a pair.
    """
    rewards = feedback.rewards
    sides = [(rewards[c.group][c.winner], rewards[c.group][c.loser]) for c in pairs.comparisons]
    gaps = [won - lost for won, lost in sides if won is not None and lost is not None]
    margin = math.fsum(gaps) / len(gaps) if gaps else None
    metrics: dict[str, float | int | None] = {"objective/scores_margin": margin}
    return metrics | {f"pairs/{name}": count for name, count in pairs.counts.items()}


def batch_metrics(batch: Preferences, unit: Unit) -> dict[str, float | int | None]:
    """Of comparisons that are learned from: "pairs/pairs", how many have a positive weight, and the
    mean tokens of their winners and losers, "completions/chosen_length" and ".../rejected_length".

    Winners that are longer than their losers teach length.

    unit  what the objective learns from; of others there is nothing to say
    """
    if unit != "comparison":
        return {}
    used = [c for c in batch.comparisons if c.weight > 0]
    metrics: dict[str, float | int | None] = {"pairs/pairs": len(used)}
    for side, name in (("winner", "chosen"), ("loser", "rejected")):
        lengths = [len(batch.groups[c.group].responses[getattr(c, side)].token_ids) for c in used]
        mean = sum(lengths) / len(lengths) if lengths else None
        metrics[f"completions/{name}_length"] = mean
    return metrics


def mean_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One value a metric over a round's updates; the learning rate is the last update's."""
    if not updates:
        return {}
    merged: dict[str, float] = {}
    for name in updates[-1]:
        values = [u[name] for u in updates if name in u]
        if name in _LAST_VALUE:
            merged[name] = values[-1]
        elif name in _SUMMED:
            merged[name] = sum(values)
        else:
            merged[name] = math.fsum(values) / len(values)
    return merged


def _std(values: Sequence[float], mean: float | None) -> float | None:
    if mean is None or len(values) < 2:
        return None
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
