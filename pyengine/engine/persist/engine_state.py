"""What an engine is made of, read back from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.config import DTYPES, EngineConfig, check_device, device_of, dtype_name
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.persist.checkpoint import SNAPSHOT, Checkpoint
from pyengine.engine.weights.packed_lora import frozen_base, restored_lora
from pyengine.errors import CheckpointError, ConfigError, ModelFileError
from pyengine.models.decoder import Decoder
from pyengine.models.families import parse_config
from pyengine.models.loader import build_decoder
from pyengine.models.lora import Lora
from pyengine.models.source import ModelSource, resolve
from pyengine.models.writer import hf_tensors


@dataclass(frozen=True)
class EngineState:
    """What a checkpoint knows beside tensors."""

    config: EngineConfig
    step_count: int
    skipped_in_a_row: int
    extra: dict[str, Any]
    moments_reset_at: int = 0
    snapshots: tuple[str, ...] = ()
    reference_snapshot: str | None = None

    def on(self, device: Any, **settings: Any) -> EngineState:
        """The same with settings of this machine; None: as saved, "auto": planned anew.

        Raises ConfigError.
        """
        given = {n: v for n, v in settings.items() if v is not None}
        if "dtype" in given:
            given["dtype"] = dtype_name(given["dtype"], device_of(device))
        for name in ("kv_tokens", "micro_batch_tokens"):
            if given.get(name) == "auto":
                given[name] = None
        for name in ("reference_cache", "snapshot_folder"):
            if isinstance(given.get(name), Path):
                given[name] = str(given[name])
        config = replace(self.config, device=str(device), **given)
        check_device(config, device_of(device))
        return replace(self, config=config)


def saved_state(
    config: EngineConfig, optimizer: Optimizer, snapshots: Snapshots, extra: dict[str, Any]
) -> dict[str, Any]:
    """What `engine_state` reads back."""
    return {
        "step_count": optimizer.step_count,
        "skipped_in_a_row": optimizer.skipped_in_a_row,
        "moments_reset_at": optimizer.reset_at,
        "snapshots": snapshots.names,
        "reference_snapshot": snapshots.reference,
        "config": config.saved(),
        "extra": extra,
    }


def engine_state(content: Checkpoint, path: str | Path) -> EngineState:
    """Raises CheckpointError for a state that is not an engine's, ConfigError for its settings."""
    try:
        config = EngineConfig.from_saved(content.state["config"])
        if not config.trains:
            raise ValueError(f"dtype {config.dtype!r} does not train")
        return EngineState(
            config,
            int(content.state["step_count"]),
            int(content.state["skipped_in_a_row"]),
            dict(content.state["extra"]),
            int(content.state.get("moments_reset_at", 0)),
            tuple(map(str, content.state.get("snapshots", ()))),
            content.state.get("reference_snapshot"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"[{path}] state.json is not an engine's: {error}") from error


def rebuilt(config: dict[str, Any], tensors: Any, path: str | Path, dtype: str) -> Decoder:
    """The decoder of a checkpoint's tensors. Raises CheckpointError."""
    try:
        spec = parse_config(config, f"{path}: config.json")
        return build_decoder(config, hf_tensors(spec, tensors), str(path), DTYPES[dtype])
    except (ConfigError, ModelFileError) as error:
        raise CheckpointError(f"[{path}] is not of a model that can be loaded: {error}") from error


def rebuilt_models(
    content: Checkpoint, state: EngineState, path: str | Path
) -> tuple[Decoder, Decoder | None, Lora | None]:
    """Policy, reference (unless it is a snapshot) and adapters of a checkpoint.

    Raises CheckpointError.
    """
    config = state.config

    def decoder_of(name: str) -> Decoder:
        if name not in content.tensors:
            raise CheckpointError(f"[{path}] {name}.safetensors is missing")
        return rebuilt(content.model["config.json"], content.tensors[name], path, config.dtype)

    policy, lora = decoder_of("policy"), None
    if not config.trains:
        policy = policy.frozen_copy()
    if config.adapters is not None:
        policy = frozen_base(policy)
        lora = restored_lora(policy, config.adapters, content.tensors.get("adapter", {}), path)
    if state.reference_snapshot is not None:
        return policy, None, lora
    if config.reference == "frozen":
        return policy, decoder_of("reference").frozen_copy(), lora
    return policy, policy if config.reference == "adapter" else None, lora


def restored_snapshots(
    models: tuple[Decoder, Decoder | None, Lora | None],
    state: EngineState,
    content: Checkpoint,
    path: str | Path,
    folder: str | Path | None,
) -> Snapshots:
    """The snapshots of a checkpoint, in a folder of the engine's own. Raises CheckpointError."""
    snapshots = Snapshots(models[0], models[2], folder)
    for name in state.snapshots:
        file = snapshot_file(name)
        if file not in content.digests:
            raise CheckpointError(f"[{path}] {file} is missing")
        snapshots.restore(name, Path(path) / file)
    if state.reference_snapshot is not None and state.reference_snapshot not in snapshots:
        raise CheckpointError(
            f"[{path}] reference_snapshot must be a snapshot but is {state.reference_snapshot!r}"
        )
    snapshots.reference = state.reference_snapshot
    return snapshots


def snapshot_file(name: str) -> str:
    """A snapshot's file in a checkpoint."""
    return f"{SNAPSHOT}{name}.safetensors"


def checkpoint_content(
    policy: Decoder,
    reference: Decoder | None,
    lora: Lora | None,
    moments: Mapping[str, Tensor],
    state: dict[str, Any],
    model: dict[str, Any],
    snapshots: Mapping[str, tuple[Path, str]],
) -> Checkpoint:
    """What a checkpoint of an engine holds."""
    tensors: dict[str, Any] = {"policy": _tensors(policy)}
    if moments:
        tensors["optimizer"] = moments
    if reference is not None and reference is not policy:
        tensors["reference"] = _tensors(reference)
    if lora is not None:
        tensors["adapter"] = lora.parameters
    files = {snapshot_file(name): where for name, where in snapshots.items()}
    return Checkpoint(state=state, tensors=tensors, model=model, files=files)


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in decoder.named_parameters()}


def fixed_files(config: EngineConfig) -> list[str]:
    """Files of a checkpoint that are the same at every step."""
    files = ["reference.safetensors"] if config.reference == "frozen" else []
    return files if config.lora is None else [*files, "policy.safetensors"]


def load_tokenizer(source: ModelSource) -> Tokenizer | None:
    """The tokenizer beside a model; None for a folder without one."""
    if source.kind == "hf" and not (source.path / "tokenizer.json").exists():
        return None
    return Tokenizer.load(source)


def checkpoint_tokenizer(content: Checkpoint, path: str | Path) -> Tokenizer | None:
    """A checkpoint's tokenizer, for which it still is the day of the run. Raises CheckpointError.

    Checkpoints without a date are older than dates; their runs go on with today's.
    """
    tokenizer = load_tokenizer(resolve(path))
    if tokenizer is not None and "date" in content.state:
        try:
            tokenizer.date = datetime.fromisoformat(content.state["date"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"[{path}] date must be an ISO date but is {content.state['date']!r}"
            ) from error
    return tokenizer
