"""Forward and backward over packed groups: log-probs of response tokens, gradients of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyengine.engine.batch.gathering import gathered, gathered_tokens, spans_of, tree_shares
from pyengine.engine.batch.loss_batch import LossBatch, loss_batch
from pyengine.engine.batch.packing import check_tree, micro_batches, pack
from pyengine.engine.learn.learning import Learner
from pyengine.errors import RequestError
from pyengine.objectives.core.objective import LossInputs, LossOutput, Objective, SideOutput
from pyengine.preferences.groups import Preferences
from pyengine.ranks import current


def checked_batch(
    batch: Preferences,
    objective: Objective,
    learner: Learner,
    has_reference: bool,
    vocab_size: int,
    max_positions: int,
) -> LossBatch:
    """`loss_batch` of what a caller handed in. Raises RequestError for what cannot be used."""
    if not isinstance(batch, Preferences):
        raise RequestError(f"[update] batch must be Preferences but is {type(batch).__name__}")
    if not isinstance(objective, Objective):
        raise RequestError(
            f"[update] objective must be an Objective but is {type(objective).__name__}"
        )
    _check_reference(objective, has_reference)
    if not learner.computes(objective.side_outputs):
        raise RequestError(
            f"[update] {objective.name} needs {', '.join(s.name for s in objective.side_outputs)} "
            "over the whole vocabulary: computed on the CPU, and a kl with a reference only"
        )
    for model in objective.models:
        if not learner.has_model(model):
            raise RequestError(
                f"[update] {objective.name} needs a snapshot called {model!r}: take one with "
                f"engine.snapshot({model!r})"
            )
    made = loss_batch(batch, objective, vocab_size, max_positions)
    if objective.needs_mismatched:
        for i, tree in enumerate(made.mismatched_trees()):
            check_tree("update", i, tree, vocab_size, max_positions)
    _rehearse(made, objective)
    return made


def rehearsed(batch: Preferences, objective: Objective, has_reference: bool) -> None:
    """Tries an objective on a batch without a model. Raises RequestError for what it would refuse.

    Token ids and lengths are anyone's: only what belongs to the batch and its feedback is tried.
    """
    _check_reference(objective, has_reference)
    _rehearse(loss_batch(batch, objective, 2**31, 2**31), objective)


def _check_reference(objective: Objective, has_reference: bool) -> None:
    if objective.needs_reference and not has_reference:
        raise RequestError(
            f"[update] {objective.name} needs a reference but the engine has none "
            "(reference='none')"
        )


def _rehearse(batch: LossBatch, objective: Objective) -> None:
    """Whatever an objective refuses of a batch is refused before a model computes anything."""
    zeros = torch.zeros(batch.total_tokens)
    side: dict[str, Tensor] = {
        each.name: torch.ones(len(zeros), *((each.count,) if each.name == "alternatives" else ()))
        for each in objective.side_outputs
    }
    models = dict.fromkeys(objective.models, zeros)
    lengths = [len(r) for tree in batch.trees for r in tree.responses]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    kl = 0.0 if objective.needs_mismatched else None
    reference = zeros if objective.needs_reference else None
    everything = range(len(batch.trees))
    objective(batch.inputs(everything, objective.unit, ends, zeros, reference, models, kl, side))


@dataclass
class Totals:
    """Loss and metrics of a batch, summed over its micro-batches: weighted means of examples."""

    total_weight: float
    loss: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, output: LossOutput, weight: Tensor) -> None:
        self.loss += float(output.loss)
        for name, values in output.metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(
                (values.double() * weight.double()).sum()
            )

    def means(self) -> dict[str, float]:
        return {"loss": self.loss} | {k: v / self.total_weight for k, v in self.sums.items()}


def forward_backward(
    learner: Learner,
    batch: LossBatch,
    objective: Objective,
    micro_batch_tokens: int,
    device: torch.device,
    scale: float,
) -> dict[str, float]:
    """Adds the gradient of scale times the batch loss to the learner's.

    The loss is a mean over the whole batch however it is cut. Where an example's loss depends on
    the others, several micro-batches are computed twice: all log-probs first, then, with the loss's
    gradient known, log-probs again with the way back. Returns loss and metrics, plus "tokens":
    response and prompt rows of the batch, each prompt once.
    """
    fixed = Fixed.of(learner, batch, objective, micro_batch_tokens, device)
    spans = list(micro_batches([t.num_rows for t in batch.trees], micro_batch_tokens))
    totals = Totals(batch.total_weight)
    side = objective.side_outputs
    whole: LossOutput | None = None
    if len(spans) > 1 and (objective.batch_global or batch.crosses_groups):
        passes = [learner.logps(pack([batch.trees[i] for i in r], device), side) for r in spans]
        inputs = fixed.of_all(passes, [range(len(batch.trees))], side)
        whole = objective(inputs)
        totals.add(whole, inputs.weight)
    rows = first = 0
    for r in spans:
        packed = pack([batch.trees[i] for i in r], device)
        rows += len(packed.token_ids)
        policy = learner.policy_pass(packed, side)
        last = first + len(policy.logps)
        if whole is None:
            inputs = fixed.inputs(r, policy.logps, policy.side)
            output = objective(inputs)
            totals.add(output, inputs.weight)
            dlogps, dside = output.dlogps, output.dside
        else:
            dlogps = whole.dlogps[first:last]
            dside = {name: slope[first:last] for name, slope in whole.dside.items()}
        policy.backward(scale * dlogps, {name: scale * slope for name, slope in dside.items()})
        first = last
    return totals.means() | {"tokens": float(rows)}


def measure(
    learner: Learner,
    batch: LossBatch,
    objective: Objective,
    micro_batch_tokens: int,
    device: torch.device,
) -> dict[str, float]:
    """Loss and metrics as `forward_backward` returns them, with no gradient of anything."""
    fixed = Fixed.of(learner, batch, objective, micro_batch_tokens, device)
    side, shares = objective.side_outputs, tree_shares(batch.trees)
    spans = spans_of(batch.trees, shares[current().rank], micro_batch_tokens)
    passes = [learner.logps(pack([batch.trees[i] for i in r], device), side) for r in spans]
    inputs = fixed.of_all(passes, shares, side)
    totals = Totals(batch.total_weight)
    totals.add(objective(inputs), inputs.weight)
    return totals.means()


def checked_scale(scale: float) -> float:
    """Raises RequestError for what is no finite number above 0."""
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise RequestError(f"[update] scale must be finite and > 0 but is {scale!r}")
    return float(scale)


@dataclass(frozen=True)
class Fixed:
    """What a loss takes beside the policy's log-probs, for each tree of the batch."""

    batch: LossBatch
    unit: str
    device: torch.device
    reference: list[Tensor] | None
    models: Mapping[str, list[Tensor]]
    mismatched_kl: float | None

    @classmethod
    def of(
        cls,
        learner: Learner,
        batch: LossBatch,
        objective: Objective,
        micro_batch_tokens: int,
        device: torch.device,
    ) -> Fixed:
        reference = None
        if objective.needs_reference:
            reference = learner.reference_logps(batch.trees)
        models = {name: learner.model_logps(name, batch.trees) for name in objective.models}
        kl = None
        if objective.needs_mismatched:
            kl = _mismatched_kl(learner, batch, micro_batch_tokens, device)
        return cls(batch, objective.unit, device, reference, models, kl)

    def inputs(self, part: range, policy_logps: Tensor, side: Mapping[str, Tensor]) -> LossInputs:
        """Of the trees `part`."""

        def of_part(of_trees: Sequence[Tensor]) -> Tensor:
            return torch.cat([of_trees[i] for i in part])

        lengths = [len(r) for i in part for r in self.batch.trees[i].responses]
        return self.batch.inputs(
            part,
            self.unit,
            torch.tensor([0, *lengths], device=self.device).cumsum(0),
            policy_logps,
            None if self.reference is None else of_part(self.reference),
            {name: of_part(logps) for name, logps in self.models.items()},
            self.mismatched_kl,
            side,
        )

    def of_all(
        self,
        passes: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
        shares: Sequence[range],
        side: Sequence[SideOutput],
    ) -> LossInputs:
        """Of the whole batch, from what each rank computed of its trees.

        passes  log-probs and side outputs of this rank's, one part after the other
        shares  which trees are whose
        """
        logps, sides = gathered(self.batch, passes, shares, side, self.device)
        return self.inputs(range(len(self.batch.trees)), logps, sides)


def _mismatched_kl(
    learner: Learner, batch: LossBatch, micro_batch_tokens: int, device: torch.device
) -> float:
    """Mean log-ratio of policy and reference over responses to other prompts, at least 0.

    Sums are of one tree each, so that no bit depends on the micro-batches.
    """
    trees = batch.mismatched_trees()
    reference = learner.reference_logps(trees)
    assert reference is not None
    shares = tree_shares(trees)
    spans = spans_of(trees, shares[current().rank], micro_batch_tokens)
    mine = [learner.logps(pack([trees[i] for i in r], device))[0] for r in spans]
    sizes = [sum(map(len, t.responses)) for t in trees]
    policy = torch.split(gathered_tokens(mine, sizes, shares, device), sizes)
    total = sum(
        float(p.double().sum() - q.double().sum()) for p, q in zip(policy, reference, strict=True)
    )
    return max(0.0, total / sum(len(t.responses) for t in trees))
