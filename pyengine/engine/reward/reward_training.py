"""What a reward model learns from a batch: which responses are computed, and the loss of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.engine.batch.packing import Tree
from pyengine.errors import ConfigError, RequestError
from pyengine.objectives.core.reward_losses import gpm_score, reward_loss
from pyengine.preferences.groups import Comparison, Preferences
from pyengine.preferences.head_reading import Reading

Targets = Sequence[Sequence[float | None]]
Place = tuple[int, int]  # group, response

_SOFT = ("soft_bt", "gpm")  # take probabilities
_READINGS: dict[str, Reading] = {"gpm": "gpm", "mean_variance": "mean_variance"}
# Loss -> what the outputs of one head must be: in words, and as a test.
_OUTPUTS: dict[str, tuple[str, Callable[[int], bool]]] = {
    "bradley_terry": ("one output", lambda n: n == 1),
    "soft_bt": ("one output", lambda n: n == 1),
    "plackett_luce": ("one output", lambda n: n == 1),
    "regression": ("one output", lambda n: n == 1),
    "mean_variance": ("two outputs, a mean and a spread", lambda n: n == 2),
    "gpm": ("an even number of outputs", lambda n: n % 2 == 0),
}


class Lesson(ABC):
    """A loss of the responses `where`, (group, response) in order, whose outputs are its rows."""

    def __init__(self, name: str, options: Mapping[str, Any], where: set[Place]) -> None:
        self.name = name
        self.options = dict(options)
        self.where = sorted(where)
        self._rows = {place: row for row, place in enumerate(self.where)}

    @property
    def reading(self) -> Reading:
        """What the outputs of a head that learns from this come to mean."""
        return _READINGS.get(self.name, "reward")

    def trees(self, batch: Preferences) -> list[Tree]:
        """The groups that take part, each with only the responses that do."""
        chosen: dict[int, list[Sequence[int]]] = {}
        for g, k in self.where:
            chosen.setdefault(g, []).append(batch.groups[g].responses[k].token_ids)
        return [Tree(batch.groups[g].prompt_ids, ids) for g, ids in chosen.items()]

    def loss(self, out: Tensor) -> Tensor:
        """() of the outputs (S, M, O): the mean over M heads, each on all examples."""
        heads = [self._mean(self._losses(out[:, m])) for m in range(out.shape[1])]
        return torch.stack(heads).mean()

    def slope(self, out: Tensor) -> tuple[Tensor, dict[str, float]]:
        """d loss / d outputs (S, M, O), and metrics; computed in float64."""
        exact = out.double().requires_grad_()
        loss = self.loss(exact)
        (slope,) = torch.autograd.grad(loss, exact)
        with torch.no_grad():
            metrics = self._metrics(exact.detach().mean(1))
        return slope.to(out.dtype), {"loss": loss.item()} | metrics

    def check(self, ensemble: int, outputs: int) -> None:
        """Raises what `slope` would for these options, before any work."""
        self.loss(torch.zeros(len(self.where), ensemble, outputs, dtype=torch.float64))

    def _mean(self, losses: Tensor) -> Tensor:
        return losses.mean()

    @abstractmethod
    def _losses(self, out: Tensor) -> Tensor:
        """One for each example, of the outputs (S, O) of a head."""

    @abstractmethod
    def _metrics(self, out: Tensor) -> dict[str, float]: ...


class Compared(Lesson):
    """Comparisons of a batch, of positive weight: a mean by weight."""

    def __init__(
        self, name: str, options: Mapping[str, Any], batch: Preferences, use_margins: bool
    ) -> None:
        given = [(i, c) for i, c in enumerate(batch.comparisons) if c.weight > 0]
        super().__init__(name, options, {(c.group, k) for _, c in given for k in _pair(c)})
        self._weight = _numbers(c.weight for _, c in given)
        self._target = _numbers(c.probability for _, c in given)
        self._winner, self._loser = (
            torch.tensor([self._rows[c.group, _pair(c)[side]] for _, c in given]).long()
            for side in (0, 1)
        )
        for i, c in given:
            if name not in _SOFT and c.probability != 1:
                raise RequestError(
                    f"[update] comparisons[{i}].probability must be 1 for {name} "
                    f"but is {c.probability}: soft_bt and gpm take probabilities"
                )
            if not use_margins and c.margin is not None:
                raise RequestError(
                    f"[update] comparisons[{i}].margin must be None without use_margins "
                    f"but is {c.margin}"
                )
            if use_margins and c.margin is None:
                raise RequestError(
                    f"[update] comparisons[{i}].margin must be a number with use_margins "
                    "but is None"
                )
        if use_margins:
            if name != "bradley_terry":
                raise ConfigError(f"[update] use_margins is of bradley_terry but loss is {name!r}")
            self.options["margin"] = _numbers(c.margin or 0.0 for _, c in given)

    def _mean(self, losses: Tensor) -> Tensor:
        return (losses * self._weight).sum() / self._weight.sum()

    def _losses(self, out: Tensor) -> Tensor:
        chosen, rejected = out[self._winner], out[self._loser]
        further: dict[str, Any] = {"target": self._target} if self.name in _SOFT else {}
        if self.name != "gpm":
            if self.name == "mean_variance":
                for role, side in (("chosen", chosen), ("rejected", rejected)):
                    further[f"{role}_variances"] = variances(side)
            chosen, rejected = chosen[:, 0], rejected[:, 0]
        return reward_loss(self.name, chosen, rejected, **further, **self.options)

    def _metrics(self, out: Tensor) -> dict[str, float]:
        chosen, rejected = out[self._winner], out[self._loser]
        values = {}
        if self.name == "gpm":
            margins = gpm_score(chosen, rejected)
        else:
            margins = chosen[:, 0] - rejected[:, 0]
            values = {"rewards/chosen": chosen[:, 0], "rewards/rejected": rejected[:, 0]}
        values |= {"rewards/margins": margins, "rewards/accuracies": _right(margins, self._target)}
        return {key: float(self._mean(value)) for key, value in values.items()}


class Ranked(Lesson):
    """Groups whose comparisons put their responses into one order."""

    def __init__(self, name: str, options: Mapping[str, Any], batch: Preferences) -> None:
        by_group: dict[int, list[Comparison]] = {}
        for c in batch.comparisons:
            if c.weight > 0:
                by_group.setdefault(c.group, []).append(c)
        orders = {g: _order(g, by_group[g]) for g in sorted(by_group)}
        super().__init__(name, options, {(g, k) for g, order in orders.items() for k in order})
        self._orders = [
            torch.tensor([self._rows[g, k] for k in order]) for g, order in orders.items()
        ]

    def _losses(self, out: Tensor) -> Tensor:
        each = [reward_loss(self.name, out[o, 0][None], **self.options) for o in self._orders]
        return torch.cat(each)

    def _metrics(self, out: Tensor) -> dict[str, float]:
        pairs = [torch.combinations(out[o, 0]) for o in self._orders]
        margins = torch.cat([pair[:, 0] - pair[:, 1] for pair in pairs])
        right = _right(margins, torch.ones_like(margins))
        return {"rewards/margins": float(margins.mean()), "rewards/accuracies": float(right.mean())}


class Rated(Lesson):
    """Responses with a number each."""

    def __init__(
        self, name: str, options: Mapping[str, Any], batch: Preferences, targets: Targets
    ) -> None:
        sizes = [len(group.responses) for group in batch.groups]
        if [len(row) for row in targets] != sizes:
            raise RequestError(
                f"[update] targets must have a number or None for each response, {sizes} a group, "
                f"but has {[len(row) for row in targets]}"
            )
        found = {
            (g, k): float(value)
            for g, row in enumerate(targets)
            for k, value in enumerate(row)
            if value is not None
        }
        for (g, k), value in found.items():
            if not -1e38 < value < 1e38:
                raise RequestError(f"[update] targets[{g}][{k}] must be finite but is {value}")
            if not batch.groups[g].responses[k].token_ids:
                raise RequestError(
                    f"[update] targets[{g}][{k}] must be None for a response without tokens "
                    f"but is {value}"
                )
        super().__init__(name, options, set(found))
        self._targets = _numbers(found[place] for place in self.where)

    def _losses(self, out: Tensor) -> Tensor:
        return reward_loss(self.name, out[:, 0], target=self._targets, **self.options)

    def _metrics(self, out: Tensor) -> dict[str, float]:
        return {"rewards/mean": float(out[:, 0].mean())}


def make_lesson(
    batch: Preferences,
    name: str,
    outputs: int,
    targets: Targets | None,
    use_margins: bool,
    options: Mapping[str, Any],
) -> Lesson:
    """What `RewardModel.update` was asked for, with a head of so many outputs.

    Raises RequestError for a batch that the loss cannot be computed of, ConfigError for the loss.
    """
    if not isinstance(batch, Preferences):
        raise RequestError(f"[update] batch must be Preferences but is {type(batch).__name__}")
    if name not in _OUTPUTS:
        raise ConfigError(f"[update] loss must be one of {', '.join(_OUTPUTS)} but is {name!r}")
    rule, holds = _OUTPUTS[name]
    if not holds(outputs):
        raise ConfigError(f"[update] {name} needs a head of {rule} but this one has {outputs}")
    if (targets is not None) != (name == "regression"):
        state = "needs targets" if targets is None else "takes no targets"
        raise RequestError(f"[update] loss {name!r} {state}: regression alone learns numbers")
    if use_margins and name in ("plackett_luce", "regression"):
        raise ConfigError(f"[update] use_margins is of bradley_terry but loss is {name!r}")
    lesson: Lesson
    if name == "plackett_luce":
        lesson = Ranked(name, options, batch)
    elif targets is not None:
        lesson = Rated(name, options, batch, targets)
    else:
        lesson = Compared(name, options, batch, use_margins)
    if not lesson.where:
        wanted = "target" if targets is not None else "comparison of positive weight"
        raise RequestError(f"[update] the batch must hold at least one {wanted} but holds none")
    return lesson


def variances(out: Tensor) -> Tensor:
    """(B,) of outputs (B, 2) of mean_variance: softplus(second)^2, kept above 0."""
    return F.softplus(out[:, 1]).square() + 1e-6


def _pair(c: Comparison) -> tuple[int, int]:
    return c.winner, c.loser


def _numbers(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _right(margins: Tensor, target: Tensor) -> Tensor:
    """1 where the margin has the sign of what is likelier; a margin of 0 is wrong."""
    return (torch.where(target >= 0.5, margins, -margins) > 0).double()


def _order(g: int, comparisons: Sequence[Comparison]) -> list[int]:
    """The group's compared responses, best first, where its comparisons leave one order."""
    above: dict[int, set[int]] = {}
    for c in comparisons:
        winner, loser = _pair(c) if c.probability >= 0.5 else (c.loser, c.winner)
        above.setdefault(winner, set())
        above.setdefault(loser, set()).add(winner)
    sorter, order = TopologicalSorter(above), []
    try:
        sorter.prepare()
    except CycleError as error:
        raise RequestError(
            f"[update] plackett_luce needs comparisons that rank groups[{g}] but they go round: "
            f"{error.args[1]}"
        ) from error
    while sorter.is_active():
        best = sorter.get_ready()
        if len(best) > 1:
            raise RequestError(
                f"[update] plackett_luce needs one order of groups[{g}] but its comparisons leave "
                f"open which of responses {sorted(best)} is better"
            )
        order.append(best[0])
        sorter.done(best[0])
    return order
