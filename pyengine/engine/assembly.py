"""What an engine works with on its device: what samples and scores, and what learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyengine.engine.config import EngineConfig, packed_kind
from pyengine.engine.infer.generation import Decodes
from pyengine.engine.infer.inference import Inference, SessionInference, TorchInference
from pyengine.engine.learn.learning import KernelLearner, Learner, TorchLearner
from pyengine.engine.learn.logprob_cache import LogprobCache
from pyengine.engine.named.named_models import NamedModels
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.weights.packed import PackedDecoder, Scratch
from pyengine.engine.weights.packed_lora import PackedLora
from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora
from pyengine.ranks import current


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
    snapshots: Snapshots,
) -> tuple[Inference, Learner, NamedModels[Any]]:
    """On the CPU all read the same packed weights.

    lora          adapters that are on in the policy and off in a reference that is the same decoder
    config        with `kv_tokens` and `micro_batch_tokens` planned
    cache_folder  where the reference's log-probs stay; None: in memory
    recompute     compute layers again on the way back
    snapshots     whose models are loaded when they are asked for
    Raises ConfigError for a cache of a reference that is not there.
    """
    if cache_folder is not None and reference is None and snapshots.reference is None:
        raise ConfigError(
            "[Engine] reference_cache must be None without a reference "
            f"but is {str(cache_folder)!r}"
        )
    if cache_folder is not None and current().size > 1:  # a file has one writer
        cache_folder = Path(cache_folder) / f"rank-{current().rank}"
    cache = LogprobCache(policy if reference is None else reference, cache_folder)
    kv_tokens, micro_batch_tokens = config.kv_tokens, config.micro_batch_tokens
    assert kv_tokens is not None
    assert micro_batch_tokens is not None
    if device.type == "cpu":
        packed = _packed_models(policy, reference, lora, config)
        own, named = packed["policy"], _packed_snapshots(snapshots, packed["policy"])
        inference = SessionInference(packed, kv_tokens, tokenizer, stop_ids, named)
        named.tell(inference.release)
        learner = KernelLearner(own, packed.get("reference"), cache, recompute, named)
        return inference, learner, named
    decoders = {"policy": policy} | ({} if reference is None else {"reference": reference})
    loaded = NamedModels(snapshots, snapshots.load_decoder)
    return (
        TorchInference(
            decoders, device, kv_tokens, micro_batch_tokens, tokenizer, stop_ids, loaded
        ),
        TorchLearner(policy, reference, cache, device, loaded),
        loaded,
    )


def _packed_models(
    policy: Decoder, reference: Decoder | None, lora: Lora | None, config: EngineConfig
) -> dict[str, PackedDecoder]:
    kind, scratch, packed = packed_kind(config.dtype), Scratch(), dict[str, PackedDecoder]()
    if reference is not None:
        packed["reference"] = PackedDecoder(reference, kind, scratch)
    if lora is None:
        packed["policy"] = PackedDecoder(policy, kind, scratch)
    else:
        base = packed["reference"] if config.reference == "adapter" and reference else None
        packed["policy"] = PackedLora(policy, kind, lora, base, scratch)
    return packed


def _packed_snapshots(snapshots: Snapshots, policy: PackedDecoder) -> NamedModels[PackedDecoder]:
    """Snapshots of adapters share the policy's matrices that have none."""

    def load(name: str) -> PackedDecoder:
        model = snapshots.load(name)
        if isinstance(model, Lora):
            return PackedLora(policy.decoder, policy.kind, model, policy, policy.scratch)
        return PackedDecoder(model, policy.kind, policy.scratch)

    return NamedModels(snapshots, load)
