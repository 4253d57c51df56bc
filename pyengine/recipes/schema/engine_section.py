"""A recipe's `engine:` section: the options of `Engine.from_pretrained`, field by field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyengine.engine import LoraConfig
from pyengine.engine.config import EngineConfig
from pyengine.engine.optim.available import OPTIMIZERS
from pyengine.engine.optim.optimizer_config import ADAMW_OPTIONS

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
    optimizer: dict[str, Any] | None = field(default=None, metadata={"registry": OPTIMIZERS})
    learning_rate: float | None = field(default=None, metadata={"above": 0})
    betas: tuple[float, ...] | None = None
    eps: float | None = field(default=None, metadata={"above": 0})
    weight_decay: float | None = field(default=None, metadata={"min": 0})
    optimizer_bits: int | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = field(default=0, metadata={"min": 0})
    max_grad_norm: float | None = field(default=1.0, metadata={"above": 0})
    lora: LoraConfig | str | None = None
    kv_tokens: int | None = field(default=None, metadata={"min": 1})
    micro_batch_tokens: int | None = field(default=None, metadata={"min": 1})
    gradient_checkpointing: bool | None = None
    reference_cache: str | None = None
    snapshot_folder: str | None = None
    shards: int = field(default=1, metadata={"min": 1})

    def __post_init__(self) -> None:
        # What the engine would refuse is refused where the recipe is read.
        EngineConfig.from_options(self.options(total_steps=2**31))

    @property
    def has_reference(self) -> bool:
        """Whether the engine will have one."""
        return self.reference != "none"

    def options(self, total_steps: int) -> dict[str, Any]:
        """Keyword arguments of `Engine.from_pretrained` for a run of so many steps."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("optimizer", *ADAMW_OPTIONS):  # AdamW's are not given beside an optimizer
            if given[name] is None:
                del given[name]
        if "optimizer" in given:
            given["optimizer"] = OPTIMIZERS.make(**given["optimizer"])
        return given | {"total_steps": total_steps}

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
