"""How many tokens fit: sizes of the KV cache and of a micro-batch, planned from free memory."""

from __future__ import annotations

from pathlib import Path

import torch

from pyengine.engine.sampler import page_bytes
from pyengine.errors import ConfigError
from pyengine.models.spec import DecoderSpec

KV_SHARE = 0.25
ACTIVATION_SHARE = 0.3
MAX_KV_TOKENS = 1 << 20
MAX_MICRO_BATCH_TOKENS = 1 << 16


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


def activation_bytes_per_token(spec: DecoderSpec) -> int:
    """Bytes that autograd keeps of one token between forward and backward, counted in fp32."""
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


def plan_micro_batch_tokens(spec: DecoderSpec, device: torch.device, asked: int | None) -> int:
    """Tokens of a forward/backward: what was asked for, else what 30 % of the free memory holds."""
    if asked is not None:
        return asked
    fit = int(available_bytes(device) * ACTIVATION_SHARE) // activation_bytes_per_token(spec)
    return _power_of_two(min(fit, MAX_MICRO_BATCH_TOKENS))


def _power_of_two(fit: int) -> int:
    """The largest one that fits, so that a little more or less free memory plans the same size."""
    return 1 << max(fit.bit_length() - 1, 0)
