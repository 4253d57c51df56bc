"""Statistical rejection sampling: responses of the policy tilted by exp(reward / beta)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError, RewardError
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_uniforms
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, FINITE, POSITIVE, check_fields, checked, or_none
from pyengine.samplers.joining import chosen, joined
from pyengine.samplers.judging import rewards_of
from pyengine.samplers.sampler import Generates, derived_ids


def accepted(
    rewards: Sequence[float | None],
    uniforms: Sequence[Sequence[float]],
    beta: float,
    max_reward: float | None = None,
) -> list[list[int]]:
    """Which of a pool are accepted: [step] of places, each a part of the step before.

    Step s accepts what the one before left where u < exp((r - r_max) / (S beta)), so that the last
    of S steps has accepted with probability exp((r - r_max) / beta) in all, and the s-th with that
    of temperature beta S / s.

    rewards     None: there is none, and it is never accepted
    uniforms    [response][step] u in [0, 1); their number is S
    max_reward  r_max; None: the pool's largest
    Source: Liu et al., arXiv:2309.06657, algorithm 1 (one step); Xiong et al., arXiv:2312.11456
    (a path of temperatures).
    """
    known = [r for r in rewards if r is not None]
    left = [k for k, r in enumerate(rewards) if r is not None]
    top = max(known, default=0.0) if max_reward is None else max_reward
    steps = []
    for s in range(len(uniforms[0]) if uniforms else 0):
        scale = beta * len(uniforms[0])
        left = [k for k in left if uniforms[k][s] < math.exp(((rewards[k] or 0.0) - top) / scale)]
        steps.append(left)
    return steps


@dataclass
class _Pool:
    """What was drawn for one prompt so far."""

    groups: list[Group] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    uniforms: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Rejection:
    """Samples of the policy accepted with probability exp((reward - largest) / beta), until k are.

    beta        temperature of the target, policy * exp(reward / beta) up to a constant
    keep        k: accepted responses a prompt, at most; the first ones drawn
    max_draws   samples a prompt, at most; they are drawn `n` of the sampling parameters at a time,
                until k of them are accepted
    steps       temperatures of the way to beta: step s accepts as beta * steps / s would. Where
                fewer than k are left at the last, the responses are those of the last step that
                left k, or of the first: the pool serves the nearest temperature it can
    max_reward  a bound of the rewards that is known, such as 1; None: the largest drawn so far,
                by which all that was drawn before is decided anew
    Every response keeps the random numbers that decide over it. The groups' columns: "drawn",
    "unjudged" (abstained or failed, never accepted), "accepted" at the last step, "step" that the
    responses are of. Raises ConfigError for max_draws < n, RewardError for a reward > max_reward.
    Source: Liu et al., arXiv:2309.06657, algorithm 1; Xiong et al., arXiv:2312.11456.
    """

    name: ClassVar[str] = "rejection"
    needs_source: ClassVar[bool] = True
    adds_columns: ClassVar[tuple[str, ...]] = ("drawn", "unjudged", "accepted", "step")
    beta: float = checked(1.0, POSITIVE)
    keep: int = checked(2, COUNT)
    max_draws: int = checked(64, COUNT)
    steps: int = checked(1, COUNT)
    max_reward: float | None = checked(None, or_none(FINITE))

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most. Raises ConfigError."""
        if self.max_draws < params.n:
            raise ConfigError(
                f"[rejection] max_draws must be at least n ({params.n}) but is {self.max_draws}"
            )
        return self.keep

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """The accepted responses of each prompt: one generate and one judge call a round."""
        self.size(params)
        pools = [_Pool() for _ in prompts]
        waiting, drawn, turn = list(range(len(prompts))), 0, 0
        while waiting and drawn < self.max_draws:
            n = min(params.n, self.max_draws - drawn)
            ids = [request_ids[i] for i in waiting]
            groups = engine.generate(
                [prompts[i] for i in waiting],
                dataclasses.replace(params, n=n),
                request_ids=derived_ids(ids, turn),
            )
            rewards = rewards_of(self.name, judge, groups)
            for i, group, row in zip(waiting, groups, rewards, strict=True):
                self._add(pools[i], group, row, (params.seed, request_ids[i]))
            drawn, turn = drawn + n, turn + 1
            waiting = [i for i in waiting if len(self._accepted(pools[i])[-1]) < self.keep]
        return [self._kept(pool) for pool in pools]

    def _add(
        self, pool: _Pool, group: Group, rewards: Sequence[float | None], key: tuple[int, int]
    ) -> None:
        bound = math.inf if self.max_reward is None else self.max_reward
        above = [r for r in rewards if r is not None and r > bound]
        if above:
            raise RewardError(
                f"[rejection] rewards must be at most max_reward ({bound}) but one is {above[0]}"
            )
        first = len(pool.rewards)
        pool.groups.append(group)
        pool.rewards += rewards
        pool.uniforms += [
            [keyed_uniforms(self.name, *key, k, s)[0] for s in range(self.steps)]
            for k in range(first, first + len(rewards))
        ]

    def _accepted(self, pool: _Pool) -> list[list[int]]:
        return accepted(pool.rewards, pool.uniforms, self.beta, self.max_reward)

    def _kept(self, pool: _Pool) -> Group:
        [group] = joined(*([each] for each in pool.groups))
        steps = self._accepted(pool)
        enough = [s for s, left in enumerate(steps, 1) if len(left) >= self.keep]
        step = max(enough, default=1)
        group.columns |= {
            "drawn": len(pool.rewards),
            "unjudged": pool.rewards.count(None),
            "accepted": len(steps[-1]),
            "step": step,
        }
        return chosen(group, steps[step - 1][: self.keep])
