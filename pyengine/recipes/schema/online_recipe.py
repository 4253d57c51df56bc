"""A recipe of the loop `online`: prompts are sampled, judged, paired and learned from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.schema.part_names import absolute_part
from pyengine.recipes.schema.recipe import Recipe, absolute_data, absolute_function
from pyengine.recipes.schema.strict_yaml import Document


@dataclass(frozen=True)
class PromptsSpec:
    """Where prompts come from.

    file    .jsonl or .parquet, relative to the recipe; "packaged:NAME" for one that ships with
            pyengine
    column  the field that holds the prompt: text or chat messages; the row's other fields go to the
            reward function
    """

    SHORTHAND: ClassVar[str] = "file"
    file: str
    column: str = "prompt"

    def absolute(self, base: Path) -> PromptsSpec:
        """With the file below `base`."""
        return dataclasses.replace(self, file=absolute_data(self.file, base))


@dataclass(frozen=True)
class RewardSpec:
    """What judges the responses.

    function             "vader" (built in), or the user's own code as "file.py:function" or
                         "package.module:function"; the latter runs only where the caller allows
                         code
    timeout_s            seconds for one round's rewards; samples without a reward by then count as
                         errors
    label_threshold      gives labels: a response is desirable where its reward is greater
    bradley_terry_scale  gives a preference matrix: P(i beats j) = sigmoid((r_i - r_j) / scale)
    columns              gives columns that an objective asks for by name ("safe", "visits"): name
                         -> a further function
    token_columns        gives numbers of every token ("token_weight"): name -> a function that
                         returns a list of them for each response
    """

    SHORTHAND: ClassVar[str] = "function"
    function: str
    timeout_s: float = field(default=60.0, metadata={"above": 0})
    label_threshold: float | None = None
    bradley_terry_scale: float | None = field(default=None, metadata={"above": 0})
    columns: dict[str, str] = field(default_factory=dict)
    token_columns: dict[str, str] = field(default_factory=dict)

    @property
    def functions(self) -> list[str]:
        """All that it names."""
        return [self.function, *self.columns.values(), *self.token_columns.values()]

    def absolute(self, base: Path) -> RewardSpec:
        """With the files that hold its code below `base`."""
        return dataclasses.replace(
            self,
            function=absolute_function(self.function, base),
            columns={k: absolute_function(f, base) for k, f in self.columns.items()},
            token_columns={k: absolute_function(f, base) for k, f in self.token_columns.items()},
        )


@dataclass(frozen=True)
class JudgeSpec:
    """What is done about a judge that fails: see loops.JudgePolicy."""

    SHORTHAND: ClassVar[str] = "on_failure"
    on_failure: str = "stop"
    retries: int = field(default=0, metadata={"min": 0})
    backoff_s: float = field(default=1.0, metadata={"min": 0})
    deadline_s: float = field(default=600.0, metadata={"above": 0})


@dataclass(frozen=True)
class EvalSpec:
    """Evaluation on held-out prompts, before the first and after the last round.

    every       also after every so many rounds; 0: no
    n           responses a prompt
    max_tokens  tokens a response; None: as in training
    seed        of the draws; the same at every evaluation
    """

    SHORTHAND: ClassVar[str] = "prompts"
    prompts: PromptsSpec
    every: int = field(default=0, metadata={"min": 0})
    n: int = field(default=4, metadata={"min": 1})
    max_tokens: int | None = field(default=None, metadata={"min": 1})
    seed: int = field(default=1, metadata={"min": 0})


@dataclass(frozen=True, kw_only=True)
class OnlineRecipe(Recipe):
    """One online alignment run; what runs of every loop say is in Recipe.

    prompts             see PromptsSpec
    reward              a function that judges, see RewardSpec; this or `source`
    source              {name, and that source's own settings}; see `pyengine parts sources`
    pairing             {name, and that pairing's own settings}; see `pyengine parts`
    sampling            see SamplingParams
    rounds              rounds of sampling and updating
    prompts_per_round   prompts a round; None: all
    updates_per_round   optimizer steps a round
    min_valid_fraction  least share of responses that must have a reward
    judge               see JudgeSpec
    overlong            a prompt that leaves no room for max_tokens in the model's context: "error",
                        "drop", or "truncate_left" (its beginning is cut)
    eval                see EvalSpec; None: no evaluation
    """

    name: ClassVar[str] = "online"
    prompts: PromptsSpec
    reward: RewardSpec | None = None
    source: dict[str, Any] | None = field(default=None, metadata={"registry": SOURCES})
    pairing: dict[str, Any] = field(
        default_factory=lambda: {"name": "best_worst"}, metadata={"registry": PAIRINGS}
    )
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(n=4))
    rounds: int = field(default=20, metadata={"min": 1})
    prompts_per_round: int | None = field(default=None, metadata={"min": 1})
    updates_per_round: int = field(default=1, metadata={"min": 1})
    min_valid_fraction: float = field(default=0.5, metadata={"min": 0, "max": 1})
    judge: JudgeSpec = field(default_factory=JudgeSpec)
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    eval: EvalSpec | None = None

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        if (self.reward is None) == (self.source is None):
            given = "neither" if self.reward is None else "both"
            raise ConfigError(
                f"{document.where('reward')} one of reward and source must say what judges the "
                f"responses but {given} does"
            )
        objective = OBJECTIVES.make(**self.objective)
        if self.sampling.n < 2 and objective.unit != "response":
            raise ConfigError(
                f"{document.where('sampling.n')} sampling.n must be >= 2, "
                "responses are compared with each other, "
                f"but is {self.sampling.n}"
            )
        shortest = self.sampling.min_tokens
        if self.eval and self.eval.max_tokens and self.eval.max_tokens < shortest:
            raise ConfigError(
                f"{document.where('eval.max_tokens')} eval.max_tokens must be >= "
                f"sampling.min_tokens ({shortest}) but is {self.eval.max_tokens}"
            )

    def absolute(self, base: Path) -> Self:
        """See Recipe.absolute."""
        evaluation = self.eval
        if evaluation is not None:
            held_out = evaluation.prompts.absolute(base)
            evaluation = dataclasses.replace(evaluation, prompts=held_out)
        return dataclasses.replace(
            super().absolute(base),
            prompts=self.prompts.absolute(base),
            reward=None if self.reward is None else self.reward.absolute(base),
            source=None if self.source is None else absolute_part(SOURCES, self.source, base),
            eval=evaluation,
        )
