"""Groups and preferences of random ids for the tiny model, and how to read an engine's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import pyengine as pe
from pyengine.engine.batch.packing import Tree, pack
from pyengine.engine.learn.gradients import Gradients
from pyengine.engine.learn.tree_model import TreeModel

CHECKPOINT_FILES = [
    "config.json",
    "generation_config.json",
    "optimizer.safetensors",
    "policy.safetensors",
    "reference.safetensors",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
]

VOCABULARY = 259  # of the tiny model: three special tokens and one per byte


def random_ids(count: int, seed: int, vocab_size: int = VOCABULARY) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (count,), generator=generator).tolist()


def group(
    prompt: int, responses: Sequence[int], seed: int, vocab_size: int = VOCABULARY
) -> pe.Group:
    """A prompt and responses of these lengths."""
    return pe.Group(
        random_ids(prompt, seed, vocab_size),
        [
            pe.Response(random_ids(length, seed * 100 + k + 1, vocab_size))
            for k, length in enumerate(responses)
        ],
    )


def groups_of(shapes: Sequence[tuple[int, list[int]]], vocab_size: int) -> list[pe.Group]:
    """A group for each (prompt, responses), in tokens."""
    return [group(*shape, seed=i, vocab_size=vocab_size) for i, shape in enumerate(shapes)]


def trees_of(groups: Sequence[pe.Group]) -> list[Tree]:
    return [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]


def coefficients(trees: Sequence[Tree]) -> Tensor:
    """One for each response token, to make a loss of log-probs."""
    count = sum(len(r) for t in trees for r in t.responses)
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


def add_up(
    model: TreeModel, gradients: Gradients, batches: Sequence[Sequence[Tree]]
) -> dict[str, Tensor]:
    """The gradient of sum(coefficients * log-probs), one batch after the other."""
    sizes = [sum(map(len, tree.responses)) for batch in batches for tree in batch]
    slopes = iter(torch.split(coefficients([t for b in batches for t in b]), sizes))
    gradients.open()
    for batch in batches:
        tape = model.forward(pack(batch, torch.device("cpu")))
        model.backward(tape, torch.cat([next(slopes) for _ in batch]), gradients)
    return gradients.totals()


def preferences(vocab_size: int = VOCABULARY) -> pe.Preferences:
    """Four groups: a plain pair, a prompt of one token, a group of three, unequal weights."""
    groups = [
        group(7, [5, 9], 1, vocab_size),
        group(1, [3, 1], 2, vocab_size),
        group(12, [6, 2, 11], 3, vocab_size),
        group(4, [8, 8], 4, vocab_size),
    ]
    return pe.Preferences(
        groups,
        [
            pe.Comparison(0, 0, 1),
            pe.Comparison(1, 1, 0, probability=0.8),
            pe.Comparison(2, 2, 0),
            pe.Comparison(2, 0, 1, weight=2.0),
            pe.Comparison(3, 1, 0, probability=0.6, weight=0.5),
        ],
    )


def weights(engine: pe.Engine) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in engine.named_weights()}


def gradients(engine: pe.Engine) -> dict[str, Tensor]:
    return {name: g.clone() for name, g in engine.named_gradients()}


def moments(engine: pe.Engine) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in engine._network.optimizer.state_tensors().items()}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def shift(engine: pe.Engine, size: float = 0.02, seed: int = 0) -> None:
    """Moves the policy's weights away from the reference's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in engine._network.decoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * size)


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()  # not in place: a reference may be linked into other checkpoints
    path.write_bytes(content)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1
