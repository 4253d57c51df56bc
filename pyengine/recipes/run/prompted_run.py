"""The parts of a run over prompts, made of its recipe before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from pyengine.data.fitting import fit_prompts
from pyengine.data.formats import read_rows
from pyengine.engine import SamplingParams
from pyengine.evaluation.available import EVALUATIONS
from pyengine.loops import JudgePolicy, Prompted
from pyengine.loops.rehearsal import EngineToCome
from pyengine.loops.steps import Remember
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences import Derived, RewardFunction, Source, TokenFunction
from pyengine.preferences.binding import bind, unbound
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.needs import check_reads
from pyengine.recipes.run.bindings import FunctionBindings, RunBindings, check_names
from pyengine.recipes.run.inputs import code_digest, data_digest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.schema.build import make_part
from pyengine.recipes.schema.packaged import data_path
from pyengine.recipes.schema.prompt_files import Prompts, load_prompts
from pyengine.recipes.schema.prompted_recipe import PromptedRecipe, RewardSpec
from pyengine.recipes.schema.rewards import load_reward


class PromptedRun:
    """What a loop over prompts is made of, checked.

    makes         the loop
    own           fields of the recipe that the loop takes by the same names
    rounds        of the whole run
    total_steps   optimizer steps of the whole run, if nothing that is sampled fails or is left out
    Raises ConfigError and DataError for whatever is wrong with a part, or between parts.
    """

    name: ClassVar[str]
    makes: ClassVar[Any]
    own: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Any, allow_code: bool) -> None:
        self.recipe, self.allow_code = recipe, allow_code
        self.objective = OBJECTIVES.make(**recipe.objective)
        self.source = source_of(recipe, allow_code)
        asked = recipe.eval.source if recipe.eval else None
        self.eval_source: Source | None = None if asked is None else make_part(SOURCES, asked)
        self.parts = {
            name: make_part(registry, data)
            for name, registry in recipe.registries().items()
            if name != "source" and (data := getattr(recipe, name)) is not None
        }
        metrics = recipe.eval.metrics if recipe.eval else []
        self.measures = [make_part(EVALUATIONS, data) for data in metrics]
        for part in (*self.parts.values(), self.eval_source, *self.measures):
            if part is not None:
                check_names(part, allow_code, recipe.engine.has_reference)
        self.prompts = load_prompts(recipe.prompts)
        self.held_out = load_prompts(recipe.eval.prompts) if recipe.eval else Prompts([], {})
        self._check_reads()
        self.rehearsal = self._rehearsed()

    def _check_reads(self) -> None:
        """Raises ConfigError, naming the file, for a column that a part reads and no row has."""
        functions = FunctionBindings(self.allow_code)
        parts = [bind(part, functions) for part in (self._judge(), *self.parts.values())]
        added = getattr(self.parts.get("sampler"), "adds_columns", ())
        columns = {*self.prompts.columns, *added}
        check_reads(parts, columns, f"the rows of {self.recipe.prompts.file}")
        if self.recipe.eval is not None:
            place = f"the rows of {self.recipe.eval.prompts.file}"
            judge = self.source if self.eval_source is None else self.eval_source
            check_reads([bind(judge, functions)], self.held_out.columns, place)

    def _rehearsed(self) -> Prompted:
        """The loop on an engine to come, which checks that its parts fit together."""
        engine = self.recipe.engine
        to_come = EngineToCome(engine.has_reference, engine.lora)
        judge = self._judge()
        judges = {"source": judge, "eval_source": self.eval_source}
        loop: Prompted = self.makes(to_come, **self._arguments(), **self.parts, **judges)
        return loop

    @property
    def rounds(self) -> int:
        return int(self.recipe.rounds)

    @property
    def total_steps(self) -> int:
        return self.rounds * self.rehearsal.most_updates

    @property
    def evaluates(self) -> bool:
        """Whether anything is held out."""
        return bool(self.held_out.prompts)

    @property
    def eval_every(self) -> int:
        return self.recipe.eval.every if self.recipe.eval else 0

    @property
    def prompts_per_round(self) -> int | None:
        """None: all."""
        asked: int | None = self.recipe.prompts_per_round
        return asked

    def inputs(self) -> dict[str, str]:
        """Digests of all that the run reads beside the model: a resumed run must read the same."""
        return {
            "prompts": data_digest([self.prompts.prompts, self.prompts.columns]),
            "held-out prompts": data_digest([self.held_out.prompts, self.held_out.columns]),
        } | {
            **{f"code of {name}": code_digest(name) for name in self._named("function")},
            **{f"rows of {name}": _rows_digest(name) for name in self._named("rows")},
        }

    def _named(self, kind: str) -> list[str]:
        """Names of all functions, or files of rows, that the parts ask for."""
        reward = self.recipe.reward
        asked = [self.source, self.eval_source, *self.parts.values(), *self.measures]
        named = [name for part in asked for name, each in unbound(part) if each == kind]
        return [*(reward.functions if reward is not None and kind == "function" else ()), *named]

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """Every prompt is rendered and must leave room for a response.

        Raises DataError naming file and line.
        """
        recipe = self.recipe
        self.prompts = self._fitting(self.prompts, text, recipe.sampling.max_tokens, say)
        sampling = self._eval_sampling()
        if sampling is not None:
            self.held_out = self._fitting(self.held_out, text, sampling.max_tokens, say)
        self.rehearsal = self._rehearsed()  # with the prompts that are left

    def _fitting(
        self, given: Prompts, text: ModelText, max_tokens: int, say: Callable[[str], None]
    ) -> Prompts:
        fitted = fit_prompts(
            given.prompts,
            text.tokenizer,
            text.max_positions,
            max_tokens,
            places=given.places,
            overlong=self.recipe.overlong,
        )
        lost, cut = fitted.report.dropped_overlong, fitted.report.truncated
        if lost or cut:
            say(f"{lost} prompts were dropped and {cut} cut: they left no room for a response")
        columns = {k: [v[i] for i in fitted.kept] for k, v in given.columns.items()}
        return Prompts(fitted.prompts, columns, [given.places[i] for i in fitted.kept])

    def loop(self, engine: Any, remember: Remember) -> Prompted:
        """The loop on an engine."""
        bindings = RunBindings(engine, self.allow_code)
        parts = {name: bind(part, bindings) for name, part in self.parts.items()}
        judges = {"source": bind(self._judge(), bindings)}
        eval_source = self.source if self.eval_source is None else self.eval_source
        if eval_source is not None:
            judges["eval_source"] = bind(eval_source, bindings)
        arguments = self._arguments()
        arguments["eval_measures"] = [bind(each, bindings) for each in self.measures]
        loop: Prompted = self.makes(engine, **arguments, **parts, **judges, remember=remember)
        return loop

    def _judge(self) -> Source | None:
        """What judges the training samples, its names not bound yet."""
        return self.source

    def _arguments(self) -> dict[str, Any]:
        """What the loop takes beside engine and parts."""
        recipe = self.recipe
        return {name: getattr(recipe, name) for name in self.own} | {
            "prompts": self.prompts.prompts,
            "objective": self.objective,
            "sampling": recipe.sampling,
            "prompts_per_round": self.prompts_per_round,
            "columns": self.prompts.columns,
            "eval_prompts": self.held_out.prompts,
            "eval_columns": self.held_out.columns,
            "eval_sampling": self._eval_sampling(),
            "eval_measures": self.measures,
            "min_valid_fraction": recipe.min_valid_fraction,
            "judge": JudgePolicy(**dataclasses.asdict(recipe.judge)),
            "seed": recipe.seed,
        }

    def _eval_sampling(self) -> SamplingParams | None:
        spec = self.recipe.eval
        if spec is None:
            return None
        max_tokens = spec.max_tokens or self.recipe.sampling.max_tokens
        sampling: SamplingParams = dataclasses.replace(
            self.recipe.sampling, n=spec.n, max_tokens=max_tokens, seed=spec.seed
        )
        return sampling


def _rows_digest(name: str) -> str:
    return data_digest(list(read_rows(data_path(name))))


def source_of(recipe: PromptedRecipe, allow_code: bool) -> Source | None:
    """What judges a recipe's responses, its names not bound yet; None where there is no judge.

    Raises ConfigError.
    """
    if recipe.reward is not None:
        return reward_source(recipe.reward, allow_code)
    if recipe.source is None:
        return None
    source: Source = make_part(SOURCES, recipe.source)
    check_names(source, allow_code, recipe.engine.has_reference)
    return source


def reward_source(spec: RewardSpec, allow_code: bool) -> Source:
    """The source that a recipe's `reward:` describes. Raises ConfigError."""

    def function(name: str) -> RewardFunction:
        return RewardFunction(load_reward(name, allow_code=allow_code), timeout_s=spec.timeout_s)

    source = function(spec.function)
    adds_columns = bool(spec.columns or spec.token_columns)
    if spec.label_threshold is None and spec.bradley_terry_scale is None and not adds_columns:
        return source
    return Derived(
        source,
        label_threshold=spec.label_threshold,
        bradley_terry_scale=spec.bradley_terry_scale,
        columns={name: function(f) for name, f in spec.columns.items()},
        token_columns={n: TokenFunction(function(f)) for n, f in spec.token_columns.items()},
    )
