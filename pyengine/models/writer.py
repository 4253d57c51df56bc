"""Model files out: what is written here, transformers loads with identical logits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pyengine.errors import CheckpointError, ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.families import FAMILIES, family_of
from pyengine.models.hf_folder import INDEX_FILE, SINGLE_FILE
from pyengine.models.spec import DecoderSpec

MAX_SHARD_BYTES = 5_000_000_000

# What a saved model folder may hold: replacing the folder deletes these and nothing else.
_MODEL_FILE = re.compile(
    r".*\.safetensors|.*\.safetensors\.index\.json|(generation_)?config\.json|"
    r"(tokenizer|special_tokens|added_tokens|chat_template|vocab|merges).*|.*\.model|README\.md|"
    r"\.gitattributes"
)


def hf_tensors(spec: DecoderSpec, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters, gradients or anything else under our names, as Hugging Face names and shapes.

    A Hugging Face tensor none of whose parts is given is left out.

    Raises: ConfigError where some parts of a tensor are given and others not.
    """
    for entry in FAMILIES[spec.family].tensors(spec):
        parts = [tensors[part] for part in entry.parts if part in tensors]
        if not parts:
            continue
        if len(parts) < len(entry.parts):
            absent = next(part for part in entry.parts if part not in tensors)
            raise ConfigError(
                f"[hf_tensors] {entry.name} must have all parts but {absent} is absent"
            )
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        yield entry.name, whole.T if entry.transposed else whole


def write_model(
    folder: str | Path,
    decoder: Decoder,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    further: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes config.json, generation_config.json and fp32 safetensors into an existing folder.

    Use inside `pyengine.files.atomic_folder`. Shards with an index above `max_shard_bytes`.
    further  tensors beside the decoder's, by the names that they have in the file

    Raises: CheckpointError where the disk refuses or a weight is not finite.
    """
    target = Path(folder)
    kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "quantization_config")}
    kept.setdefault("architectures", [family_of(config).architecture])
    _write_json(target / "config.json", kept | {"dtype": "float32"})
    if generation_config:
        _write_json(target / "generation_config.json", generation_config)
    whole = dict(hf_tensors(decoder.spec, _detached(decoder))) | dict(further or {})
    tensors = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in whole.items()}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"[save] weights must be finite but {name} is not")
    _write_shards(target, tensors, max_shard_bytes)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # One pass without a mask as large as the tensor: NaN wins over every bound.
    return all(bool(bound.isfinite()) for bound in tensor.detach().float().aminmax())


def _detached(decoder: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in decoder.named_parameters()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_shards(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    for name, shard in zip(names, shards, strict=True):
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"[save] {folder / name} must be writable but {error}") from error
    if len(shards) > 1:
        weight_map = {t: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(
            folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def check_save_folder(path: str | Path, overwrite: bool = False) -> None:
    """Refuses a target whose replacement would delete something that is not a saved model.

    Raises: ConfigError for a file in the way, or a folder that holds anything else than model
    files (unless `overwrite`).
    """
    folder = Path(path)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"[save_pretrained] {folder} must be a folder but is a file")
    others = sorted(p.name for p in folder.iterdir() if not _MODEL_FILE.fullmatch(p.name))
    if others and not overwrite:
        raise ConfigError(
            f"[save_pretrained] {folder} must be empty or a saved model but holds {others[0]}; "
            "saving would delete it (overwrite=True allows that)"
        )
