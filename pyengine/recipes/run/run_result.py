"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengine.evaluation.standard_errors import mean_and_error


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    rounds, steps          rounds done and optimizer steps among them
    before, after          held-out mean reward before and after training, each with its standard
                           error over prompts; None where nothing was sampled
    gain                   their mean difference, paired by prompt, with its standard error
    seconds                wall-clock time of this call, model loading included
    interrupted            stopped early by a signal; `resume` continues
    model_round            the round whose weights were saved as the model; None: not yet
    """

    folder: Path
    rounds: int
    steps: int
    seconds: float
    interrupted: bool = False
    before: tuple[float, float | None] | None = None
    after: tuple[float, float | None] | None = None
    gain: tuple[float, float | None] | None = None
    model_round: int | None = None


def mean_of(values: list[Any]) -> tuple[float, float | None] | None:
    """Of the values that are there, with its standard error."""
    known = [value for value in values if value is not None]
    return mean_and_error(known) if known else None
