"""Forward and backward over packed groups: log-probs of response tokens, gradients of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyengine.engine.learning import Learner
from pyengine.engine.packing import PackedBatch, Tree, check_tree, micro_batches, pack
from pyengine.errors import RequestError
from pyengine.objectives.base import LossInputs, Objective
from pyengine.preferences.groups import Comparison, Preferences


@dataclass
class _Part:
    """The compared responses of one group, and its comparisons with indices into them."""

    tree: Tree
    comparisons: list[Comparison] = field(default_factory=list)


def compared_parts(batch: Preferences, vocab_size: int, max_positions: int) -> list[_Part]:
    """The groups that take part in a comparison, each with only the responses that do.

    In order of group and response; comparisons of weight 0 take no part.
    Raises RequestError for a batch without comparisons, or ids and lengths the model cannot take.
    """
    by_group: dict[int, list[Comparison]] = {}
    for c in batch.comparisons:
        if c.weight > 0:
            by_group.setdefault(c.group, []).append(c)
    if not by_group:
        raise RequestError(
            "[update] the batch must hold at least one comparison of positive weight but holds none"
        )
    parts = []
    for g in sorted(by_group):
        group, comparisons = batch.groups[g], by_group[g]
        used = sorted({i for c in comparisons for i in (c.winner, c.loser)})
        place = {response: i for i, response in enumerate(used)}
        tree = Tree(group.prompt_ids, [group.responses[i].token_ids for i in used])
        check_tree("update", g, tree, vocab_size, max_positions)
        renumbered = [
            Comparison(g, place[c.winner], place[c.loser], c.probability, c.margin, c.weight)
            for c in comparisons
        ]
        parts.append(_Part(tree, renumbered))
    return parts


def checked_parts(
    batch: Preferences,
    objective: Objective,
    has_reference: bool,
    vocab_size: int,
    max_positions: int,
) -> list[_Part]:
    """`compared_parts` of what a caller handed in. Raises RequestError for what cannot be used."""
    if not isinstance(batch, Preferences):
        raise RequestError(f"[update] batch must be Preferences but is {type(batch).__name__}")
    if not isinstance(objective, Objective):
        raise RequestError(
            f"[update] objective must be an Objective but is {type(objective).__name__}"
        )
    if objective.needs_reference and not has_reference:
        raise RequestError(
            f"[update] {objective.name} needs a reference but the engine has none "
            "(reference='none')"
        )
    return compared_parts(batch, vocab_size, max_positions)


@dataclass
class Totals:
    """Loss and metrics of a batch, summed over its micro-batches: weighted means of comparisons."""

    total_weight: float
    loss: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, loss: Tensor, metrics: dict[str, Tensor], weight: Tensor) -> None:
        self.loss += float(loss)
        for name, values in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(
                (values.double() * weight.double()).sum()
            )

    def means(self) -> dict[str, float]:
        return {"loss": self.loss} | {k: v / self.total_weight for k, v in self.sums.items()}


def forward_backward(
    learner: Learner,
    parts: Sequence[_Part],
    objective: Objective,
    micro_batch_tokens: int,
    device: torch.device,
) -> dict[str, float]:
    """Adds the gradient of the batch loss to the learner's.

    The loss is a mean over the whole batch however it is cut. Returns loss and metrics, plus
    "tokens": rows computed, each prompt once.
    """
    totals = Totals(sum(c.weight for p in parts for c in p.comparisons))
    reference: list[Tensor] | None = None
    if objective.needs_reference:
        reference = learner.reference_logps([p.tree for p in parts])
    rows = 0
    for r in micro_batches([p.tree.num_rows for p in parts], micro_batch_tokens):
        part = [parts[i] for i in r]
        batch = pack([p.tree for p in part], device)
        rows += len(batch.token_ids)
        reference_logps = None if reference is None else torch.cat([reference[i] for i in r])
        policy_logps, backward = learner.policy_logps(batch)
        inputs = _loss_inputs(part, batch, policy_logps, reference_logps, totals.total_weight)
        output = objective(inputs)
        backward(output.dlogps)
        totals.add(output.loss, output.metrics, inputs.weight)
    return totals.means() | {"tokens": float(rows)}


def _loss_inputs(
    parts: Sequence[_Part],
    batch: PackedBatch,
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    total_weight: float,
) -> LossInputs:
    chosen, rejected, probability, weight = [], [], [], []
    first = 0
    for part in parts:
        for c in part.comparisons:
            chosen.append(first + c.winner)
            rejected.append(first + c.loser)
            probability.append(c.probability)
            weight.append(c.weight)
        first += len(part.tree.responses)
    device, dtype = policy_logps.device, policy_logps.dtype
    return LossInputs(
        policy_token_logps=policy_logps,
        reference_token_logps=reference_logps,
        cu_seqlens=batch.cu_seqlens,
        chosen=torch.tensor(chosen, device=device),
        rejected=torch.tensor(rejected, device=device),
        probability=torch.tensor(probability, dtype=dtype, device=device),
        weight=torch.tensor(weight, dtype=dtype, device=device),
        total_weight=total_weight,
    )
