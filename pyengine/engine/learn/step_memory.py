"""Where a step's activations and gradients are: in the same memory, as far as they take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyengine.engine.weights.arena import Arena, aligned, untouched


class StepMemory:
    """Activations of the layers from the front, the first layer first, and gradients from the back,
    the last layer last.

    The way back goes from the last layer to the first. When a layer's gradients begin, the
    activations behind that layer are used up, and what the gradients take in all is not above what
    activations took by much. While there are gradients, activations of further micro-batches have
    what is in front of them, and memory of their own.

    gradients  bytes of each layer's
    lent       whether there are gradients that no step has taken
    moving     called before the memory is another: who has views of it lets go of them
    """

    def __init__(
        self,
        gradients: Sequence[int] = (),
        lent: Callable[[], bool] = lambda: False,
        moving: Callable[[], None] = lambda: None,
    ) -> None:
        self._sizes = [aligned(size) for size in gradients]
        self._lent, self._moving = lent, moving
        self._memory: Tensor | None = None
        self._front, self._more = Arena(), Arena()

    @property
    def gradient_bytes(self) -> int:
        """Memory that gradients have in it."""
        return 0 if self._memory is None else sum(self._sizes)

    @property
    def activation_bytes(self) -> int:
        """Memory that activations have beside them."""
        own = 0 if self._memory is None else self._memory.nbytes - self.gradient_bytes
        return own + self._more.num_bytes

    def make_room(self, layer: int, layers: int) -> None:
        """For the activations of so many layers, of `layer` bytes each; those of before are gone.

        Layers that are fewer than the model's are made room for again and again on the way back.
        """
        layer = aligned(layer)
        if self._sizes and self._lent():
            assert self._memory is not None
            free = self._memory.nbytes - sum(self._sizes)
            self._front = Arena.over(self._memory[:free])
            self._more.reset(layers * layer - free + (layer if free else 0))  # one for the seam
            return
        if layers == len(self._sizes):
            behind = [sum(self._sizes[i:]) for i in range(layers)]
            size = max((i + 1) * layer + gradients for i, gradients in enumerate(behind))
        else:
            size = layers * layer + sum(self._sizes)
        self._grow(size)
        assert self._memory is not None
        self._front = Arena.over(self._memory)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """For activations: as Arena.take."""
        found = self._front.find(shape, dtype)
        return self._more.take(shape, dtype) if found is None else found

    def gradients(self) -> list[Arena]:
        """A layer's each, at the same place until `moving` is called. What is in them is undefined,
        and activations may be there until the way back has come to the layer."""
        if self._memory is None:
            self._grow(sum(self._sizes))
        assert self._memory is not None
        start = self._memory.nbytes - sum(self._sizes)
        pieces = torch.split(self._memory[start:], self._sizes)
        return [Arena.over(piece) for piece in pieces]

    def _grow(self, size: int) -> None:
        if self._memory is None or self._memory.nbytes < size:
            self._moving()
            self._front = Arena()
            self._memory = None  # before the new one is there
            self._memory = untouched(aligned(max(size, 1)))
