"""What an offline run samples to see how it does: prompts, a judge, the call that joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyengine.data.fitting import fit_prompts
from pyengine.evaluation.available import EVALUATIONS
from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.measures import check_measures
from pyengine.preferences.binding import bind, unbound
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.source import Source
from pyengine.recipes.run.bindings import RunBindings, check_names
from pyengine.recipes.run.inputs import code_digest, data_digest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.prompted_run import reward_source
from pyengine.recipes.schema.build import make_part
from pyengine.recipes.schema.offline_recipe import SamplesSpec
from pyengine.recipes.schema.prompt_files import load_prompts


class OfflineSamples:
    """The prompts and the judge of a recipe's `samples:`, checked before a model is loaded.

    Raises ConfigError and DataError.
    """

    def __init__(self, spec: SamplesSpec, allow_code: bool, has_reference: bool) -> None:
        self.spec, self.allow_code = spec, allow_code
        if spec.reward is not None:
            self.source: Source = reward_source(spec.reward, allow_code)
        else:
            assert spec.source is not None
            self.source = make_part(SOURCES, spec.source)
            check_names(self.source, allow_code, has_reference)
        self.measures = [make_part(EVALUATIONS, data) for data in spec.metrics]
        check_measures(self.measures, self.source, spec.sampling.n, has_reference)
        self.prompts = load_prompts(spec.prompts)

    def inputs(self) -> dict[str, str]:
        """See PromptedRun.inputs."""
        named = [name for name, kind in unbound(self.source) if kind == "function"]
        functions = [*([] if self.spec.reward is None else self.spec.reward.functions), *named]
        digest = data_digest([self.prompts.prompts, self.prompts.columns])
        codes = {f"code of {function}": code_digest(function) for function in functions}
        return {"sampled prompts": digest} | codes

    def prepare(self, text: ModelText) -> None:
        """Every prompt must leave room for a response. Raises DataError naming file and line."""
        fit_prompts(
            self.prompts.prompts,
            text.tokenizer,
            text.max_positions,
            self.spec.sampling.max_tokens,
            places=self.prompts.places,
            overlong="error",
        )

    def call(self, engine: Any) -> Callable[[], Evaluation]:
        """What the loop calls."""
        source = bind(self.source, RunBindings(engine, self.allow_code))

        def sample() -> Evaluation:
            return evaluate(
                engine,
                self.prompts.prompts,
                source,
                self.spec.sampling,
                self.prompts.columns,
                self.measures,
            )

        return sample
