"""An engine of letters: it writes by request, sample and models, and keeps the calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyengine as pe
from pyengine.preferences import Feedback, Group, Response


class LettersTokenizer:
    """A token a letter; messages are their contents, one a line. The end token is 0."""

    def encode_prompt(self, prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
        return [ord(c) for c in text]

    def encode_completion(self, prompt: Any, completion: Any) -> tuple[list[int], list[int]]:
        text = completion if isinstance(completion, str) else completion[0]["content"]
        return self.encode_prompt(prompt), [*(ord(c) for c in text), 0]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.encode_prompt(text)

    def decode_completion(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i)


Write = Callable[[str, int, int, Mapping[str, float]], str]


def by_hash(prompt: str, request_id: int, sample: int, models: Mapping[str, float]) -> str:
    """Three letters of a ... h; another request, sample, prompt or mixture writes others."""
    key = f"{prompt}/{request_id}/{sample}/{sorted(models.items())}"
    return "".join("abcdefgh"[b % 8] for b in hashlib.sha256(key.encode()).digest()[:3])


@dataclass
class Call:
    prompts: list[Any]
    params: list[Any]
    ids: list[int]
    models: dict[str, float]


@dataclass
class LettersEngine:
    """write  (prompt's text, request id, sample, models) -> text; "." is the end token."""

    write: Write = by_hash
    max_positions: int = 400
    calls: list[Call] = field(default_factory=list)
    tokenizer: LettersTokenizer = field(default_factory=LettersTokenizer)

    def generate(
        self,
        prompts: Sequence[Any],
        params: Any,
        request_ids: Sequence[int] | None = None,
        models: Mapping[str, float] | None = None,
    ) -> list[Group]:
        each = list(params) if isinstance(params, (list, tuple)) else [params] * len(prompts)
        ids = list(range(len(prompts))) if request_ids is None else list(request_ids)
        named = {"policy": 1.0} if models is None else dict(models)
        self.calls.append(Call(list(prompts), each, ids, named))
        return [
            self._group(prompt, own, request_id, named)
            for prompt, own, request_id in zip(prompts, each, ids, strict=True)
        ]

    def _group(
        self, prompt: Any, params: pe.SamplingParams, request_id: int, models: dict[str, float]
    ) -> Group:
        is_ids = isinstance(prompt, list) and all(isinstance(i, int) for i in prompt)
        ids = prompt if is_ids else self.tokenizer.encode_prompt(prompt)
        responses = []
        for k in range(params.n):
            text = self.write(self.tokenizer.decode_completion(ids), request_id, k, models)
            tokens = [0 if c == "." else ord(c) for c in text][: params.max_tokens]
            stopped = tokens[-1:] == [0] or any(s in text for s in params.stop)
            finish = "stop" if stopped else "length"
            logprobs = [-float(t) for t in tokens]
            responses.append(
                Response(
                    tokens,
                    logprobs,
                    list(logprobs),
                    self.tokenizer.decode_completion(tokens),
                    finish,
                    kept_mass=[1.0] * len(tokens),
                )
            )
        return Group(list(ids), responses, None if is_ids else prompt)

    @property
    def ids(self) -> list[int]:
        """Request ids of all calls, one after the other."""
        return [i for call in self.calls for i in call.ids]


def texts(groups: Sequence[Group]) -> list[list[str | None]]:
    return [[r.text for r in group.responses] for group in groups]


def rewards(f: Callable[[str], float | None]) -> Callable[[Sequence[Group]], Feedback]:
    """A source of a function of a response's text."""

    def source(groups: Sequence[Group]) -> Feedback:
        return Feedback.from_rewards([[f(r.text or "") for r in g.responses] for g in groups])

    return source
