"""What a checkpoint of a reward model holds: beside weights and moments, how its head is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.engine.persist.checkpoint import Checkpoint
from pyengine.engine.persist.engine_state import checkpoint_content, rebuilt
from pyengine.engine.weights.packed_lora import frozen_base, restored_lora
from pyengine.errors import CheckpointError
from pyengine.models.classifier import SCORE, headless
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora, LoraConfig
from pyengine.preferences.head_reading import READINGS, Reading

_HEAD = "head"  # the file of the head


@dataclass(frozen=True)
class RewardState:
    """What a reward model's checkpoint knows beside tensors.

    heads  (outputs, ensemble)
    """

    heads: tuple[int, int]
    dtype: str
    optimizer: OptimizerConfig
    lora: LoraConfig | None
    micro_batch_tokens: int | None
    gradient_checkpointing: bool | None
    step_count: int = 0
    skipped_in_a_row: int = 0
    reading: Reading | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def reward_checkpoint(
    decoder: Decoder,
    lora: Lora | None,
    score: Tensor,
    moments: Mapping[str, Tensor],
    state: RewardState,
    model_config: dict[str, Any],
) -> Checkpoint:
    """The content of a checkpoint; score (E, D) is the head."""
    content = checkpoint_content(
        decoder,
        None,
        lora,
        moments,
        {"reward_model": dataclasses.asdict(state) | {"optimizer": state.optimizer.saved()}},
        {"config.json": model_config},
        {},
    )
    content.tensors[_HEAD] = {SCORE: score.detach()}
    return content


def reward_state(content: Checkpoint, path: str | Path) -> RewardState:
    """Raises CheckpointError for a state that is not a reward model's."""
    try:
        given = dict(content.state["reward_model"])
        optimizer, lora = OptimizerConfig.from_saved(given.pop("optimizer")), given.pop("lora")
        outputs, ensemble = map(int, given.pop("heads"))
        if given["dtype"] not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {given['dtype']!r} does not train")
        if given.get("reading") not in (None, *READINGS):
            raise ValueError(f"reading {given['reading']!r} is none of {READINGS}")
        return RewardState(
            heads=(outputs, ensemble),
            optimizer=optimizer,
            lora=None if lora is None else LoraConfig(**lora),
            **given,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"[{path}] state.json is not a reward model's: {error}") from error


def reward_parts(
    content: Checkpoint, state: RewardState, path: str | Path
) -> tuple[Decoder, Lora | None, Tensor]:
    """Decoder, adapters and head of a checkpoint. Raises CheckpointError."""
    tensors = content.tensors
    if _HEAD not in tensors or SCORE not in tensors[_HEAD]:
        raise CheckpointError(f"[{path}] {_HEAD}.safetensors must hold {SCORE} but does not")
    config = headless(content.model["config.json"])
    decoder, lora = rebuilt(config, tensors["policy"], path, state.dtype), None
    if state.lora is not None:
        decoder = frozen_base(decoder)
        lora = restored_lora(decoder, state.lora, tensors.get("adapter", {}), path)
    score, outputs = tensors[_HEAD][SCORE], state.heads[0] * state.heads[1]
    if score.shape != (outputs, decoder.spec.hidden_size):
        raise CheckpointError(
            f"[{path}] {SCORE} must have shape {(outputs, decoder.spec.hidden_size)} "
            f"but has {tuple(score.shape)}"
        )
    return decoder, lora, score
