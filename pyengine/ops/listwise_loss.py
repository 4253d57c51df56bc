"""listwise_loss: losses of groups of responses of any size, with their slopes, in one pass."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle

ListFamily = Literal["plackett_luce", "softmax", "infonca", "nca", "pairs", "lambda_pairs"]


class ListSurrogate(NamedTuple):
    """The loss of a group of K scores s and of the values x that rank them.

    family       "plackett_luce" sum over ranks k, by falling x, of
                 logsumexp(s_(k) ... s_(K)) - s_(k);
                 "softmax" -sum c log softmax(s), c = x / sum(x), 0 where that is not > 0;
                 "infonca" the same with c = softmax(x / temperature);
                 "nca" -sum c log sigmoid(s) + log sigmoid(-s) / K with the c of "infonca";
                 "pairs" sum over pairs with x_i > x_j of log(1 + e^-(s_i - s_j));
                 "lambda_pairs" each of these times |2^x_i - 2^x_j| |1 / log(1 + rank_i) -
                 1 / log(1 + rank_j)|, ranks by falling s from 1, without a slope
    temperature  of the values' softmax; > 0
    mean         of a group's pairs, not their sum
    """

    family: ListFamily
    temperature: float = 1.0
    mean: bool = False


class ListwiseLoss(NamedTuple):
    """What `listwise_loss` returns."""

    losses: Tensor  # (G,) float64, without the weight
    dsums: Tensor  # (S,) float64, with it
    ranking: Tensor | None  # (3, G) float64


def listwise_loss(
    surrogate: ListSurrogate,
    policy: Tensor,
    values: Tensor,
    groups: Tensor,
    *,
    reference: Tensor | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    beta: float = 1.0,
    ranking: bool = False,
) -> ListwiseLoss:
    """losses[g] of the scores beta * (policy - reference) of group g, and their weighted gradient.

    dsums[j] = weight[g] * d losses[g] / d policy[j]

    policy     (S,) float32 or float64 summed log-probs, or scores
    values     (S,) float32 or float64: rewards or relevance
    groups     (G + 1,) int64, rising from 0 to S: group g owns places [groups[g], groups[g + 1])
    reference  as policy; default: 0
    index      (S,) int64, the response at each place, every one once; default: as they stand
    weight     (G,) float64; default: 1
    ranking    whether to return, as rows, the scores of the best and of the worst response by
               value, and which part of the pairs with different values is in order (0 without one)
    Equal values are in the order of their places, NaN is before all. A group of no responses has a
    loss of 0. All is computed in float64. A group's bits depend on nothing but the group: not on
    the others, the threads, the instruction set or the device. All on one device. Not
    differentiable: the caller owns autograd.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument;
    on a GPU the values of groups and index are trusted, since looking would wait for the device.
    Source: Plackett, 1975 (plackett_luce); arXiv:2402.01878 (softmax, pairs, lambda_pairs),
    2402.05369 (infonca, nca).
    """
    check_tensors("listwise_loss", policy=policy, groups=groups)
    G = max(groups.numel() - 1, 0)
    S, device = policy.numel(), policy.device
    losses = torch.empty(G, dtype=torch.float64, device=device)
    dsums = torch.empty(S, dtype=torch.float64, device=device)
    ranks = torch.empty(3, G, dtype=torch.float64, device=device) if ranking else None
    workspace = None
    if policy.is_cuda:
        size = _C.listwise_loss_workspace_bytes(S)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
    family, temperature, mean = surrogate
    _C.listwise_loss(
        policy, reference, values, groups, index, weight, family, beta, temperature, mean,
        losses, dsums, ranks, workspace, stream_handle(policy),
    )  # fmt: skip
    return ListwiseLoss(losses, dsums, ranks)
