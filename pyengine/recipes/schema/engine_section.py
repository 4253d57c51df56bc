"""A recipe's `engine:` section: the options of `Engine.from_pretrained`, field by field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyengine.engine import LoraConfig

FOLDERS = ("reference_cache", "snapshot_folder")
# A resumed run may have other ones.
CHANGE_NO_BIT = ("kv_tokens", "micro_batch_tokens", "gradient_checkpointing", *FOLDERS)


@dataclass(frozen=True)
class EngineSection:
    """See Engine.from_pretrained; None leaves the choice to it.

    `total_steps` is the run's own; relative folders belong to the recipe.
    """

    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    reference: str = "frozen"
    learning_rate: float = field(default=1e-6, metadata={"above": 0})
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = field(default=0, metadata={"min": 0})
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = field(default=1e-8, metadata={"above": 0})
    weight_decay: float = field(default=0.0, metadata={"min": 0})
    max_grad_norm: float | None = field(default=1.0, metadata={"above": 0})
    optimizer_bits: int = 32
    lora: LoraConfig | str | None = None
    kv_tokens: int | None = field(default=None, metadata={"min": 1})
    micro_batch_tokens: int | None = field(default=None, metadata={"min": 1})
    gradient_checkpointing: bool | None = None
    reference_cache: str | None = None
    snapshot_folder: str | None = None

    @property
    def has_reference(self) -> bool:
        """Whether the engine will have one."""
        return self.reference != "none"

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Engine.from_pretrained`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def absolute(self, base: Path) -> EngineSection:
        """With the folders that it names below `base` where they are relative."""
        changes: dict[str, Any] = {
            name: str(base / Path(folder).expanduser())
            for name in FOLDERS
            if (folder := getattr(self, name)) is not None
        }
        if isinstance(self.lora, str):
            changes["lora"] = str(base / Path(self.lora).expanduser())
        if self.reference not in ("frozen", "none", "adapter"):
            path = base / Path(self.reference).expanduser()
            if path.exists():
                changes["reference"] = str(path)
        return dataclasses.replace(self, **changes)
