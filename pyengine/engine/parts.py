"""What an engine works with on its device: what samples and scores, and what learns."""

from __future__ import annotations

from pathlib import Path

import torch

from pyengine.engine.config import EngineConfig, packed_kind
from pyengine.engine.generation import Decodes
from pyengine.engine.inference import Inference, SessionInference, TorchInference
from pyengine.engine.learning import KernelLearner, Learner, TorchLearner
from pyengine.engine.logprob_cache import LogprobCache
from pyengine.engine.packed import PackedDecoder
from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder


def make_parts(
    policy: Decoder,
    reference: Decoder | None,
    config: EngineConfig,
    device: torch.device,
    cache_folder: str | Path | None,
    recompute: bool,
    tokenizer: Decodes | None,
    stop_ids: frozenset[int],
) -> tuple[Inference, Learner]:
    """On the CPU both read the same packed weights.

    config        with `kv_tokens` and `micro_batch_tokens` planned
    cache_folder  where the reference's log-probs stay; None: in memory
    recompute     compute layers again on the way back
    Raises ConfigError for a cache of a reference that is not there.
    """
    if cache_folder is not None and reference is None:
        raise ConfigError(
            "[Engine] reference_cache must be None without a reference "
            f"but is {str(cache_folder)!r}"
        )
    decoders = {"policy": policy} | ({} if reference is None else {"reference": reference})
    cache = LogprobCache(decoders.get("reference", policy), cache_folder)
    assert config.kv_tokens is not None
    assert config.micro_batch_tokens is not None
    if device.type == "cpu":
        kind = packed_kind(config.dtype)
        packed = {name: PackedDecoder(decoder, kind) for name, decoder in decoders.items()}
        inference = SessionInference(packed, config.kv_tokens, tokenizer, stop_ids)
        return inference, KernelLearner(packed["policy"], packed.get("reference"), cache, recompute)
    return (
        TorchInference(
            decoders, device, config.kv_tokens, config.micro_batch_tokens, tokenizer, stop_ids
        ),
        TorchLearner(policy, reference, cache, device),
    )
