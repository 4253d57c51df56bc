"""How many tokens fit: sizes of the KV cache and of a micro-batch, planned from free memory; and
what an engine's parts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch

from pyengine.engine.config import EngineConfig
from pyengine.engine.infer.sampler import page_bytes
from pyengine.engine.learn.tape import saved_bytes_per_row
from pyengine.engine.memory_budget import Budget, budget, mib
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.named.named_models import KEPT
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.optim.adamw import AdamW
from pyengine.engine.optim.update_rule import UpdateRule
from pyengine.errors import ConfigError, RequestError
from pyengine.models.decoder import Decoder
from pyengine.models.lora import LoraConfig, adapter_sizes
from pyengine.models.spec import DecoderSpec
from pyengine.objectives.core.objective import SideOutput
from pyengine.ranks import current

KV_SHARE = 0.25  # of what is left beside weights, packed matrices, gradients and moments
ACTIVATION_SHARE = 0.3
MAX_KV_TOKENS = 1 << 20
LEAST_KV_TOKENS = 1 << 9  # what a smaller share is raised to, where it fits
MAX_MICRO_BATCH_TOKENS = 1 << 16
LEAST_MICRO_BATCH_TOKENS = 1 << 11  # below, layers are computed again rather than kept
TOKENIZER_BYTES = 1150  # a token with its merge, as measured on a vocabulary of 49,152

# Parts that take memory when an update comes; the others do when the engine samples or scores.
LEARNING = (
    *("packed by columns", "gradients", "sums of shards", "optimizer", "activations"),
    "side outputs",
)

# Whose matrices a reference has: a copy that is loaded with the engine, those of files, those of
# the policy without its adapters, or a snapshot's of weights or of adapters, read when it is asked.
ReferenceMemory = Literal["none", "copy", "mapped", "shared", "snapshot", "adapters"]


@dataclass(frozen=True)
class MemoryUse:
    """What decides how much memory an engine takes.

    dtype      "float32", "bfloat16" or "int8", which does not train
    lora       the adapters that are trained instead of the weights
    snapshots  in memory beside the reference
    shards     whose gradients are summed in a tree
    ranks      that divide the shards, and the optimizer's state
    """

    spec: DecoderSpec
    dtype: str
    device: torch.device
    reference: ReferenceMemory = "none"
    rule: UpdateRule = field(default_factory=AdamW)
    lora: LoraConfig | None = None
    snapshots: int = 0
    shards: int = 1
    ranks: int = 1

    @property
    def compute(self) -> torch.dtype:
        """What activations and pages hold."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    @property
    def loaded(self) -> tuple[str, ...]:
        """Parts that are in memory as soon as there is an engine."""
        own = ("reference",) if self.reference in ("copy", "mapped") else ()
        return ("weights", "adapters", "tokenizer", *own)


def use_of(
    config: EngineConfig,
    policy: Decoder,
    reference: EngineReference,
    snapshots: Snapshots,
    device: torch.device,
) -> MemoryUse:
    """Of an engine with these models."""
    kind: ReferenceMemory = "none"
    if (name := snapshots.reference) is not None:
        kind = "adapters" if snapshots.kind(name) == "adapter" else "snapshot"
    elif reference.decoder is not None:
        mapped = reference.decoder.files is not None
        kind = "shared" if reference.decoder is policy else "mapped" if mapped else "copy"
    return MemoryUse(
        policy.spec,
        config.dtype,
        device,
        kind,
        config.optimizer.rule,
        config.adapters,
        min(len([each for each in snapshots.names if each != name]), KEPT),
        config.shards,
        current().size,
    )


@dataclass(frozen=True)
class Sizes:
    """Tokens of the KV cache and of a forward/backward, and whether layers are computed again."""

    kv_tokens: int
    micro_batch_tokens: int
    recompute: bool


