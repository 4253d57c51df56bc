"""The parts of an online run, made of its recipe before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from pyengine.data.fitting import fit_prompts
from pyengine.engine import SamplingParams
from pyengine.loops import JudgePolicy, Online
from pyengine.loops.rehearsal import check_parts
from pyengine.loops.steps import Remember
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences import Derived, RewardFunction, Source, TokenFunction
from pyengine.preferences.binding import bind, unbound
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.run.bindings import RunBindings, check_names
from pyengine.recipes.run.inputs import code_digest, data_digest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.schema.build import make_part
from pyengine.recipes.schema.online_recipe import OnlineRecipe, RewardSpec
from pyengine.recipes.schema.prompt_files import Prompts, load_prompts
from pyengine.recipes.schema.rewards import load_reward


class OnlineRun:
    """What an `Online` loop is made of, checked.

    rounds       of the whole run
    total_steps  optimizer steps of the whole run, at most
    Raises ConfigError and DataError for whatever is wrong with a part, or between parts.
    """

    name: ClassVar[str] = "online"

    def __init__(self, recipe: OnlineRecipe, allow_code: bool) -> None:
        self.recipe = recipe
        self.objective = OBJECTIVES.make(**recipe.objective)
        self.pairing = PAIRINGS.make(**recipe.pairing)
        self.allow_code = allow_code
        self.source = source_of(recipe, allow_code)
        self.prompts = load_prompts(recipe.prompts)
        self.held_out = load_prompts(recipe.eval.prompts) if recipe.eval else Prompts([], {})
        check_parts(
            self.source,
            self.pairing,
            self.objective,
            samples=recipe.sampling.n,
            prompts=recipe.prompts_per_round or len(self.prompts.prompts),
            has_reference=recipe.engine.has_reference,
        )

    @property
    def rounds(self) -> int:
        return self.recipe.rounds

    @property
    def total_steps(self) -> int:
        return self.recipe.rounds * self.recipe.updates_per_round

    @property
    def evaluates(self) -> bool:
        """Whether anything is held out."""
        return bool(self.held_out.prompts)

    @property
    def eval_every(self) -> int:
        return self.recipe.eval.every if self.recipe.eval else 0

    def inputs(self) -> dict[str, str]:
        """Digests of all that the run reads beside the model: a resumed run must read the same."""
        return {
            "prompts": data_digest([self.prompts.prompts, self.prompts.columns]),
            "held-out prompts": data_digest([self.held_out.prompts, self.held_out.columns]),
        } | {f"code of {function}": code_digest(function) for function in self._functions()}

    def _functions(self) -> list[str]:
        """Names of all functions that judge."""
        if self.recipe.reward is not None:
            return self.recipe.reward.functions
        return [name for name, kind in unbound(self.source) if kind == "function"]

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """Every prompt is rendered and must leave room for a response.

        Raises DataError naming file and line.
        """
        recipe = self.recipe
        self.prompts = self._fitting(self.prompts, text, recipe.sampling.max_tokens, say)
        sampling = self._eval_sampling()
        if sampling is not None:
            self.held_out = self._fitting(self.held_out, text, sampling.max_tokens, say)

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

    def loop(self, engine: Any, remember: Remember) -> Online:
        """The loop on an engine."""
        recipe = self.recipe
        return Online(
            engine,
            self.prompts.prompts,
            source=bind(self.source, RunBindings(engine, self.allow_code)),
            pairing=self.pairing,
            objective=self.objective,
            sampling=recipe.sampling,
            prompts_per_round=recipe.prompts_per_round,
            updates_per_round=recipe.updates_per_round,
            columns=self.prompts.columns,
            eval_prompts=self.held_out.prompts,
            eval_columns=self.held_out.columns,
            eval_sampling=self._eval_sampling(),
            min_valid_fraction=recipe.min_valid_fraction,
            judge=JudgePolicy(**dataclasses.asdict(recipe.judge)),
            remember=remember,
            seed=recipe.seed,
        )

    def _eval_sampling(self) -> SamplingParams | None:
        spec = self.recipe.eval
        if spec is None:
            return None
        max_tokens = spec.max_tokens or self.recipe.sampling.max_tokens
        return dataclasses.replace(
            self.recipe.sampling, n=spec.n, max_tokens=max_tokens, seed=spec.seed
        )


def source_of(recipe: OnlineRecipe, allow_code: bool) -> Source:
    """What judges a recipe's responses, its names not bound yet. Raises ConfigError."""
    if recipe.reward is not None:
        return reward_source(recipe.reward, allow_code)
    assert recipe.source is not None  # the recipe has been checked
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
