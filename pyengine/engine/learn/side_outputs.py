"""What an objective takes of each token's whole distribution beside its log-prob, and the gradient
of the policy that goes back through it. No logits are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyengine.engine.learn.gradients import Gradients
from pyengine.engine.learn.tape import HiddenTape
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.objectives.core.objective import SideOutput
from pyengine.ops.linear import PackedWeight, linear_pack
from pyengine.ops.linear_kl import KlForward, linear_kl_backward, linear_kl_forward
from pyengine.ops.linear_logprob import (
    LogprobForward,
    linear_logprob_backward,
    linear_logprob_forward,
    linear_logprob_stats,
)


class SidePass(Protocol):
    """One output of a forward pass."""

    values: Tensor  # (N,) or (N, K) float32

    def backward(self, dvalues: Tensor, gradients: Gradients) -> Tensor:
        """Goes on with the head's gradient; (N, D) float32, that of the hidden states."""


def side_passes(
    wanted: Sequence[SideOutput],
    states: HiddenTape,
    policy: PackedDecoder,
    reference: Callable[[], TreeModel],
) -> dict[str, SidePass]:
    """By name; see LossInputs.side. The reference is computed where a KL is wanted."""
    made: dict[str, SidePass] = {}
    for each in wanted:
        if each.name == "kl":
            other = reference()
            hidden2, head2 = other.hidden_states(states.batch), other.packed.matrix("head")
            made["kl"] = _Divergence(states, policy, hidden2, head2, True, "kl")
        elif each.name == "entropy":
            made["entropy"] = _Entropy(states, policy)
        elif each.name == "sum_squares":
            made["sum_squares"] = _SumSquares(states, policy)
        else:
            made["alternatives"] = _Alternatives(states, policy, each.count)
    return made


def values_of(passes: Mapping[str, SidePass]) -> dict[str, Tensor]:
    return {name: each.values for name, each in passes.items()}


class _Divergence:
    """KL of the policy and another distribution: KL(policy || other), or with `reverse` the other.

    key  of the chain of tokens that is the head's gradient
    """

    def __init__(
        self,
        states: HiddenTape,
        policy: PackedDecoder,
        hidden2: Tensor,
        head2: PackedWeight,
        reverse: bool,
        key: str,
    ) -> None:
        self._states, self._policy, self._reverse, self._key = states, policy, reverse, key
        self._other = hidden2, head2
        head = policy.matrix("head")
        self._forward: KlForward = linear_kl_forward(
            states.hidden, head, hidden2, head2, reverse=reverse
        )
        self.values = self._forward.kl

    def backward(self, dvalues: Tensor, gradients: Gradients) -> Tensor:
        """See SidePass."""
        hidden = self._states.hidden
        dhidden = torch.empty(hidden.shape)
        linear_kl_backward(
            dvalues.contiguous(),
            hidden,
            self._policy.matrix("head"),
            *self._other,
            self._forward,
            dhidden,
            gradients.side_matrix(self._key),
            self._states.batch.token_groups(),
            reverse=self._reverse,
        )
        return dhidden


class _Entropy:
    """log V - KL(policy || uniform); a head of one column of zeros is uniform and costs nothing."""

    def __init__(self, states: HiddenTape, policy: PackedDecoder) -> None:
        words = policy.matrix("head").N
        hidden2, head2 = torch.zeros(len(states.hidden), 1), torch.zeros(words, 1)
        uniform = linear_pack(head2, "float32")
        self._kl = _Divergence(states, policy, hidden2, uniform, False, "entropy")
        self.values = (math.log(words) - self._kl.values).clamp(min=0)

    def backward(self, dvalues: Tensor, gradients: Gradients) -> Tensor:
        """See SidePass."""
        return self._kl.backward(-dvalues, gradients)


class _SumSquares:
    """sum_v p_v^2; objectives take it as a number, without gradient."""

    def __init__(self, states: HiddenTape, policy: PackedDecoder) -> None:
        stats = linear_logprob_stats(
            states.hidden, policy.matrix("head"), states.batch.targets, sum_squares=True
        )
        assert stats.sum_squares is not None
        self.values = stats.sum_squares

    def backward(self, dvalues: Tensor, gradients: Gradients) -> Tensor:
        """See SidePass."""
        raise AssertionError("sums of squares have no gradient")


class _Alternatives:
    """Log-probs of the K likeliest words that are not the token, the likeliest first.

    K rows a token go through the head.
    """

    def __init__(self, states: HiddenTape, policy: PackedDecoder, count: int) -> None:
        self._states, self._policy, self._count = states, policy, count
        head, targets = policy.matrix("head"), states.batch.targets
        stats = linear_logprob_stats(states.hidden, head, targets, top_k=count + 1)
        assert stats.top_ids is not None
        # Of K + 1 words at most one is the token: it goes last, then all but the last are kept.
        is_token = stats.top_ids == targets[:, None]
        order = is_token.to(torch.int8).argsort(dim=1, stable=True)
        self._targets = stats.top_ids.gather(1, order)[:, :count].reshape(-1).contiguous()
        self._hidden = states.hidden.repeat_interleave(count, 0)
        self._forward: LogprobForward = linear_logprob_forward(
            self._hidden, head, self._targets, policy.columns("head")
        )
        self.values = self._forward.logprob.view(-1, count)

    def backward(self, dvalues: Tensor, gradients: Gradients) -> Tensor:
        """See SidePass."""
        dhidden = linear_logprob_backward(
            dvalues.flatten().contiguous(),
            self._hidden,
            self._policy.matrix("head"),
            self._targets,
            self._forward.lse,
            self._forward.direction,
            gradients.side_matrix("alternatives"),
            self._states.batch.token_groups() * self._count,
        )
        assert dhidden is not None
        return dhidden.view(-1, self._count, dhidden.shape[1]).sum(1)
