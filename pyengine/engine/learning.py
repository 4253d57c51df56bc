"""What an engine learns with: log-probs of packed trees, and gradients of the policy's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pyengine.engine.gradients import Gradients
from pyengine.engine.packed import PackedDecoder
from pyengine.engine.packing import PackedBatch
from pyengine.engine.tree_model import TreeModel
from pyengine.engine.tree_model_torch import token_logps
from pyengine.models.decoder import Decoder

# Takes d loss / d log-probs (N,) and adds the gradient that follows; to be called once.
Backward = Callable[[Tensor], None]


class Learner(Protocol):
    """A policy with gradients, and its reference where there is one."""

    def reference_logps(self, batch: PackedBatch) -> Tensor | None:
        """(N,) float32 under the reference; None without one."""

    def policy_logps(self, batch: PackedBatch) -> tuple[Tensor, Backward]:
        """(N,) float32 under the policy, and the way back to its weights."""

    def settle(self) -> None:
        """Parameters' `grad` become whole: to be called before they are applied."""

    def gradients(self) -> dict[str, Tensor]:
        """By parameter name, of those that have one."""


class KernelLearner:
    """On the CPU, with the kernels that sample: log-probs have the sampler's bits.

    A batch's gradient has the same bits however it is cut into micro-batches.
    """

    def __init__(
        self, policy: PackedDecoder, reference: PackedDecoder | None, recompute: bool = False
    ) -> None:
        self._decoder = policy.decoder
        self._policy = TreeModel(policy, recompute)
        self._reference = None if reference is None else TreeModel(reference)
        self._gradients: Gradients | None = None

    def reference_logps(self, batch: PackedBatch) -> Tensor | None:
        """See Learner."""
        return None if self._reference is None else self._reference.token_logps(batch)

    def policy_logps(self, batch: PackedBatch) -> tuple[Tensor, Backward]:
        """See Learner."""
        tape = self._policy.forward(batch)

        def backward(dlogps: Tensor) -> None:
            if self._gradients is None:
                self._gradients = Gradients(self._decoder)
            self._gradients.open()
            self._policy.backward(tape, dlogps, self._gradients)

        return tape.logps, backward

    def settle(self) -> None:
        """See Learner."""
        if self._gradients is not None:
            self._gradients.settle()

    def gradients(self) -> dict[str, Tensor]:
        """See Learner."""
        if self._gradients is None or all(p.grad is None for p in self._decoder.parameters()):
            return {}
        return self._gradients.totals()


class TorchLearner:
    """On any device, with the training modules and autograd."""

    def __init__(self, policy: Decoder, reference: Decoder | None) -> None:
        self._policy = policy
        self._reference = reference

    @torch.no_grad()
    def reference_logps(self, batch: PackedBatch) -> Tensor | None:
        """See Learner."""
        return None if self._reference is None else token_logps(self._reference, batch)

    def policy_logps(self, batch: PackedBatch) -> tuple[Tensor, Backward]:
        """See Learner."""
        logps = token_logps(self._policy, batch)

        def backward(dlogps: Tensor) -> None:
            logps.backward(dlogps)  # type: ignore[no-untyped-call]

        return logps.detach(), backward

    def settle(self) -> None:
        """Autograd's gradients are whole already."""

    def gradients(self) -> dict[str, Tensor]:
        """See Learner."""
        return {n: p.grad for n, p in self._policy.named_parameters() if p.grad is not None}
