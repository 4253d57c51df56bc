"""Objectives of K responses to one prompt at a time: one loss a group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyengine.objectives.core.arguments import first_tensor, like, permutation
from pyengine.objectives.core.objective import LossInputs, LossOutput, Objective, Unit
from pyengine.ops.listwise_loss import ListSurrogate, listwise_loss
from pyengine.rules import POSITIVE, checked


def equal_groups(group: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Groups of equal size together: which groups (n,), and where their responses are (n, K).

    `group` (S,) is the group of each response, counted from 0; responses keep their order.
    """
    sizes = torch.bincount(group)
    places = group.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    found = []
    for size in sorted(set(sizes.tolist())):
        if size > 0:
            which = (sizes == size).nonzero().squeeze(1)
            steps = torch.arange(size, device=group.device)
            found.append((which, places[first[which].unsqueeze(1) + steps]))
    return found


def bounds_of(group: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Where each of `count` groups begins and ends (count + 1,), in an order of the responses (S,):
    group by group, each as it stands. No order where they stand so already.
    """
    bounds = torch.zeros(count + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(group, minlength=count), 0, out=bounds[1:])
    sorted_already = bool((group[1:] >= group[:-1]).all())
    return bounds, None if sorted_already else group.argsort(stable=True)


def descending(values: Tensor) -> Tensor:
    """(G, K) places of the largest value first; ties by index."""
    return values.argsort(stable=True, dim=1, descending=True)


class ListwiseObjective(Objective):
    """A weighted mean of one loss a group, of its scores beta * log-ratio of policy and reference.

    needs  what the loss takes besides the scores: "relevance" or "rewards" (G, K), or "order"
           (G, K), the best response's place first. In the engine the first two are the column of
           that name, or else "rewards"; the order is that of the rewards.
    """

    unit: ClassVar[Unit] = "group"
    needs: ClassVar[str]
    beta: float = checked(0.1, POSITIVE)

    @abstractmethod
    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """(G,) losses of scores (G, K), differentiable in them; x (G, K) is what the loss needs."""

    def surrogate(self) -> ListSurrogate | None:
        """The same losses as the fused kernel has them; None where it has not."""
        return None

    def _kernel_surrogate(self) -> ListSurrogate | None:
        """None, too, where a subclass has changed the losses of one that the kernel has."""
        classes = type(self).__mro__
        first = [
            next(i for i, cls in enumerate(classes) if name in vars(cls))
            for name in ("surrogate", "losses")
        ]
        return self.surrogate() if first[0] <= first[1] else None

    def check(self, who: str, x: Tensor) -> None:
        """Raises ValueError where the loss is not defined for x."""
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"[{who}] {self.needs} must be finite everywhere")

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self.require(inputs)
        assert inputs.reference_token_logps is not None
        policy = inputs.sequence_logps(inputs.policy_token_logps).detach()
        reference = inputs.sequence_logps(inputs.reference_token_logps)
        rewards = self._column(inputs)
        if inputs.on_kernels and (surrogate := self._kernel_surrogate()) is not None:
            return self._fused(surrogate, policy, reference, rewards, inputs)
        assert inputs.group is not None
        leaf = policy.requires_grad_()
        losses = torch.zeros(len(inputs.weight), dtype=leaf.dtype, device=leaf.device)
        metrics = {name: torch.zeros_like(losses) for name in METRICS}
        with torch.enable_grad():
            scores = self.beta * (leaf - reference)
            for which, places in equal_groups(inputs.group):
                x = rewards[places]
                if self.needs == "order":
                    x = descending(x)
                else:
                    self.check(self.name, x)
                losses = losses.index_put((which,), self.losses(scores[places], x))
                of_these = ranking_metrics(scores.detach()[places], rewards[places])
                for name, values in of_these.items():
                    metrics[name][which] = values
            loss = (inputs.weight * losses).sum() / inputs.total_weight
        (dsums,) = torch.autograd.grad(loss, leaf)
        return LossOutput(loss.detach(), inputs.token_gradient(dsums), metrics)

    def _fused(
        self,
        surrogate: ListSurrogate,
        policy: Tensor,
        reference: Tensor,
        rewards: Tensor,
        inputs: LossInputs,
    ) -> LossOutput:
        """Loss, gradient and metrics from the kernel."""
        if self.needs != "order":
            self.check(self.name, rewards)
        assert inputs.group is not None
        groups, places = bounds_of(inputs.group, len(inputs.weight))
        share = inputs.weight.double() / inputs.total_weight
        result = listwise_loss(
            surrogate,
            policy,
            rewards.detach().contiguous(),
            groups,
            reference=reference,
            index=places,
            weight=share,
            beta=self.beta,
            ranking=True,
        )
        assert result.ranking is not None
        chosen, rejected, accuracy = result.ranking
        values = (chosen, rejected, chosen - rejected, accuracy)
        metrics = dict(zip(METRICS, values, strict=True))
        loss = (share * result.losses).sum()
        return LossOutput(loss, inputs.token_gradient(result.dsums), metrics)

    def _column(self, inputs: LossInputs) -> Tensor:
        """(S,) float64: the column that the loss needs, or the rewards."""
        return self.column(self.needs if self.needs in inputs.columns else "rewards", inputs)


METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def ranking_metrics(scores: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """(G,) each: scores of the best and the worst by reward, and how many pairs are in order.

    The accuracy is of pairs whose rewards differ; 0 where there is none.
    """
    order = descending(rewards)
    chosen = scores.gather(1, order[:, :1]).squeeze(1)
    rejected = scores.gather(1, order[:, -1:]).squeeze(1)
    better = rewards.unsqueeze(2) > rewards.unsqueeze(1)
    agree = better & (scores.unsqueeze(2) > scores.unsqueeze(1))
    accuracy = agree.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)
    values = (chosen, rejected, chosen - rejected, accuracy.to(scores.dtype))
    return dict(zip(METRICS, values, strict=True))


class _Fused(torch.autograd.Function):
    """(G,) losses of scores (G, K) from the kernel, and the slopes that it gives with them."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, surrogate: ListSurrogate, values: Tensor) -> Tensor:
        count, size = scores.shape
        result = listwise_loss(
            surrogate,
            scores.detach().reshape(-1),
            values.reshape(-1),
            torch.arange(0, (count + 1) * size, size),
        )
        ctx.save_for_backward(result.dsums.view(count, size))
        return result.losses.to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (dlosses.unsqueeze(1) * slopes).to(dlosses.dtype), None, None


def plain_losses(objective: ListwiseObjective, scores: Any, given: Mapping[str, Any]) -> Tensor:
    """(G,) losses of the plain function's arguments, once they are checked."""
    who = "listwise_loss"
    s = first_tensor(who, "scores", scores, "(G, K)", 2)
    if s.shape[1] == 0:
        raise ValueError(f"[{who}] scores must have at least one response a group")
    value = given.get(objective.needs)
    if objective.needs == "order":
        x = permutation(who, "order", value, s)
    else:
        x = like(who, objective.needs, value, s, tuple(s.shape))
        objective.check(who, x)
    surrogate = objective._kernel_surrogate()
    if surrogate is None or s.dtype != torch.float32 or s.device.type != "cpu":
        return objective.losses(s, x)
    if objective.needs == "order":  # values that fall along it
        falling = -torch.arange(s.shape[1], dtype=torch.float64).expand(s.shape)
        x = torch.empty(s.shape, dtype=torch.float64).scatter_(1, x, falling)
    losses: Tensor = _Fused.apply(s, surrogate, x.detach())  # type: ignore[no-untyped-call]
    return losses


def preferred(relevance: Tensor) -> Tensor:
    """(G, K, K) bool: whether the first response is more relevant than the second."""
    return relevance.unsqueeze(2) > relevance.unsqueeze(1)


def over_pairs(values: Tensor, pairs: Tensor, reduction: str) -> Tensor:
    """(G,) sum or mean of values (G, K, K) over the pairs that count; 0 where there is none."""
    total = values.masked_fill(~pairs, 0).sum((1, 2))
    return total if reduction == "sum" else total / pairs.sum((1, 2)).clamp(min=1)
