"""Activations and gradients in one memory: what is in use at the same time never overlaps."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from pyengine.engine.learn.step_memory import StepMemory

F32 = torch.float32


def span(tensor: Tensor) -> range:
    return range(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def overlap(a: Tensor, b: Tensor) -> bool:
    x, y = span(a), span(b)
    return bool(a.nbytes and b.nbytes) and x.start < y.stop and y.start < x.stop


class Step:
    """Passes and ways back over layers, as a model makes them."""

    def __init__(self, gradients: list[int]) -> None:
        self.gradients = gradients
        self.lent = False
        self.moved = 0
        self.memory = StepMemory(gradients, lambda: self.lent, self.moving)
        self.views: list[Tensor] = []

    def moving(self) -> None:
        assert not self.lent
        self.moved += 1
        self.views = []

    def forward(self, sizes: list[int], layers: int) -> list[list[Tensor]]:
        self.memory.make_room(sum(-(-size // 64) * 64 for size in sizes), layers)
        return [[self.memory.take((size,), torch.uint8) for size in sizes] for _ in range(layers)]

    def backward(self, activations: list[list[Tensor]]) -> None:
        if not self.lent:
            arenas = self.memory.gradients()
            self.views = [
                arena.take((n,), torch.uint8)
                for arena, n in zip(arenas, self.gradients, strict=True)
            ]
        began = len(self.gradients) if not self.lent else 0  # layers from here on are in use
        self.lent = True
        for i in reversed(range(len(self.gradients))):
            began = min(began, i)
            living = [tensor for of_layer in activations[: i + 1] for tensor in of_layer]
            for gradient in self.views[began:]:
                assert not any(overlap(gradient, tensor) for tensor in living)
        for i, gradient in enumerate(self.views):
            assert not any(overlap(gradient, other) for other in self.views[i + 1 :])


@pytest.mark.parametrize("seed", range(30))
def test_nothing_in_use_overlaps(seed: int) -> None:
    rng = random.Random(seed)
    layers = rng.randint(1, 6)
    step = Step([rng.randint(1, 5000) for _ in range(layers)])
    for _ in range(8):
        for _ in range(rng.randint(1, 3)):  # micro-batches
            sizes = [rng.randint(1, 3000) for _ in range(rng.randint(1, 5))]
            activations = step.forward(sizes, layers)
            flat = [tensor for of_layer in activations for tensor in of_layer]
            for i, tensor in enumerate(flat):
                assert not any(overlap(tensor, other) for other in flat[i + 1 :])
            step.backward(activations)
        step.lent = False


@pytest.mark.parametrize(("activations", "gradients"), [(3000, 1000), (1000, 3000), (2000, 2000)])
def test_one_micro_batch_takes_the_larger_one_and_a_layer(activations: int, gradients: int) -> None:
    step, layers = Step([64 * gradients] * 30), 30
    for _ in range(3):
        step.backward(step.forward([64 * activations], layers))
        step.lent = False
    memory = step.memory
    larger, smaller = max(activations, gradients), min(activations, gradients)
    assert memory.gradient_bytes + memory.activation_bytes == 64 * (layers * larger + smaller)
    assert step.moved == 1


def test_further_micro_batches_take_what_is_in_front_of_gradients() -> None:
    step = Step([6400] * 10)
    for _ in range(3):
        for _ in range(3):
            step.backward(step.forward([12800], 10))
        step.lent = False
    # All gradients, all activations, and one layer that may fit neither piece.
    memory = step.memory
    assert memory.gradient_bytes + memory.activation_bytes <= 10 * (6400 + 12800) + 12800 + 6400
    assert step.moved == 1


def test_layers_that_are_computed_again_take_one_layer() -> None:
    step = Step([6400] * 10)
    step.memory.gradients()
    step.lent = True
    for _ in range(10):
        (layer,) = step.forward([12800], 1)
        assert layer[0].nbytes == 12800
    assert step.memory.activation_bytes == 12800


def test_a_larger_batch_moves_gradients_that_no_step_needs() -> None:
    step = Step([640] * 3)
    step.backward(step.forward([64], 3))
    step.lent = False
    step.backward(step.forward([6400], 3))
    assert step.moved == 2
    step.forward([64000], 3)  # while there are gradients they stay
    assert step.moved == 2


def test_without_gradients_it_is_an_arena() -> None:
    memory = StepMemory()
    assert memory.activation_bytes == memory.gradient_bytes == 0
    memory.make_room(640, 4)
    first, second = (memory.take((160,), F32) for _ in range(2))
    assert second.data_ptr() == first.data_ptr() + 640
    assert memory.activation_bytes == 4 * 640
