"""Reward against KL: where a policy stands, and the frontier that several checkpoints draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pyengine.errors import RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import mean_figure, mean_or_none
from pyengine.objectives.core.kl_estimates import kl_estimate
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Response
from pyengine.rules import Rule, check_fields, checked

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class RewardKL:
    """Mean reward of sampled responses, and the policy's KL from the reference by k1 and k3.

    column  token column of the feedback with the reference's log-prob of every response token
    Gives "reward", "kl_k1" and "kl_k3", KL in nats a response, with errors over prompts: a point of
    `fit_frontier` for each checkpoint. Both estimators need responses that the policy sampled as it
    is, at temperature 1 and untruncated: others measure another policy. Raises RequestError for a
    response without log-probs or reference, RewardError where none has a reward.
    Source: Schulman, "Approximating KL divergence", 2020; Gao et al., arXiv:2210.10760, section 3.
    """

    name: ClassVar[str] = "reward_kl"
    reads_reference: ClassVar[bool] = True
    column: str = checked("reference_logprobs", _NAME)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        feedback.check_shape([len(group.responses) for group in groups])
        rewards = [mean_or_none([r for r in row if r is not None]) for row in feedback.rewards]
        table = feedback.token_columns.get(self.column)
        if table is None:
            raise RequestError(
                f"[reward_kl] feedback.token_columns must have {self.column!r}, the reference's "
                f"log-probs, but has {sorted(feedback.token_columns)}"
            )
        figures = {"reward": mean_figure("reward_kl", rewards)}
        for estimator in ("k1", "k3"):
            of_prompts = [
                mean_or_none(
                    [
                        self._kl(estimator, f"groups[{g}].responses[{k}]", response, table[g][k])
                        for k, response in enumerate(group.responses)
                    ]
                )
                for g, group in enumerate(groups)
            ]
            figures[f"kl_{estimator}"] = mean_figure("reward_kl", of_prompts)
        return figures

    def _kl(
        self, estimator: str, where: str, response: Response, reference: list[float] | None
    ) -> float:
        if response.logprobs is None or reference is None:
            what = "logprobs" if response.logprobs is None else f"token column {self.column!r}"
            raise RequestError(f"[reward_kl] {where} must have {what} but has none")
        if not len(response.logprobs) == len(reference) == len(response.token_ids):
            raise RequestError(
                f"[reward_kl] {where} must have a log-prob and a reference for each of its "
                f"{len(response.token_ids)} tokens but has {len(response.logprobs)} and "
                f"{len(reference)}"
            )
        ours = torch.tensor(response.logprobs, dtype=torch.float64)
        theirs = torch.tensor(reference, dtype=torch.float64)
        return math.fsum(kl_estimate(estimator, ours, theirs).tolist())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Frontier:
    """gain = a sqrt(KL) - b KL, fitted to points by least squares.

    a, b              in units of reward, KL in nats
    a_error, b_error  standard errors from the residuals; None for fewer than three points
    r_squared         1 - residual / total sum of squares of the gains; None where all are equal
    """

    a: float
    b: float
    a_error: float | None
    b_error: float | None
    r_squared: float | None

    def gain(self, kl: float) -> float:
        """What the fit says of a KL."""
        return self.a * math.sqrt(kl) - self.b * kl

    @property
    def peak(self) -> float | None:
        """KL of the largest gain, (a / 2b)^2; None where the gain grows without end."""
        return (self.a / (2 * self.b)) ** 2 if self.a > 0 and self.b > 0 else None


def fit_frontier(kls: Sequence[float], gains: Sequence[float]) -> Frontier:
    """The frontier of several checkpoints, or of the same one at several temperatures.

    kls    in nats, >= 0
    gains  mean reward less the reference's
    Raises RequestError for fewer than two different KLs above 0, or lists that do not go together.
    Source: Gao et al., arXiv:2210.10760, section 3.1 (their d is sqrt(KL)).
    """
    if len(kls) != len(gains):
        raise RequestError(
            f"[fit_frontier] gains must be as many as kls, {len(kls)}, but are {len(gains)}"
        )
    bad = [v for v in (*kls, *gains) if not math.isfinite(v)] + [v for v in kls if v < 0]
    if bad:
        raise RequestError(
            f"[fit_frontier] kls and gains must be finite, kls >= 0, but one is {bad[0]}"
        )
    if len({kl for kl in kls if kl > 0}) < 2:
        raise RequestError("[fit_frontier] kls must hold two different numbers above 0")
    kl, y = np.asarray(kls, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    x = np.stack([np.sqrt(kl), -kl], axis=1)
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    residual = float(np.sum((y - x @ fit) ** 2))
    total = float(np.sum((y - y.mean()) ** 2))
    errors: list[float | None] = [None, None]
    if len(y) > 2:
        spread = np.linalg.inv(x.T @ x) * residual / (len(y) - 2)
        errors = [math.sqrt(float(spread[i, i])) for i in range(2)]
    return Frontier(
        float(fit[0]), float(fit[1]), errors[0], errors[1], 1 - residual / total if total else None
    )


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: at most so far is the best of n samples from the policy.

    Equal where no two responses have the same reward and none has much probability.
    Raises RequestError for n < 1. Source: Stiennon et al., arXiv:2009.01325, appendix G.3.
    """
    if n < 1:
        raise RequestError(f"[best_of_n_kl] n must be >= 1 but is {n}")
    return math.log(n) - (n - 1) / n
