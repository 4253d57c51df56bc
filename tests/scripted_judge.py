"""A judge without a model: qualities of texts and a liking for the first place, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyengine.preferences import Group, Response

CONTROL = "\N{SECTION SIGN}"  # a control token of this tokenizer


class Characters:
    """A token a character."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def encode_prompt(self, prompt: Any) -> list[int]:
        return self.encode(prompt)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text = "".join(map(chr, ids))
        return text.replace(CONTROL, "") if skip_special_tokens else text


@dataclass
class OneScore:
    logprob: float
    token_logprobs: Any = None


@dataclass
class Scripted:
    """answer(question, label) is the log-prob of a label; `said` are sampled texts in turn."""

    answer: Callable[[str, str], float] = lambda question, label: 0.0
    said: Callable[[str], list[str]] = lambda question: []
    tokenizer: Any = field(default_factory=Characters)
    max_positions: int = 1000
    asked: list[str] = field(default_factory=list)
    request_ids: list[int] = field(default_factory=list)

    def score(self, groups: Sequence[Group]) -> list[list[OneScore]]:
        decode = self.tokenizer.decode
        self.asked += [decode(group.prompt_ids) for group in groups]
        return [
            [
                OneScore(self.answer(decode(group.prompt_ids), decode(r.token_ids)))
                for r in group.responses
            ]
            for group in groups
        ]

    def sample(
        self, prompts: Sequence[Any], *, n: int, request_ids: Sequence[int], **_: Any
    ) -> list[Group]:
        questions = [self.tokenizer.decode(ids) for ids in prompts]
        self.asked += questions
        self.request_ids += request_ids
        return [
            Group(ids, [Response(self.tokenizer.encode(t), text=t) for t in self.said(q)[:n]])
            for ids, q in zip(prompts, questions, strict=True)
        ]


def group_of(*texts: str, prompt: str = "p", **columns: Any) -> Group:
    """A group of such responses."""
    responses = [Response([ord(c) for c in text], text=text) for text in texts]
    return Group([ord(c) for c in prompt], responses, prompt, columns)
