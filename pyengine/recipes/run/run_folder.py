"""The files of one run: what may start or resume in a folder, line files that survive a kill.

recipe.yaml    the run's recipe, every field spelled out
inputs.json    the run's date, and digests of prompts, held-out prompts and reward code
metrics.jsonl  one line a round; round 0 is the evaluation before training
verdicts.jsonl what the judge said of each round's samples
samples.jsonl  evaluated responses, one line a prompt and evaluation
round_samples.jsonl  of each round the training samples of the highest and of the lowest rewards
log/           what other loggers than metrics.jsonl keep, where the recipe names any
checkpoints/   step-N after round N
model/         the final model as a Hugging Face folder
result.json, samples.md, plot.png   written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pyengine.errors import ConfigError
from pyengine.files import atomic_write
from pyengine.recipes.run.inputs import require_same
from pyengine.recipes.schema.load import dump_recipe, first_difference, load_recipe
from pyengine.recipes.schema.recipe import Recipe
from pyengine.reports.writers.jsonl import append_lines, json_line, read_lines

__all__ = ["RunFolder", "append_lines", "read_lines"]


class RunFolder:
    """Paths and line files of the run in folder `path`.

    checkpoints  where they are, if not there: a rank that is not the first keeps lines of its own
    """

    def __init__(self, path: str | Path, checkpoints: Path | None = None) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.round_samples = self.path / "round_samples.jsonl"
        self.log = self.path / "log"
        self.verdicts = self.path / "verdicts.jsonl"
        self.inputs = self.path / "inputs.json"
        self.samples_markdown = self.path / "samples.md"
        self.plot = self.path / "plot.png"
        self.result = self.path / "result.json"
        self.checkpoints = checkpoints or self.path / "checkpoints"
        self.model = self.path / "model"

    def open(self, recipe: Recipe, resume: bool) -> bool:
        """Make the folder this recipe's; True if it holds a run to resume.

        With `resume` an empty or absent folder starts a new run.

        Raises
            ConfigError  the folder holds other files, or a run of a different recipe
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"[output] {self.path} must be a folder but is a file")
        present = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        present = [name for name in present if not name.startswith("recipe.yaml.tmp")]
        if self.recipe.name in present and resume:
            self._require_same(recipe)
            return True
        if self.recipe.name in present:
            raise ConfigError(
                f"[output] {self.path} must be empty but holds a run; continue it with --resume, "
                "or choose another folder with --out"
            )
        if present:
            raise ConfigError(
                f"[output] {self.path} must be empty but holds {present[0]!r}; "
                "choose another folder with --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(self.recipe, dump_recipe(recipe))
        return False

    def _require_same(self, recipe: Recipe) -> None:
        difference = first_difference(load_recipe(self.recipe), recipe)
        if difference is not None:
            name, saved, asked = difference
            raise ConfigError(
                f"[resume] {name} must be what the run in {self.path} was started with, {saved!r}, "
                f"but is {asked!r}"
            )

    def checkpoint(self, round_number: int) -> Path:
        """The checkpoint folder of a round."""
        return self.checkpoints / f"step-{round_number}"

    def last_round(self) -> int:
        """Of the last line of the metrics; -1 where there is none."""
        rows = read_lines(self.metrics) if self.metrics.exists() else []
        return rows[-1]["round"] if rows else -1

    def date(self) -> datetime:
        """What the run's templates take for today: the day on which it began."""
        if self.inputs.exists():
            saved = json.loads(self.inputs.read_text(encoding="utf-8"))
            return datetime.fromisoformat(saved["date"])
        return datetime.now().replace(microsecond=0)

    def require_inputs(self, inputs: Mapping[str, str]) -> None:
        """Raises CheckpointError unless what the run reads has the digests on file.

        A run from before they were kept has none.
        """
        if self.inputs.exists():
            saved = json.loads(self.inputs.read_text(encoding="utf-8"))
            require_same(saved["digests"], inputs, str(self.path))

    def keep_inputs(self, inputs: Mapping[str, str], date: datetime) -> None:
        """Puts digests of what the run reads, and its date, on file, if they are not there.

        A run from before they were kept has checkpoints; one killed before it could has none.
        """
        if not self.inputs.exists() and not self.checkpoints.exists():
            kept = {"date": date.isoformat(), "digests": dict(inputs)}
            atomic_write(self.inputs, json.dumps(kept, indent=2) + "\n")

    def cut(self, last_round: int) -> None:
        """Drop lines of rounds after `last_round`, and a line that a kill left half-written."""
        for path in (self.metrics, self.samples, self.round_samples):
            if path.exists():
                kept = [row for row in read_lines(path) if row["round"] <= last_round]
                if path == self.metrics:  # samples whose metrics are not on file are drawn again
                    last_round = kept[-1]["round"] if kept else -1
                atomic_write(path, "".join(map(json_line, kept)))
        if self.verdicts.exists():  # also of rounds to come: they are not asked for again
            atomic_write(self.verdicts, "".join(map(json_line, read_lines(self.verdicts))))
