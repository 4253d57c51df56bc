"""What an engine works with on its device: what samples and scores, and what learns."""

from __future__ import annotations

from pathlib import Path

import torch

from pyengine.engine.config import EngineConfig, packed_kind
from pyengine.engine.generation import Decodes
from pyengine.engine.inference import Inference, SessionInference, TorchInference
from pyengine.engine.learning import KernelLearner, Learner, TorchLearner
from pyengine.engine.logprob_cache import LogprobCache
from pyengine.engine.lora import PackedLora
from pyengine.engine.packed import PackedDecoder, Scratch
from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora


def make_parts(
    policy: Decoder,
    reference: Decoder | None,
    lora: Lora | None,
    config: EngineConfig,
    device: torch.device,
    cache_folder: str | Path | None,
    recompute: bool,
    tokenizer: Decodes | None,
    stop_ids: frozenset[int],
) -> tuple[Inference, Learner]:
    """On the CPU both read the same packed weights.

    lora          adapters that are on in the policy and off in a reference that is the same decoder
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
    cache = LogprobCache(policy if reference is None else reference, cache_folder)
    assert config.kv_tokens is not None
    assert config.micro_batch_tokens is not None
    if device.type == "cpu":
        kind, scratch, packed = packed_kind(config.dtype), Scratch(), dict[str, PackedDecoder]()
        if reference is not None:
            packed["reference"] = PackedDecoder(reference, kind, scratch)
        if lora is None:
            packed["policy"] = PackedDecoder(policy, kind, scratch)
        else:
            base = packed["reference"] if config.reference == "adapter" else None
            packed["policy"] = PackedLora(policy, kind, lora, base, scratch)
        inference = SessionInference(packed, config.kv_tokens, tokenizer, stop_ids)
        return inference, KernelLearner(packed["policy"], packed.get("reference"), cache, recompute)
    decoders = {"policy": policy} | ({} if reference is None else {"reference": reference})
    return (
        TorchInference(
            decoders, device, config.kv_tokens, config.micro_batch_tokens, tokenizer, stop_ids
        ),
        TorchLearner(policy, reference, cache, device),
    )