def plan_sizes(
    use: MemoryUse,
    free: int,
    kv_tokens: int | None = None,
    micro_batch_tokens: int | None = None,
    recompute: bool | None = None,
    *,
    loaded: bool = True,
) -> Sizes:
    """What was asked for, else shares of what is left of `free` bytes beside the engine's own.

    loaded  whether `free` is what the loaded weights have left
    Where updates have no room what is left beside sampling is planned: see MemoryPlan.refusal.
    """
    fixed = [(n, size) for n, size in _parts(use, 0, 0) if not (loaded and n in use.loaded)]
    left = free - sum(size for name, size in fixed if name not in LEARNING)
    room = left - sum(size for name, size in fixed if name in LEARNING)
    if kv_tokens is None:
        per_token = kv_bytes_per_token(use.spec, use.compute)
        fit = int((room if room >= 0 else left) * KV_SHARE) // per_token
        least = min(LEAST_KV_TOKENS, left // per_token)
        kv_tokens = _power_of_two(min(max(fit, least), MAX_KV_TOKENS))
    share = max(room, 0) * ACTIVATION_SHARE
    if recompute is None or use.device.type != "cpu":
        tokens = LEAST_MICRO_BATCH_TOKENS if micro_batch_tokens is None else micro_batch_tokens
        needed = tokens * activation_bytes_per_token(use.spec, use.compute, use.device)
        recompute = use.device.type == "cpu" and needed > share
    if micro_batch_tokens is None:
        per_token = activation_bytes_per_token(use.spec, use.compute, use.device, recompute)
        micro_batch_tokens = _power_of_two(min(int(share) // per_token, MAX_MICRO_BATCH_TOKENS))
    return Sizes(kv_tokens, micro_batch_tokens, recompute)


def planned_sizes(
    who: str,
    use: MemoryUse,
    kv_tokens: int | None,
    micro_batch_tokens: int | None,
    recompute: bool | None,
) -> Sizes:
    """`plan_sizes` from what is free now, of an engine that was loaded.

    Raises ConfigError, with the arithmetic, where what samples and scores has no room.
    """
    asked = kv_tokens, micro_batch_tokens, recompute
    try:
        found = budget(use.device)
    except ConfigError:
        if None in asked:
            raise
        found = Budget(1 << 62, "not known here")  # all was asked for: nothing is to be planned
    sizes = plan_sizes(use, found.free, *asked)
    if why := memory_plan(use, sizes, found, held={}).refusal(learns=False):
        raise ConfigError(
            f"[{who}] {why}: a smaller kv_tokens, reference='none' or dtype='int8' takes less"
        )
    return sizes


def activation_bytes_per_token(
    spec: DecoderSpec, dtype: torch.dtype, device: torch.device, recompute: bool = False
) -> int:
    """Bytes that forward and backward take for one token; `recompute` is gradient_checkpointing."""
    if device.type == "cpu":
        one = saved_bytes_per_row(spec, dtype)
        inputs = 4 * spec.num_layers * spec.hidden_size
        # Beside what is saved, about two layers' worth of gradients.
        return one + inputs + 2 * one if recompute else (spec.num_layers + 2) * one
    # What autograd keeps, counted in fp32.
    heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    per_layer = 8 * spec.hidden_size + 4 * spec.intermediate_size + 4 * heads
    return 4 * (spec.num_layers * per_layer + 4 * spec.hidden_size)


def side_bytes_per_token(spec: DecoderSpec, dtype: torch.dtype, side: Sequence[SideOutput]) -> int:
    """Bytes that an objective's side outputs take for one response token."""
    gradient, total = 4 * spec.hidden_size, 0
    for each in side:
        if each.name == "kl":  # hidden states of the reference, and a layer of its forward pass
            total += gradient + spec.hidden_size * dtype.itemsize + saved_bytes_per_row(spec, dtype)
        elif each.name == "entropy":
            total += gradient
        elif each.name == "alternatives":  # hidden state, direction and gradient of each word
            total += each.count * (2 * gradient + spec.hidden_size * dtype.itemsize)
    return total


def kv_bytes_per_token(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """Bytes that one token of one sequence takes in the cache."""
    return page_bytes(spec, dtype, 16) // 16


def _power_of_two(fit: int) -> int:
    """The largest one that fits, so that a little more or less free memory plans the same size."""
    return 1 << max(fit.bit_length() - 1, 0) if fit > 0 else 1


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes when all of it is in use.

    parts   (part, bytes)
    budget  what is free now
    held    part -> bytes of it that are in memory already
    """

    parts: list[tuple[str, int]]
    budget: Budget
    held: Mapping[str, int] = field(default_factory=dict)

    @property
    def available(self) -> int:
        """Bytes that are free now."""
        return self.budget.free

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(size for _, size in self.parts)

    @property
    def coming(self) -> list[tuple[str, int]]:
        """(part, bytes) that are not in memory yet."""
        return [(name, max(size - self.held.get(name, 0), 0)) for name, size in self.parts]

    @property
    def untouched(self) -> int:
        """Bytes of `coming`."""
        return sum(size for _, size in self.coming)

    def refusal(self, learns: bool) -> str | None:
        """Why there is no room for what is to come, with the arithmetic; None where it fits.

        learns  whether updates are to come, or only samples and scores
        """
        coming = [(n, size) for n, size in self.coming if size and (learns or n not in LEARNING)]
        needed = sum(size for _, size in coming)
        if needed <= self.budget.free:
            return None
        return f"memory must hold {_sum(coming)} = {mib(needed)} more but there are {self.budget}"

    def check_update(self) -> None:
        """Raises RequestError, with the arithmetic, where an update has no room."""
        if why := self.refusal(learns=True):
            raise RequestError(
                f"[update] {why}: optimizer_bits=8, lora or fewer micro_batch_tokens take less"
            )

    def __str__(self) -> str:
        return f"{_sum(self.parts)} = {mib(self.total)} at most; {self.budget}"


def untouched_bytes(use: MemoryUse, sizes: Sizes, held: Mapping[str, int]) -> int:
    """What an engine was planned and has not in memory yet."""
    return memory_plan(use, sizes, Budget(0, ""), held=held).untouched


def _sum(parts: Sequence[tuple[str, int]]) -> str:
    return " + ".join(f"{name} {mib(size)}" for name, size in parts if size)


def memory_plan(
    use: MemoryUse,
    sizes: Sizes,
    found: Budget,
    side: Sequence[SideOutput] = (),
    held: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """Of an engine with these sizes.

    side  what the objective of its updates takes beside log-probs
    held  part -> bytes of it that are in memory; None: the engine is still to be loaded
    """
    parts = _parts(use, sizes.kv_tokens, sizes.micro_batch_tokens, sizes.recompute, side)
    if held is not None:
        held = {**held, **{name: size for name, size in parts if name in use.loaded}}
    return MemoryPlan(parts, found, held or {})


def _parts(
    use: MemoryUse,
    kv_tokens: int,
    micro_batch_tokens: int,
    recompute: bool = False,
    side: Sequence[SideOutput] = (),
) -> list[tuple[str, int]]:
    spec, dtype, lora, on_cpu = use.spec, use.dtype, use.lora, use.device.type == "cpu"
    sizes = _parameter_sizes(spec)
    matrices = sum(n for ndim, n in sizes if ndim == 2)
    others = sum(n for ndim, n in sizes if ndim != 2)  # norms and biases
    adapters, adapted = _lora_sizes(spec, lora)
    trained = [n for _, n in sizes] if lora is None else adapters
    trains = dtype != "int8"
    stored = 4 if dtype == "float32" else 2
    packed = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype] if on_cpu else 0
    # Tables of embeddings and learned positions are read as they are; a tied head is packed beside.
    tables = (0 if spec.tied_head else spec.vocab_size) + (
        spec.max_positions if spec.learned_positions else 0
    )
    multiplied = matrices - tables * spec.hidden_size
    head = spec.vocab_size * spec.hidden_size
    has_masters, as_multiplied = trains and lora is None, stored * matrices + 4 * others
    # At most: snapshots of adapters are stored as such, combined ones as what they adapt.
    of_snapshot = as_multiplied if lora is None else 4 * adapted
    packed_snapshot = multiplied if lora is None else adapted
    of_reference, packed_reference = {
        "none": (0, 0),
        "copy": (as_multiplied, multiplied),
        "mapped": (4 * others, multiplied),  # what is read for a moment, the system counts as free
        "shared": (0, adapted),
        "snapshot": (of_snapshot, packed_snapshot),
        "adapters": (4 * sum(adapters), adapted),
    }[use.reference]
    # A side output's gradient of the head is a chain of its own.
    chains = sum(each.name != "sum_squares" for each in side) if lora is None else 0
    rows = micro_batch_tokens * side_bytes_per_token(spec, use.compute, side)
    per_token = activation_bytes_per_token(spec, use.compute, use.device, recompute)
    learning = [
        ("packed by columns", packed * (head + _layer_elements(spec))),
        ("gradients", 4 * sum(trained)),
        ("sums of shards", int(4 * sum(trained) * sums_of_shards(use.shards, use.ranks))),
        ("optimizer", sum(use.rule.state_bytes(n) for n in trained) // use.ranks),
        ("activations", micro_batch_tokens * per_token),
        ("side outputs", 4 * head * chains + rows),
    ]
    return [
        ("weights", 4 * (matrices + others) if has_masters else as_multiplied),
        ("adapters", 4 * sum(adapters)),
        ("tokenizer", TOKENIZER_BYTES * spec.vocab_size),
        ("bf16 copies", 2 * matrices if dtype == "bfloat16" and has_masters and not on_cpu else 0),
        ("reference", of_reference),
        ("snapshots", use.snapshots * (of_snapshot + packed * packed_snapshot)),
        ("packed", packed * (multiplied + packed_reference)),
        ("KV cache", kv_tokens * kv_bytes_per_token(spec, use.compute)),
        *((name, size if trains else 0) for name, size in learning),
    ]


def sums_of_shards(shards: int, ranks: int) -> float:
    """Gradients that the sums of so many shards take beside the one that is being filled."""
    if shards == 1:
        return 0
    kept = (shards // ranks).bit_length()  # of a binary tree, whose terms come one after the other
    return kept + (ranks - 1) / ranks  # what others send


def _lora_sizes(spec: DecoderSpec, lora: LoraConfig | None) -> tuple[list[int], int]:
    """Elements of every A and B, and of the matrices that they change."""
    if lora is None:
        return [], 0
    shapes = adapter_sizes(spec, lora)
    numbers = [rank * side for rank, rows, columns in shapes for side in (columns, rows)]
    return numbers, sum(rows * columns for _, rows, columns in shapes)


@lru_cache(maxsize=8)
def _parameter_sizes(spec: DecoderSpec) -> list[tuple[int, int]]:
    """(dimensions, elements) of every parameter."""
    with torch.device("meta"):
        decoder = Decoder(spec)
    return [(p.ndim, p.numel()) for p in decoder.parameters()]


def _layer_elements(spec: DecoderSpec) -> int:
    """Elements of the matrices of the largest layer."""
    heads = 2 * (spec.num_heads + spec.num_kv_heads) * spec.head_dim
    gated = any(layer.activation == "silu_glu" for layer in spec.layers)
    inner = (3 if gated else 2) * spec.intermediate_size
    return spec.hidden_size * (heads + inner)
