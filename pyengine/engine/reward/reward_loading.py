"""What a reward model is made of, from a model's files or a checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.config import DTYPES, device_of, dtype_name
from pyengine.engine.optim.optimizer_config import OPTIMIZER_OPTIONS, OptimizerConfig
from pyengine.engine.persist.checkpoint import Checkpoint
from pyengine.engine.persist.engine_state import checkpoint_tokenizer, load_tokenizer
from pyengine.engine.reward.reward_checkpoint import RewardState, reward_parts
from pyengine.engine.reward.reward_head import RewardHead, check_asked, head_sizes, reading_of
from pyengine.engine.weights.packed_lora import frozen_base
from pyengine.errors import ConfigError
from pyengine.models.classifier import load_classifier
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora, LoraConfig
from pyengine.models.source import resolve
from pyengine.preferences.head_reading import Reading


class RewardParts(NamedTuple):
    """What `RewardModel` takes, in its order; heads are (outputs, ensemble)."""

    decoder: Decoder
    lora: Lora | None
    head: RewardHead
    heads: tuple[int, int]
    model_config: dict[str, Any]
    tokenizer: Tokenizer | None
    optimizer: OptimizerConfig
    dtype: str
    micro_batch_tokens: int | None
    gradient_checkpointing: bool | None
    reading: Reading | None


def check_place(device: str | torch.device, dtype: str, lora: LoraConfig | None) -> str:
    """The name of a dtype that trains. Raises ConfigError for what a reward model cannot be."""
    if device_of(device).type != "cpu":
        raise ConfigError(
            "[RewardModel] device must be 'cpu', whose kernels read hidden states, but is "
            f"{str(device)!r}"
        )
    name = dtype_name(dtype, torch.device("cpu"))
    if name not in ("float32", "bfloat16"):
        raise ConfigError(
            f"[RewardModel] dtype must be 'auto', 'float32' or 'bfloat16' but is {dtype!r}"
        )
    if lora is not None and not isinstance(lora, LoraConfig):
        raise ConfigError(f"[RewardModel] lora must be a LoraConfig or None but is {lora!r:.80}")
    return name


def reward_optimizer(learning_rate: float | None, given: Mapping[str, Any]) -> OptimizerConfig:
    """Of `RewardModel.from_pretrained`. Raises ConfigError."""
    unknown = given.keys() - OPTIMIZER_OPTIONS
    if unknown:
        raise ConfigError(f"[RewardModel] {min(unknown)} is not a setting")
    options = dict(given)
    if learning_rate is not None or options.get("optimizer") is None:
        options["learning_rate"] = 1e-5 if learning_rate is None else learning_rate
    return OptimizerConfig.from_options(options)


def loaded_reward(
    path: str | Path,
    dtype: str,
    lora: LoraConfig | None,
    asked: tuple[int | None, int | None],
    seed: int,
    optimizer: OptimizerConfig,
    micro_batch_tokens: int | None,
    gradient_checkpointing: bool | None,
) -> RewardParts:
    """Of a model's files: see RewardModel.from_pretrained.

    dtype  a name; asked (outputs, ensemble), None: what the folder says
    """
    check_asked(*asked)
    source = resolve(path)
    model = load_classifier(source, DTYPES[dtype])
    heads = head_sizes(model, *asked)
    width = model.decoder.spec.hidden_size
    head = (
        RewardHead.new(heads[0] * heads[1], width, seed)
        if model.score is None
        else RewardHead(model.score)
    )
    decoder = model.decoder if lora is None else frozen_base(model.decoder)
    return RewardParts(
        decoder,
        None if lora is None else Lora(decoder, lora),
        head,
        heads,
        model.config,
        load_tokenizer(source),
        optimizer,
        dtype,
        micro_batch_tokens,
        gradient_checkpointing,
        reading_of(model, heads[0]),
    )


def restored_reward(content: Checkpoint, state: RewardState, path: str | Path) -> RewardParts:
    """Of a checkpoint: see RewardModel.load_checkpoint."""
    decoder, lora, score = reward_parts(content, state, path)
    return RewardParts(
        decoder,
        lora,
        RewardHead(score),
        state.heads,
        content.model["config.json"],
        checkpoint_tokenizer(content, path),
        state.optimizer,
        state.dtype,
        state.micro_batch_tokens,
        state.gradient_checkpointing,
        state.reading,
    )
