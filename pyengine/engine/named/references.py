"""What `Engine.from_pretrained(reference=...)` may name beside the engine's own choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from pyengine.engine.config import Reference
from pyengine.engine.named.snapshots import SUFFIX
from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.loader import load_model
from pyengine.models.mapped import mapped_copy
from pyengine.models.source import ModelSource, resolve
from pyengine.models.spec import DecoderSpec


@dataclass(frozen=True)
class AskedReference:
    """own: one that the engine makes; else the path of a model, or a snapshot of the folder."""

    own: Reference = "none"
    path: str | Path | None = None
    snapshot: str | None = None


def asked_reference(reference: Any, snapshot_folder: str | Path | None) -> AskedReference:
    """Raises ConfigError for what is none of these."""
    if isinstance(reference, Path):
        return AskedReference(path=reference)
    if reference in get_args(Reference):
        return AskedReference(own=reference)
    if isinstance(reference, str) and reference:
        folder = None if snapshot_folder is None else Path(snapshot_folder)
        if folder is not None and (folder / f"{reference}{SUFFIX}").is_file():
            return AskedReference(snapshot=reference)
        if reference.startswith("pypi:") or Path(reference).exists():
            return AskedReference(path=reference)
    raise ConfigError(
        "[Engine] reference must be 'frozen', 'none', 'adapter', a model's path or the name of a "
        f"snapshot in snapshot_folder but is {reference!r:.200}"
    )


def frozen_model(decoder: Decoder, source: ModelSource, device: torch.device) -> Decoder:
    """A reference with the values of a decoder just loaded from `source`: in its files where the
    CPU's kernels can read them there, else a copy."""
    mapped = mapped_copy(decoder, source) if device.type == "cpu" else None
    return decoder.frozen_copy() if mapped is None else mapped


def load_reference(
    path: str | Path, spec: DecoderSpec, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """A frozen decoder of another model of the same shape.

    Raises ConfigError for one of another shape, ModelFileError for its files.
    """
    source = resolve(path)
    decoder = load_model(source, dtype).decoder
    if decoder.spec != spec:
        raise ConfigError(
            f"[Engine] reference {str(path)!r} must be a {spec.family} of the policy's shape and "
            "settings but is another model"
        )
    return frozen_model(decoder, source, device)
