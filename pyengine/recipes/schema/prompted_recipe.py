"""What recipes of loops over prompts have in common: prompts are sampled and judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError
from pyengine.evaluation.available import EVALUATIONS
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences.allocations.available import ALLOCATIONS
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.selections.available import SELECTIONS
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.schema.part_names import absolute_part
from pyengine.recipes.schema.recipe import Recipe, absolute_data, absolute_function
from pyengine.recipes.schema.strict_yaml import Document
from pyengine.registry import Registry
from pyengine.samplers.available import SAMPLERS


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

    function             "brevity", "vader", "vader_negative" or "vader_positive" (built in), or the
                         user's own code as "file.py:function" or "package.module:function", which
                         runs only where the caller allows code
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
    timeout_s: float | None = field(default=None, metadata={"above": 0})
    slices: int = field(default=4, metadata={"min": 1})


@dataclass(frozen=True)
class EvalSpec:
    """Evaluation on held-out prompts, before the first and after the last round.

    every       also after every so many rounds; 0: no
    n           responses a prompt
    max_tokens  tokens a response; None: as in training
    seed        of the draws; the same at every evaluation
    source      {name, that source's settings} of what judges these responses: gold answers for a
                run that learns without; None: what judges the training samples
    metrics     what else is measured, a list of names or {name, settings}; see `pyengine parts
                evaluations`
    """

    SHORTHAND: ClassVar[str] = "prompts"
    prompts: PromptsSpec
    every: int = field(default=0, metadata={"min": 0})
    n: int = field(default=4, metadata={"min": 1})
    max_tokens: int | None = field(default=None, metadata={"min": 1})
    seed: int = field(default=1, metadata={"min": 0})
    source: dict[str, Any] | None = field(default=None, metadata={"registry": SOURCES})
    metrics: list[dict[str, Any]] = field(
        default_factory=list, metadata={"registry": EVALUATIONS, "many": True}
    )


@dataclass(frozen=True, kw_only=True)
class PromptedRecipe(Recipe):
    """A run of a loop over prompts; what runs of every loop say is in Recipe.

    prompts             see PromptsSpec
    reward              a function that judges, see RewardSpec; this or `source`
    source              {name, and that source's own settings}; see `pyengine parts sources`
    sampling            see SamplingParams
    rounds              rounds of sampling and updating
    prompts_per_round   prompts a round; None: all
    min_valid_fraction  least share of responses that must have a reward
    judge               see JudgeSpec
    overlong            a prompt that leaves no room for max_tokens in the model's context: "error",
                        "drop", or "truncate_left" (its beginning is cut)
    eval                see EvalSpec; None: no evaluation
    """

    prompts: PromptsSpec
    reward: RewardSpec | None = None
    source: dict[str, Any] | None = field(default=None, metadata={"registry": SOURCES})
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(n=4))
    rounds: int = field(default=20, metadata={"min": 1})
    prompts_per_round: int | None = field(default=None, metadata={"min": 1})
    min_valid_fraction: float = field(default=0.5, metadata={"min": 0, "max": 1})
    judge: JudgeSpec = field(default_factory=JudgeSpec)
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    eval: EvalSpec | None = None

    @property
    def needs_judge(self) -> bool:
        """Whether one of reward and source must be given."""
        return True

    @property
    def compares_samples(self) -> bool:
        """Whether a prompt's samples are compared with each other, so that there must be two."""
        return bool(OBJECTIVES.make(**self.objective).unit != "response")

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        given = [name for name in ("reward", "source") if getattr(self, name) is not None]
        if len(given) != 1 and (given or self.needs_judge):
            raise ConfigError(
                f"{document.where('reward')} one of reward and source must say what judges the "
                f"responses but {'both do' if given else 'neither does'}"
            )
        if self.sampling.n < 2 and self.compares_samples:
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
            held_out, judge = evaluation.prompts.absolute(base), evaluation.source
            judge = None if judge is None else absolute_part(SOURCES, judge, base)
            evaluation = dataclasses.replace(evaluation, prompts=held_out, source=judge)
        parts: dict[str, Any] = {
            name: absolute_part(registry, data, base)
            for name, registry in self.registries().items()
            if (data := getattr(self, name)) is not None
        }
        return dataclasses.replace(
            super().absolute(base),
            prompts=self.prompts.absolute(base),
            reward=None if self.reward is None else self.reward.absolute(base),
            eval=evaluation,
            **parts,
        )

    @classmethod
    def registries(cls) -> dict[str, Registry[Any]]:
        """Registry of each field that names one part, the objective beside them."""
        return {
            f.name: f.metadata["registry"]
            for f in dataclasses.fields(cls)
            if "registry" in f.metadata and not f.metadata.get("many") and f.name != "objective"
        }


@dataclass(frozen=True, kw_only=True)
class SampledRecipe(PromptedRecipe):
    """A run of a loop whose samples come from the policy, in whatever way.

    sampler         {name, and that sampler's own settings}; None: sampling.n draws of each prompt
    allocation      {name, its settings}: how the samples are divided among a round's prompts; None:
                    alike
    accepted_above  with an allocation: a response of a greater reward counts as correct
    """

    sampler: dict[str, Any] | None = field(default=None, metadata={"registry": SAMPLERS})
    allocation: dict[str, Any] | None = field(default=None, metadata={"registry": ALLOCATIONS})
    accepted_above: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Paired(Recipe):
    """What recipes of loops that learn from comparisons say.

    pairing    {name, and that pairing's own settings}; see `pyengine parts pairings`
    selection  {name, its settings}: which comparisons are learned from; None: all
    """

    pairing: dict[str, Any] = field(
        default_factory=lambda: {"name": "best_worst"}, metadata={"registry": PAIRINGS}
    )
    selection: dict[str, Any] | None = field(default=None, metadata={"registry": SELECTIONS})


@dataclass(frozen=True, kw_only=True)
class InMinibatches(Recipe):
    """What recipes of loops say whose rounds learn for longer.

    epochs            over a round's examples
    batch_size        examples an optimizer step; None: all of the round's
    checkpoint_every  rounds between checkpoints, of which each has many steps
    """

    epochs: int = field(default=1, metadata={"min": 1})
    batch_size: int | None = field(default=None, metadata={"min": 1})
    checkpoint_every: int = field(default=1, metadata={"min": 0})
