"""A guide writes the beginning of a response, the policy goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.requests import as_written
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_uniforms
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, SHARE, check_fields, checked
from pyengine.samplers.model_names import MODEL
from pyengine.samplers.prompt_text import encoded
from pyengine.samplers.sampler import Generates, derived_ids


@dataclass(frozen=True)
class GuideRollin:
    """Samples that go on where a guide stopped, after its first t tokens, t uniform on 0 ... T.

    guide        "reference" or a snapshot's name
    max_tokens   T; less than `max_tokens` of the sampling parameters, which holds for both together
    probability  share of the prompts that are rolled in, drawn by lot; the others are plain samples
    There is one roll-in a prompt, and its n responses share it. The guide's tokens end the group's
    `prompt_ids`: they are no part of the responses, and nothing is learned of them; `prompt` stays
    what the user passed. A guide that ends early is cut before its end token. The groups' columns:
    "guide", its text (None without a tokenizer), and "guide_tokens", how many there are.
    Raises ConfigError for max_tokens.
    Source: Chang et al., arXiv:2306.11816 (PPO++).
    """

    name: ClassVar[str] = "guide_rollin"
    needs_source: ClassVar[bool] = False
    adds_columns: ClassVar[tuple[str, ...]] = ("guide", "guide_tokens")
    guide: str = checked("reference", MODEL)
    max_tokens: int = checked(16, COUNT)
    probability: float = checked(1.0, SHARE)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group. Raises ConfigError."""
        if self.max_tokens >= params.max_tokens:
            raise ConfigError(
                "[guide_rollin] max_tokens must be less than that of the sampling parameters "
                f"({params.max_tokens}) but is {self.max_tokens}"
            )
        return params.n

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate call for the guide, one for the policy."""
        self.size(params)
        plain = encoded(engine, prompts)
        written = self._rollins(engine, plain, params, request_ids)
        groups: list[Group] = engine.generate(
            [ids + prefix for ids, prefix in zip(plain, written, strict=True)],
            [
                dataclasses.replace(
                    params,
                    max_tokens=params.max_tokens - len(prefix),
                    min_tokens=max(params.min_tokens - len(prefix), 0),
                )
                for prefix in written
            ],
            request_ids=request_ids,
        )
        for group, prompt, prefix in zip(groups, prompts, written, strict=True):
            text = None if engine.tokenizer is None else engine.tokenizer.decode_completion(prefix)
            group.prompt = as_written(prompt)
            group.columns |= {"guide": text, "guide_tokens": len(prefix)}
        return groups

    def _rollins(
        self,
        engine: Generates,
        plain: list[list[int]],
        params: SamplingParams,
        request_ids: Sequence[int],
    ) -> list[list[int]]:
        """The guide's tokens for each prompt."""
        lengths = [self._length(params.seed, request_id) for request_id in request_ids]
        rolled = [i for i, length in enumerate(lengths) if length]
        written: list[list[int]] = [[] for _ in plain]
        if not rolled:
            return written
        groups = engine.generate(
            [plain[i] for i in rolled],
            [
                dataclasses.replace(params, n=1, max_tokens=lengths[i], min_tokens=0, stop=())
                for i in rolled
            ],
            request_ids=derived_ids([request_ids[i] for i in rolled], 1),
            models={self.guide: 1.0},
        )
        for i, group in zip(rolled, groups, strict=True):
            [response] = group.responses
            ended = response.finish_reason == "stop"
            written[i] = response.token_ids[:-1] if ended else response.token_ids
        return written

    def _length(self, seed: int, request_id: int) -> int:
        lot, t, *_ = keyed_uniforms(self.name, seed, request_id)
        return int(t * (self.max_tokens + 1)) if lot < self.probability else 0
