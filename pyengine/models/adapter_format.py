"""PEFT's adapter folders, in and out: adapter_config.json and adapter_model.safetensors.

Only what is computed exactly is read; anything else is refused by name. Never a pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyengine.errors import CheckpointError, ConfigError, ModelFileError
from pyengine.files import atomic_folder
from pyengine.models.hf_folder import inside, read_json
from pyengine.models.lora import ALL_LINEAR, Lora, LoraConfig, adaptable, ends_with
from pyengine.models.spec import DecoderSpec
from pyengine.models.writer import is_finite

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIX = re.compile(r"\.lora_(A|B)\.weight$")
_DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16")
_PICKLE = "adapter_model.bin"

# Read here, or without effect on what a saved adapter computes. Dropout is off outside of training,
# and which modules have adapters is read off the tensors.
_KNOWN = {
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "lora_dropout", "bias", "init_lora_weights", "megatron_core", "qalora_group_size",
    "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Other ways to begin change the base weights too, or leave A and B of another kind.
_INITS = (True, False, "gaussian", "orthogonal")

# What a saved adapter may hold: replacing the folder deletes these and nothing else.
_OURS = (CONFIG_FILE, TENSOR_FILE, _PICKLE, "README.md", ".gitattributes")


def read_adapter(path: str | Path, spec: DecoderSpec) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and tensors of an adapter folder for a decoder; the tensors by `Lora`'s names.

    Raises ModelFileError for a missing or corrupt file or a tensor that does not fit, ConfigError
    for a setting that is not supported.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFileError(f"[{folder}] must be an adapter's folder but is none")
    settings = read_json(folder, CONFIG_FILE)
    where = folder / CONFIG_FILE
    _refuse_unsupported(settings, where)
    tensors = _read_tensors(folder)
    modules = _modules(tensors, spec, folder / TENSOR_FILE)
    patterns = [settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    try:
        config = LoraConfig(
            settings.get("r", 8),
            settings.get("lora_alpha", 8),
            short_targets(modules, spec),
            settings.get("use_rslora") or False,
            0,
            *patterns,
        )
    except ConfigError as error:
        raise ConfigError(f"[{where}] {error}") from error
    return config, tensors


def _refuse_unsupported(settings: Mapping[str, Any], where: Path) -> None:
    rules = {
        "peft_type": ("LORA", settings.get("peft_type") == "LORA"),
        "bias": ("none", settings.get("bias", "none") == "none"),
        "init_lora_weights": (
            f"one of {_INITS}",
            settings.get("init_lora_weights", True) in _INITS,
        ),
    }
    for key, (rule, valid) in rules.items():
        if not valid:
            raise ConfigError(f"[{where}] {key} must be {rule} but is {settings.get(key)!r:.80}")
    for key, value in settings.items():
        if key not in _KNOWN and value:
            raise ConfigError(f"[{where}] {key} is not supported but is {value!r:.80}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / TENSOR_FILE).exists():
        hint = " (a pickle can run code, convert it first)" if (folder / _PICKLE).exists() else ""
        raise ModelFileError(f"[{folder}] must hold {TENSOR_FILE} but does not{hint}")
    path = inside(folder, TENSOR_FILE)
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"[{path}] must be a safetensors file but {error}") from error
    tensors = {}
    for name, tensor in loaded.items():
        if str(tensor.dtype) not in _DTYPES:
            raise ModelFileError(
                f"[{path}] tensor {name:.200} must be one of {_DTYPES} but is {tensor.dtype}"
            )
        tensors[name.removeprefix(_PREFIX)] = tensor.float()
    return tensors


def _modules(tensors: Mapping[str, Tensor], spec: DecoderSpec, path: Path) -> list[str]:
    """Modules that have an adapter, in the model's order."""
    found = set()
    known = adaptable(spec)
    for name in tensors:
        module = _SUFFIX.sub("", name)
        if module == name or module not in known:
            raise ModelFileError(
                f"[{path}] every tensor must be lora_A or lora_B of a matrix of {spec.family}'s "
                f"layers but {name:.200} is not"
            )
        found.add(module)
    if not found:
        raise ModelFileError(f"[{path}] must hold at least one adapter but holds none")
    return [name for name in known if name in found]


def short_targets(modules: list[str], spec: DecoderSpec) -> str | tuple[str, ...]:
    """The shortest targets that stand for just these modules."""
    known = adaptable(spec)
    if len(modules) == len(known):
        return ALL_LINEAR
    ends = tuple(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    meant = [name for name in known if any(ends_with(name, end) for end in ends)]
    return ends if meant == modules else tuple(modules)


def load_tensors(lora: Lora, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Sets A and B of every adapter, all of them or none.

    Raises ModelFileError for a tensor that is missing, unexpected, of another shape or not finite.
    """
    parameters = lora.parameters
    if wrong := sorted(parameters.keys() ^ tensors.keys()):
        what = "is missing" if wrong[0] in parameters else "belongs to no adapter"
        raise ModelFileError(f"[{where}] tensor {wrong[0]:.200} {what}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ModelFileError(
                f"[{where}] tensor {name} must have shape {tuple(parameter.shape)} "
                f"but has {tuple(tensors[name].shape)}"
            )
        if not is_finite(tensors[name]):
            raise ModelFileError(f"[{where}] tensor {name} must be finite but is not")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def peft_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Adapters' parameters or gradients under the names that `peft` saves them by."""
    for name, tensor in tensors.items():
        yield f"{_PREFIX}{name}", tensor.detach()


def write_adapter(
    path: str | Path, lora: Lora, base_model: str | None, overwrite: bool = False
) -> None:
    """Writes a folder that `peft` loads; atomic.

    base_model  what the adapter belongs to, for display
    Raises ConfigError where `path` holds anything but a saved adapter (unless `overwrite`),
    CheckpointError where the disk refuses or a number is not finite.
    """
    _check_folder(Path(path), overwrite)
    tensors = {name: p.contiguous() for name, p in peft_tensors(lora.parameters)}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"[save_adapter] adapters must be finite but {name} is not")
    # The settings by name, but patterns in their own order: the first that fits counts.
    text = json.dumps(dict(sorted(_settings(lora, base_model).items())), indent=2)
    with atomic_folder(path) as folder:
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        try:
            save_file(tensors, folder / TENSOR_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"[save_adapter] {path} must be writable but {error}") from error


def _settings(lora: Lora, base_model: str | None) -> dict[str, Any]:
    config = lora.config
    targets = config.targets
    if targets == ALL_LINEAR:  # not left to a rule that may differ between versions
        targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in lora.adapters))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "use_rslora": config.use_rslora,
        "bias": "none",
        "fan_in_fan_out": lora.spec.family == "gpt2",  # its files hold matrices as (in, out)
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"[save_adapter] {folder} must be a folder but is a file")
    others = sorted(p.name for p in folder.iterdir() if p.name not in _OURS)
    if others and not overwrite:
        raise ConfigError(
            f"[save_adapter] {folder} must be empty or a saved adapter but holds {others[0]}; "
            "saving would delete it (overwrite=True allows that)"
        )
