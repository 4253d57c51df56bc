"""Where gradients of a decoder's weights add up: one fp32 buffer for each fused matrix.

A buffer is the accumulator itself: kernels take its chains over tokens up where the last
micro-batch left them, so that a batch's gradient does not depend on how it was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine.engine.packed import Fused, fused_matrices
from pyengine.models.decoder import Decoder
from pyengine.ops.linear import linear_backward


class Gradients:
    """Buffers of all weights; from `open` on, parameters' `grad` are views of them.

    A tied head has a buffer of its own beside the embedding's, two chains that `settle` joins.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._parameters = dict(decoder.named_parameters())
        self._tied = decoder.spec.tied_head
        self._views: dict[str, Tensor] = {}
        self._matrices: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor] = {}
        for key, fused in fused_matrices(decoder.spec).items():
            if key == "head" and self._tied:
                self._matrices[key] = torch.zeros_like(self._parameters["embed.weight"])
                continue
            self._matrices[key] = self._joined(fused, "weight")
            if f"{fused.names[0]}.bias" in self._parameters:
                self._biases[key] = self._joined(fused, "bias")
        for name, parameter in self._parameters.items():
            if name not in self._views:
                self._views[name] = torch.zeros_like(parameter)
        self._clean = True

    def _joined(self, fused: Fused, leaf: str) -> Tensor:
        parameters = [self._parameters[f"{name}.{leaf}"] for name in fused.names]
        rows = [p.shape[0] for p in parameters]
        buffer = torch.zeros(sum(rows), *parameters[0].shape[1:])
        for name, view in zip(fused.names, torch.split(buffer, rows), strict=True):
            self._views[f"{name}.{leaf}"] = view
        return buffer

    @torch.no_grad()
    def open(self) -> None:
        """Gradients are there from now on: zero, unless they were already."""
        if all(p.grad is None for p in self._parameters.values()):
            if not self._clean:
                heads = [self._matrices["head"]] if "head" in self._matrices else []
                for buffer in (*self._views.values(), *heads):
                    buffer.zero_()
            for name, parameter in self._parameters.items():
                parameter.grad = self._views[name]
        self._clean = False

    def is_open(self) -> bool:
        """Whether there are gradients that no step has taken."""
        return any(p.grad is not None for p in self._parameters.values())

    def linear(self, key: str, dy: Tensor, x: Tensor, groups: Tensor) -> None:
        """Goes on with a fused matrix's gradient, and its bias's: see ops.linear_backward."""
        linear_backward(dy, x, groups, self.matrix(key), self.bias(key))

    def matrix(self, key: str) -> Tensor | None:
        """(N, K) of a fused matrix, or of the head; None where it is frozen."""
        return self._matrices.get(key)

    def bias(self, key: str) -> Tensor | None:
        """(N,) of a fused matrix."""
        return self._biases.get(key)

    def of(self, name: str) -> Tensor | None:
        """Of a parameter by its name in the decoder; of a tied table without the head's part.

        None where it is frozen or not there.
        """
        return self._views.get(name)

    @torch.no_grad()
    def settle(self) -> None:
        """Adds a tied head's part to the embedding's, once all of a step's batches are in."""
        if self._tied:
            self._views["embed.weight"] += self._matrices["head"]
            self._matrices["head"].zero_()

    def totals(self) -> dict[str, Tensor]:
        """By parameter name, for reading: a tied table's two parts added."""
        parts = dict(self._views)
        if self._tied:
            parts["embed.weight"] = parts["embed.weight"] + self._matrices["head"]
        return parts
