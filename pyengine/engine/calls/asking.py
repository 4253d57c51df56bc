"""One of an engine's models as something that sources may ask: see preferences/binding.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.calls.requests import Prompt
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.calls.scoring import Score
from pyengine.preferences.binding import Rows
from pyengine.preferences.groups import Group


class _Engine(Protocol):
    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def max_positions(self) -> int: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: Any = None,
        request_ids: Sequence[int] | None = None,
        *,
        models: Mapping[str, float] | None = None,
    ) -> list[Group]: ...

    def score(
        self, groups: Sequence[Group], model: str = "policy", *, keep: bool = True
    ) -> list[list[Score]]: ...

    def hidden_states(
        self, groups: Sequence[Group], model: str = "policy", pool: Rows = "last"
    ) -> list[list[Tensor | None]]: ...


class Asking:
    """A model of an engine by name: it answers with the weights that it has when it is asked."""

    def __init__(self, engine: _Engine, model: str = "policy") -> None:
        self.engine, self.model = engine, model

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.engine.tokenizer

    @property
    def max_positions(self) -> int:
        return self.engine.max_positions

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Engine.score."""
        return self.engine.score(groups, model=self.model)

    def score_once(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Engine.score: of questions, which no update asks about, nothing is kept."""
        return self.engine.score(groups, model=self.model, keep=False)

    def hidden_states(
        self, groups: Sequence[Group], pool: Rows = "last"
    ) -> list[list[Tensor | None]]:
        """See Engine.hidden_states."""
        return self.engine.hidden_states(groups, model=self.model, pool=pool)

    def sample(
        self,
        prompts: Sequence[Any],
        *,
        n: int = 1,
        max_tokens: int = 128,
        temperature: float = 1.0,
        seed: int = 0,
        request_ids: Sequence[int] | None = None,
    ) -> list[Group]:
        """See Engine.generate."""
        params = SamplingParams(n=n, max_tokens=max_tokens, temperature=temperature, seed=seed)
        models = None if self.model == "policy" else {self.model: 1.0}
        return self.engine.generate(prompts, params, request_ids, models=models)


def asking(engine: _Engine, model: str = "policy") -> Asking:
    """What judges ask: model is "policy", "reference" or a snapshot's name."""
    return Asking(engine, model)
