"""How many tokens fit: sizes of the KV cache and of a micro-batch, planned from free memory; and
what an engine's parts take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pyengine.engine.infer.sampler import page_bytes
from pyengine.engine.learn.tape import saved_bytes_per_row
from pyengine.engine.optim.adamw import state_bytes
from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.lora import LoraConfig, lora_numbers
from pyengine.models.spec import DecoderSpec

KV_SHARE = 0.25
ACTIVATION_SHARE = 0.3
MAX_KV_TOKENS = 1 << 20
MAX_MICRO_BATCH_TOKENS = 1 << 16
LEAST_MICRO_BATCH_TOKENS = 1 << 11  # below, layers are computed again rather than kept


def available_bytes(device: torch.device) -> int:
    """Memory that can be taken now: free on the GPU, or MemAvailable of the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError(
        "[memory] /proc/meminfo has no MemAvailable: pass kv_tokens and micro_batch_tokens"
    )


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


def kv_bytes_per_token(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """Bytes that one token of one sequence takes in the cache."""
    return page_bytes(spec, dtype, 16) // 16


def plan_kv_tokens(
    spec: DecoderSpec, dtype: torch.dtype, device: torch.device, asked: int | None
) -> int:
    """Tokens of KV cache: what was asked for, else what a quarter of the free memory holds."""
    if asked is not None:
        return asked
    fit = int(available_bytes(device) * KV_SHARE) // kv_bytes_per_token(spec, dtype)
    return _power_of_two(min(fit, MAX_KV_TOKENS))


def plan_recompute(
    spec: DecoderSpec,
    dtype: torch.dtype,
    device: torch.device,
    asked: bool | None,
    micro_batch_tokens: int | None,
) -> bool:
    """Whether layers are computed again: what was asked for, else if memory is too small."""
    if asked is not None or device.type != "cpu":
        return bool(asked)
    tokens = LEAST_MICRO_BATCH_TOKENS if micro_batch_tokens is None else micro_batch_tokens
    needed = tokens * activation_bytes_per_token(spec, dtype, device)
    return needed > available_bytes(device) * ACTIVATION_SHARE


def plan_micro_batch_tokens(
    spec: DecoderSpec,
    dtype: torch.dtype,
    device: torch.device,
    asked: int | None,
    recompute: bool = False,
) -> int:
    """Tokens of a forward/backward: what was asked for, else what 30 % of the free memory holds."""
    if asked is not None:
        return asked
    per_token = activation_bytes_per_token(spec, dtype, device, recompute)
    fit = int(available_bytes(device) * ACTIVATION_SHARE) // per_token
    return _power_of_two(min(fit, MAX_MICRO_BATCH_TOKENS))


def _power_of_two(fit: int) -> int:
    """The largest one that fits, so that a little more or less free memory plans the same size."""
    return 1 << max(fit.bit_length() - 1, 0)


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes when all of it is in use: (part, bytes), and what is free now."""

    parts: list[tuple[str, int]]
    available: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(size for _, size in self.parts)

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {_mib(size)}" for name, size in self.parts if size)
        return f"{parts} = {_mib(self.total)} at most; {_mib(self.available)} available"


def memory_plan(
    spec: DecoderSpec,
    dtype: str,
    device: torch.device,
    *,
    has_reference: bool,
    kv_tokens: int,
    micro_batch_tokens: int,
    optimizer_bits: int = 32,
    recompute: bool = False,
    lora: LoraConfig | None = None,
    shared_reference: bool = False,
    snapshots: int = 0,
) -> MemoryPlan:
    """Of an engine of `dtype` ("float32", "bfloat16" or "int8", which does not train).

    lora              the adapters that are trained instead of the weights
    shared_reference  the reference is the model without them
    snapshots         in memory beside the reference
    """
    sizes = _parameter_sizes(spec)
    matrices = sum(n for ndim, n in sizes if ndim == 2)
    others = sum(n for ndim, n in sizes if ndim != 2)  # norms and biases
    adapters, adapted = (0, 0) if lora is None else lora_numbers(spec, lora)
    trained = matrices + others if lora is None else adapters
    moments = sum(state_bytes(n, optimizer_bits) for _, n in sizes)
    if lora is not None:
        moments = 8 * adapters  # at most: those of small tensors stay in 32 bits
    trains = dtype != "int8"
    stored = 4 if dtype == "float32" else 2
    packed = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype] if device.type == "cpu" else 0
    # Tables of embeddings and learned positions are read as they are; a tied head is packed beside.
    tables = (0 if spec.tied_head else spec.vocab_size) + (
        spec.max_positions if spec.learned_positions else 0
    )
    multiplied = matrices - tables * spec.hidden_size
    of_reference = 0 if not has_reference else adapted if shared_reference else multiplied
    has_masters, as_multiplied = trains and lora is None, stored * matrices + 4 * others
    of_snapshot = as_multiplied + packed * multiplied
    if lora is not None:  # at most: those of adapters are stored as such
        of_snapshot = 4 * adapted + packed * adapted
    head = spec.vocab_size * spec.hidden_size
    on_cpu = device.type == "cpu"
    compute = torch.float32 if dtype == "float32" else torch.bfloat16
    per_token = activation_bytes_per_token(spec, compute, device, recompute)
    parts = [
        ("weights", 4 * (matrices + others) if has_masters else as_multiplied),
        ("adapters", 4 * adapters),
        ("bf16 copies", 2 * matrices if dtype == "bfloat16" and has_masters and not on_cpu else 0),
        ("reference", as_multiplied if has_reference and not shared_reference else 0),
        ("snapshots", snapshots * of_snapshot),
        ("packed", packed * (multiplied + of_reference)),
        ("packed by columns", packed * (head + _layer_elements(spec)) if trains else 0),
        ("KV cache", kv_tokens * kv_bytes_per_token(spec, compute)),
        ("gradients", 4 * trained if trains else 0),
        ("optimizer", moments if trains else 0),
        ("activations", micro_batch_tokens * per_token if trains else 0),
    ]
    return MemoryPlan(parts, available_bytes(device))


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


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
