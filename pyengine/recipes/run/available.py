"""Runs by the name of their loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from pyengine.loops import Loop
from pyengine.loops.steps import Remember
from pyengine.objectives import Objective
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.offline_run import OfflineRun
from pyengine.recipes.run.prompted_runs import (
    EMRun,
    ExpertIterationRun,
    IterativeRun,
    OnlineRLHFRun,
    OnlineRun,
    OnPolicyRLRun,
    OptimisticRun,
    ReturnConditionedRun,
    SelfPlayRun,
    TemporalRun,
    TwoPlayerRun,
)
from pyengine.recipes.run.reward_model_run import RewardModelRun
from pyengine.recipes.schema.recipe import Recipe

RunClass = Callable[[Any, bool], "Run"]


class Run(Protocol):
    """What a run is made of, checked before a model is loaded: see PromptedRun.

    One that trains something else than an engine has a `learner`: see RewardModelRun.
    """

    name: ClassVar[str]

    @property
    def objective(self) -> Objective: ...

    @property
    def rounds(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def evaluates(self) -> bool: ...

    @property
    def eval_every(self) -> int: ...

    def inputs(self) -> dict[str, str]: ...

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None: ...

    def loop(self, engine: Any, remember: Remember) -> Loop: ...


RUNS: dict[str, RunClass] = {
    cls.name: cls
    for cls in (
        EMRun,
        ExpertIterationRun,
        IterativeRun,
        OfflineRun,
        OnlineRLHFRun,
        OnlineRun,
        OnPolicyRLRun,
        OptimisticRun,
        ReturnConditionedRun,
        RewardModelRun,
        SelfPlayRun,
        TemporalRun,
        TwoPlayerRun,
    )
}


def run_of(recipe: Recipe, allow_code: bool) -> Run:
    """The parts that a recipe names. Raises ConfigError and DataError for what is wrong."""
    return RUNS[recipe.name](recipe, allow_code)
