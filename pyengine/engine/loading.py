"""What an engine is made of, from a model's files or a checkpoint's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.config import DTYPES, EngineConfig, device_of, dtype_name
from pyengine.engine.named.references import asked_reference, frozen_model, load_reference
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.persist.checkpoint import Checkpoint
from pyengine.engine.persist.engine_state import (
    EngineState,
    checkpoint_tokenizer,
    load_tokenizer,
    rebuilt_models,
    restored_snapshots,
)
from pyengine.engine.weights.packed_lora import engine_models, lora_settings
from pyengine.models.decoder import Decoder
from pyengine.models.loader import load_model
from pyengine.models.lora import Lora
from pyengine.models.source import resolve


class EngineParts(NamedTuple):
    """What `Engine` takes, in its order."""

    decoder: Decoder
    reference: Decoder | None
    lora: Lora | None
    tokenizer: Tokenizer | None
    model_config: dict[str, Any]
    generation_config: dict[str, Any]
    config: EngineConfig
    device: torch.device
    reference_cache: str | None
    snapshots: Snapshots


def loaded_parts(config: EngineConfig) -> EngineParts:
    """Of the model at `config.source`: see Engine.from_pretrained."""
    device = device_of(config.device)
    asked = asked_reference(config.reference, config.snapshot_folder)
    adapters, own = lora_settings(config.lora, asked.own)
    chosen = replace(config, dtype=dtype_name(config.dtype, device), reference=own, lora=adapters)
    source = resolve(config.source)
    tokenizer = load_tokenizer(source)
    model = load_model(source, DTYPES[chosen.dtype])
    freeze = partial(frozen_model, source=source, device=device)
    policy, frozen, lora = engine_models(model.decoder, chosen, config.lora, freeze)
    if asked.path is not None:
        frozen = load_reference(asked.path, policy.spec, policy.compute_dtype, device)
        chosen = replace(chosen, reference="frozen")
    snapshots = Snapshots(policy, lora, config.snapshot_folder)
    snapshots.adopt_folder()
    snapshots.reference = asked.snapshot
    return EngineParts(
        policy,
        frozen,
        lora,
        tokenizer,
        model.config,
        model.generation_config,
        chosen,
        device,
        config.reference_cache,
        snapshots,
    )


def restored_parts(content: Checkpoint, state: EngineState, path: str | Path) -> EngineParts:
    """Of a checkpoint: see Engine.load_checkpoint."""
    models, config = rebuilt_models(content, state, path), state.config
    return EngineParts(
        *models,
        checkpoint_tokenizer(content, path),
        content.model["config.json"],
        content.model.get("generation_config.json", {}),
        config,
        device_of(config.device),
        config.reference_cache,
        restored_snapshots(models, state, content, path, config.snapshot_folder),
    )
