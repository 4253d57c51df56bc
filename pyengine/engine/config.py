"""Settings of an engine: what they may be, and the device and dtype that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch

from pyengine import _C
from pyengine.engine.optim.optimizer_config import OPTIMIZER_OPTIONS, OptimizerConfig
from pyengine.errors import ConfigError
from pyengine.models.lora import LoraConfig
from pyengine.ops.linear import Kind
from pyengine.ranks import current
from pyengine.ranks.world import check_shards
from pyengine.runtime import isa

Reference = Literal["frozen", "none", "adapter"]

# What activations are; "int8" packs weights to 8 bits for sampling and scoring.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}


# Fields that say where an engine runs and keeps its files: a checkpoint leaves them to the machine.
PLACE_OPTIONS = ("device", "reference_cache", "snapshot_folder")


@dataclass(frozen=True)
class EngineConfig:
    """Every option of an engine: what `Engine.from_pretrained` takes, what a recipe's `engine`
    section may say, and what a checkpoint keeps. Raises ConfigError naming the field and its value.

    source     what the weights were first loaded from, for display
    dtype      "float32", "bfloat16", "int8", or "auto" before the model is loaded
    reference  "frozen", "none", "adapter", or before the model is loaded what else
               `Engine.from_pretrained` takes
    lora       the adapters that are trained instead of the weights, or before the model is loaded
               their folder; None: there are none
    optimizer  a recipe says it by OPTIMIZER_OPTIONS
    The others are described where `Engine.from_pretrained` is.
    """

    source: str
    dtype: str = "auto"
    reference: str | Path = "frozen"
    seed: int = 0
    kv_tokens: int | None = None
    micro_batch_tokens: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    gradient_checkpointing: bool | None = None
    lora: LoraConfig | str | None = None
    device: str = "cpu"
    reference_cache: str | None = None
    snapshot_folder: str | None = None
    shards: int = 1

    @property
    def trains(self) -> bool:
        """Whether there are fp32 masters to update and to save."""
        return self.dtype != "int8"

    @property
    def adapters(self) -> LoraConfig | None:
        """`lora` of a loaded engine."""
        assert not isinstance(self.lora, str)
        return self.lora

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """What `from_options` takes."""
        own = [f.name for f in fields(cls) if f.name not in ("source", "optimizer")]
        return (*own, *OPTIMIZER_OPTIONS)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], source: str | Path = "") -> Self:
        """Of options as `Engine.from_pretrained` takes them, or as a file has them: paths and names
        as strings, `lora` and `optimizer` as mappings, lists for tuples. No model is loaded.

        Raises ConfigError for an unknown option and for a value that breaks its rule.
        """
        names = cls.option_names()
        for name in options:
            if name not in names:
                raise ConfigError(
                    f"[Engine] {name!r:.80} is no option of an engine; they are "
                    f"{', '.join(sorted(names))}"
                )
        own = {n: value for n, value in options.items() if n not in OPTIMIZER_OPTIONS}
        own["lora"] = _lora_of(own.get("lora"))
        for name in PLACE_OPTIONS:
            if isinstance(own.get(name), (Path, torch.device)):
                own[name] = str(own[name])
        optimizer = OptimizerConfig.from_options(options)
        made = cls(source=str(source), optimizer=optimizer, **own)
        if made.trains:
            check_shards(made.shards)
        if made.snapshot_folder is not None and current().size > 1:
            raise ConfigError(
                "[Engine] snapshot_folder must be None with several ranks, which would write the "
                f"same files, but is {made.snapshot_folder!r}"
            )
        check_device(made, device_of(made.device))
        dtype_name(made.dtype, torch.device(made.device))
        return made

    def saved(self) -> dict[str, Any]:
        """As a checkpoint keeps it: JSON, without what is the machine's."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PLACE_OPTIONS}
        lora = None if self.adapters is None else asdict(self.adapters)
        return kept | {"optimizer": self.optimizer.saved(), "lora": lora}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Self:
        """Of what `saved` gave. Raises ConfigError, KeyError or TypeError where it is none."""
        given = dict(saved)
        given["optimizer"] = OptimizerConfig.from_saved(given["optimizer"])
        given["lora"] = _lora_of(given.get("lora"))
        made = cls(**given)
        if made.reference not in get_args(Reference) or made.dtype == "auto":
            raise ConfigError(
                f"[Engine] dtype and reference must be a loaded engine's but are {made.dtype!r} "
                f"and {made.reference!r:.80}"
            )
        return made

    def __post_init__(self) -> None:
        checks = {
            "dtype": (
                self.dtype == "auto" or self.dtype in DTYPES,
                "'auto', 'float32', 'bfloat16' or 'int8'",
            ),
            "reference": (
                isinstance(self.reference, (str, Path)) and self.reference != "",
                "'frozen', 'none', 'adapter', a model's path or the name of a snapshot in "
                "snapshot_folder",
            ),
            "seed": (
                _is_int(self.seed) and -(2**63) <= self.seed < 2**63,
                "an integer of 64 bits",
            ),
            "kv_tokens": (_is_count(self.kv_tokens), "an integer >= 1 or None"),
            "micro_batch_tokens": (_is_count(self.micro_batch_tokens), "an integer >= 1 or None"),
            "gradient_checkpointing": (
                self.gradient_checkpointing in (True, False, None),
                "True, False or None",
            ),
            "shards": (
                _is_int(self.shards) and self.shards > 0 and self.shards.bit_count() == 1,
                "a power of two",
            ),
            "reference_cache": (_is_place(self.reference_cache), "a folder or None"),
            "snapshot_folder": (_is_place(self.snapshot_folder), "a folder or None"),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ConfigError(f"[Engine] {name} must be {rule} but is {getattr(self, name)!r}")
        if self.reference == "adapter" and self.lora is None:
            raise ConfigError(
                "[Engine] reference is 'adapter', the model without its adapters, but lora is None"
            )
        if self.lora is not None and not self.trains:
            raise ConfigError(
                f"[Engine] lora needs weights that gradients pass through but dtype is "
                f"{self.dtype!r}, which only samples and scores"
            )


def _lora_of(lora: Any) -> LoraConfig | str | None:
    if isinstance(lora, Mapping):
        unknown = [name for name in lora if name not in {f.name for f in fields(LoraConfig)}]
        if unknown:
            raise ConfigError(f"[LoraConfig] {unknown[0]!r:.80} is not a field")
        return LoraConfig(**lora)
    if isinstance(lora, (str, Path)):
        return str(lora)
    if lora is None or isinstance(lora, LoraConfig):
        return lora
    raise ConfigError(
        "[Engine] lora must be a LoraConfig, the path of an adapter's folder or None "
        f"but is {lora!r:.80}"
    )


def _is_place(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return value is None or (_is_int(value) and value >= 1)


def device_of(device: str | torch.device) -> torch.device:
    """The device by its name. Raises ConfigError for one that is unknown or not usable here."""
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"[Engine] device must be 'cpu' or 'cuda' but is {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"[Engine] device must be 'cpu' or 'cuda' but is {device!r}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"[Engine] device is {device!r} but torch sees no GPU")
    if chosen.type == "cuda" and not _C.cuda_built:
        raise ConfigError(
            f"[Engine] device is {device!r} but this pyengine was built without CUDA kernels"
        )
    return chosen


def check_device(config: EngineConfig, device: torch.device) -> None:
    """Raises ConfigError for what the kernels of the CPU do and a GPU cannot yet."""
    for name, asked in (
        ("lora", config.lora is not None),
        ("gradient_checkpointing", config.gradient_checkpointing is True),
    ):
        if asked and device.type != "cpu":
            raise ConfigError(
                f"[Engine] {name} must be on the CPU, whose kernels train with it, but device is "
                f"'{device}'"
            )


def packed_kind(dtype: str) -> Kind:
    """How the matrices of an engine of this dtype are packed."""
    return cast(Kind, dtype)


def dtype_name(dtype: str, device: torch.device) -> str:
    """What "auto" stands for on a device; any other name as it is. Raises ConfigError."""
    if dtype == "int8" and device.type != "cpu":
        raise ConfigError(f"[Engine] dtype 'int8' must be on the CPU but device is '{device}'")
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" or isa() == "avx512_bf16" else "float32"
