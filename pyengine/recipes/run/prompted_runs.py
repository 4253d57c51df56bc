"""Runs of the loops over prompts: which fields of its recipe each loop takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyengine.loops import (
    EM,
    ExpertIteration,
    Iterative,
    Online,
    OnlineRLHF,
    OnPolicyRL,
    Optimistic,
    ReturnConditioned,
    SelfPlay,
    Temporal,
    TwoPlayer,
)
from pyengine.preferences import Source
from pyengine.preferences.sources.by_origin import ByOrigin
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.prompted_run import PromptedRun
from pyengine.samplers.gold import gold_response

_MINIBATCHES = ("epochs", "batch_size")
_SAMPLED = ("accepted_above",)


class OnlineRun(PromptedRun):
    """See Online."""

    name: ClassVar[str] = "online"
    makes: ClassVar[Any] = Online
    own = ("updates_per_round", *_SAMPLED)


class IterativeRun(PromptedRun):
    """See Iterative."""

    name: ClassVar[str] = "iterative"
    makes: ClassVar[Any] = Iterative
    own = ("reference_policy", "momentum", *_MINIBATCHES, *_SAMPLED)

    @property
    def prompts_per_round(self) -> int | None:
        """The iteration's share, where they are split."""
        if not self.recipe.split_prompts:
            return super().prompts_per_round
        return max(len(self.prompts.prompts) // self.rounds, 1)


class SelfPlayRun(PromptedRun):
    """See SelfPlay."""

    name: ClassVar[str] = "self_play"
    makes: ClassVar[Any] = SelfPlay
    own = ("opponent", "mixture", "history", "gold", "reference_policy", *_MINIBATCHES)

    def _judge(self) -> Source | None:
        return ByOrigin() if self.recipe.without_judge else super()._judge()

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """See PromptedRun; given answers become tokens, too."""
        super().prepare(text, say)
        if self.recipe.gold is None:
            return
        tokenizer = text.required(self.recipe.gold)
        given = self.prompts.columns[self.recipe.gold]
        for prompt, completion, place in zip(
            self.prompts.prompts, given, self.prompts.places, strict=True
        ):
            gold_response(tokenizer, prompt, completion, text.max_positions, place)


class ExpertIterationRun(PromptedRun):
    """See ExpertIteration."""

    name: ClassVar[str] = "expert_iteration"
    makes: ClassVar[Any] = ExpertIteration
    own = ("above", "above_column", "best", "dedupe", "start", *_MINIBATCHES, *_SAMPLED)


class OnPolicyRLRun(PromptedRun):
    """See OnPolicyRL."""

    name: ClassVar[str] = "on_policy_rl"
    makes: ClassVar[Any] = OnPolicyRL
    own = (*_MINIBATCHES, *_SAMPLED)


class OptimisticRun(PromptedRun):
    """See Optimistic."""

    name: ClassVar[str] = "optimistic"
    makes: ClassVar[Any] = Optimistic
    own = ("average", *_MINIBATCHES)


class ReturnConditionedRun(PromptedRun):
    """See ReturnConditioned."""

    name: ClassVar[str] = "return_conditioned"
    makes: ClassVar[Any] = ReturnConditioned
    own = ("good", "bad", "above", *_MINIBATCHES, *_SAMPLED)


class TemporalRun(PromptedRun):
    """See Temporal."""

    name: ClassVar[str] = "temporal"
    makes: ClassVar[Any] = Temporal
    own = ("reference_policy", *_MINIBATCHES)


class OnlineRLHFRun(OnPolicyRLRun):
    """See OnlineRLHF."""

    name: ClassVar[str] = "online_rlhf"
    makes: ClassVar[Any] = OnlineRLHF


class TwoPlayerRun(PromptedRun):
    """See TwoPlayer."""

    name: ClassVar[str] = "two_player"
    makes: ClassVar[Any] = TwoPlayer
    own = ("mixture", "updates_per_round")


class EMRun(PromptedRun):
    """See EM."""

    name: ClassVar[str] = "em"
    makes: ClassVar[Any] = EM
    own = ("temperature", "reference_policy", *_MINIBATCHES, *_SAMPLED)
