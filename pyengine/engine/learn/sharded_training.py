"""Forward and backward over a batch that is cut into virtual shards, which the ranks divide.

A shard's gradient is one chain over its tokens; shards add up in a fixed binary tree. So weights
have the same bits for every number of ranks, 1 among them.
"""

from __future__ import annotations

import torch

from pyengine.engine.batch.gathering import spans_of
from pyengine.engine.batch.loss_batch import LossBatch
from pyengine.engine.batch.packing import pack
from pyengine.engine.learn.learning import Learner, PolicyPass
from pyengine.engine.learn.training import Fixed, Totals
from pyengine.engine.optim.sharded_optimizer import ShardedOptimizer
from pyengine.objectives.core.objective import Objective
from pyengine.ranks import current
from pyengine.ranks.dividing import balanced, share


def sharded_forward_backward(
    learner: Learner,
    optimizer: ShardedOptimizer,
    batch: LossBatch,
    objective: Objective,
    micro_batch_tokens: int,
    device: torch.device,
    scale: float,
) -> dict[str, float]:
    """As `forward_backward`, of all ranks together.

    All log-probs are gathered, and every rank computes the loss of the whole batch from them. Where
    an example's loss depends on the others it takes its slopes from there: a rank with one
    micro-batch waits for them on its way back, one with more computes log-probs twice. On the last
    way back a layer's gradients go to the other ranks as soon as they are whole.
    """
    world, trees = current(), batch.trees
    cut = balanced([tree.num_rows for tree in trees], optimizer.shards)
    of_ranks = [
        [cut[i] for i in share(optimizer.shards, rank, world.size)] for rank in range(world.size)
    ]
    shares = [range(parts[0].start, parts[-1].stop) for parts in of_ranks]
    shards = [spans_of(trees, part, micro_batch_tokens) for part in of_ranks[world.rank]]
    fixed = Fixed.of(learner, batch, objective, micro_batch_tokens, device)
    side = objective.side_outputs
    joint = objective.batch_global or batch.crosses_groups

    def policy_pass(part: range) -> PolicyPass:
        return learner.policy_pass(pack([trees[i] for i in part], device), side)

    passes, waiting = [], None
    if joint:
        parts = [part for spans in shards for part in spans]
        if len(parts) == 1:
            waiting = policy_pass(parts[0])
            passes = [(waiting.logps, waiting.side)]
        else:
            passes = [learner.logps(pack([trees[i] for i in r], device), side) for r in parts]
        inputs = fixed.of_all(passes, shares, side)
        whole = objective(inputs)
    for number, spans in enumerate(shards, 1):
        for part in spans:
            is_last = number == len(shards) and part is spans[-1]
            policy = policy_pass(part) if waiting is None else waiting
            if joint:
                tokens = batch.tokens_of(part)
                at = slice(tokens.start, tokens.stop)
                dlogps = whole.dlogps[at]
                dside = {name: slope[at] for name, slope in whole.dside.items()}
            else:
                output = objective(fixed.inputs(part, policy.logps, policy.side))
                dlogps, dside = output.dlogps, dict(output.dside)
                passes.append((policy.logps, policy.side))
            policy.backward(
                scale * dlogps,
                {name: scale * slope for name, slope in dside.items()},
                optimizer.sums.layer_done if is_last else None,
            )
        learner.settle()
        optimizer.sums.add_shard()
    if not joint:
        inputs = fixed.of_all(passes, shares, side)
        whole = objective(inputs)
    optimizer.add_up()
    totals = Totals(batch.total_weight)
    totals.add(whole, inputs.weight)
    return totals.means() | {"tokens": float(sum(tree.num_rows for tree in trees))}
