"""Settings of an engine: what they may be, and the device and dtype that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch

from pyengine import _C
from pyengine.engine.optim.optimizer import OptimizerConfig
from pyengine.errors import ConfigError
from pyengine.models.lora import LoraConfig
from pyengine.ops.linear import Kind
from pyengine.runtime import isa

Reference = Literal["frozen", "none", "adapter"]

# What activations are; "int8" packs weights to 8 bits for sampling and scoring.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}


@dataclass(frozen=True)
class EngineConfig:
    """Settings that a checkpoint carries. Raises ConfigError naming the field and its value.

    source  what the weights were first loaded from, for display
    dtype   "float32", "bfloat16" or "int8", never "auto"
    lora    the adapters that are trained instead of the weights; None: there are none
    """

    source: str
    dtype: str
    reference: Reference
    seed: int
    kv_tokens: int | None
    micro_batch_tokens: int | None
    optimizer: OptimizerConfig
    gradient_checkpointing: bool | None = None
    lora: LoraConfig | None = None

    @property
    def trains(self) -> bool:
        """Whether there are fp32 masters to update and to save."""
        return self.dtype != "int8"

    def __post_init__(self) -> None:
        checks = {
            "dtype": (self.dtype in DTYPES, "'auto', 'float32', 'bfloat16' or 'int8'"),
            "reference": (self.reference in get_args(Reference), "'frozen', 'none' or 'adapter'"),
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
