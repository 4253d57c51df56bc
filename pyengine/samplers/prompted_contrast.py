"""Responses to a prompt that asks for good ones, beside responses to one that asks for bad ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import Rule, check_fields, checked, one_of
from pyengine.samplers.joining import reprompted
from pyengine.samplers.prompt_text import check_text, encoded, followed, led
from pyengine.samplers.sampler import Generates, derived_ids

_TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class PromptedContrast:
    """Half the responses sampled with a prompt that asks for good ones, half with one for bad ones.

    good, bad  what is added to the prompt; nothing is put between it and the prompt
    place      "system": at the beginning of the system message, which is made where there is none,
               and of a prompt of text; "suffix": at the end of the last message or the text
    The group shows the prompt without the addition, so that a model learns to do without it.
    Origins are "good" and "bad", the good ones come first, `n` must be even. `logprobs` are None,
    since they would be those of another prompt; `sampling_logprobs` are there. Raises ConfigError
    for an odd n or equal additions, RequestError for a prompt of token ids.
    Source: Yang et al., arXiv:2307.12950, section 3 (RLCD); Xu et al., arXiv:2409.17534.
    """

    name: ClassVar[str] = "prompted_contrast"
    needs_source: ClassVar[bool] = False
    has_logprobs: ClassVar[bool] = False
    good: str = checked("You give correct, helpful and complete answers.\n\n", _TEXT)
    bad: str = checked("You give careless answers that are vague or wrong.\n\n", _TEXT)
    place: str = checked("system", one_of("system", "suffix"))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.good == self.bad:
            raise ConfigError(f"[prompted_contrast] good must differ from bad but is {self.good!r}")

    def size(self, params: SamplingParams) -> int:
        """Responses of a group. Raises ConfigError."""
        if params.n % 2:
            raise ConfigError(f"[prompted_contrast] n must be even but is {params.n}")
        return params.n

    def origins(self, params: SamplingParams) -> list[str]:
        """Of a group's responses."""
        return ["good"] * (params.n // 2) + ["bad"] * (params.n // 2)

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate call: both prompts of every row."""
        half = dataclasses.replace(params, n=self.size(params) // 2)
        check_text(self.name, prompts)
        plain = encoded(engine, prompts)
        add = led if self.place == "system" else followed
        sides = {"good": self.good, "bad": self.bad}
        drawn = engine.generate(
            [add(prompt, text) for text in sides.values() for prompt in prompts],
            half,
            request_ids=[i for s in range(len(sides)) for i in derived_ids(request_ids, s)],
        )
        return [
            Group(
                ids,
                [
                    reprompted(response, side)
                    for s, side in enumerate(sides)
                    for response in drawn[s * len(prompts) + i].responses
                ],
                prompt,
            )
            for i, (ids, prompt) in enumerate(zip(plain, prompts, strict=True))
        ]
