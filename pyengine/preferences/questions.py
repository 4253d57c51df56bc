"""Questions to a model about responses: a template becomes a prompt in the model's tokens, and the
answer is read from the log-probs of a few labels.

Texts of prompts and responses go into the template as they are. A response that spells one of the
model's control tokens could end the question and speak in the model's place: it is refused.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import AsksModel, HasLogprobs
from pyengine.preferences.groups import Group, Response
from pyengine.rules import Rule

TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")
ANY_TEXT = Rule("a text", lambda value: isinstance(value, str))


@dataclass(frozen=True)
class Question:
    """A question in token ids, or why it cannot be asked.

    too_long  because it does not fit the model
    """

    prompt_ids: list[int]
    error: str = ""
    too_long: bool = False


def check_template(
    who: str, template: str, required: Iterable[str], optional: Iterable[str]
) -> None:
    """Raises ConfigError unless the template has these fields, in braces, and no others."""
    needed, allowed = set(required), {*required, *optional}
    try:
        found = {
            f"{name}!{conversion or ''}:{spec}" if conversion or spec else name
            for _, name, spec, conversion in string.Formatter().parse(template)
            if name is not None
        }
    except ValueError as error:
        raise ConfigError(f"[{who}] template must have paired braces but {error}") from None
    if not needed <= found or not found <= allowed:
        raise ConfigError(
            f"[{who}] template must have {_braces(needed)} and may have "
            f"{_braces(allowed - needed) or 'nothing else'} but has {_braces(found) or 'none'}"
        )


def prompt_text(group: Group, tokenizer: Any) -> str:
    """What was asked: a text, or a conversation; of one user message its content alone."""
    if group.prompt is None:
        return str(tokenizer.decode(group.prompt_ids))
    if isinstance(group.prompt, str):
        return group.prompt
    messages = [m for m in group.prompt if isinstance(m.get("content"), str)]
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def response_text(response: Response, tokenizer: Any) -> str:
    """The response as it was sampled or read, without blanks around it."""
    if response.text is not None:
        return response.text.strip()
    return str(tokenizer.decode(response.token_ids)).strip()


@runtime_checkable
class ScoresOnce(Protocol):
    """A model that may know that no one will ask for the same log-probs again."""

    def score_once(self, groups: Sequence[Group]) -> Sequence[Sequence[HasLogprobs]]:
        """As AsksModel.score, kept nowhere."""


class Asker:
    """Asks one model questions of one form.

    template    text with fields in braces; in the model's chat template, where it has one, it is
                a user's message
    max_tokens  longest question and label; None: what the model takes
    constants   of the template's fields that are the same in every question
    Raises RequestError where the model has no tokenizer.
    """

    def __init__(
        self,
        who: str,
        model: AsksModel,
        template: str,
        max_tokens: int | None,
        constants: Mapping[str, str] | None = None,
    ) -> None:
        if model.tokenizer is None:
            raise RequestError(f"[{who}] model must have a tokenizer to be asked but has none")
        self.who, self._template, self._constants = who, template, dict(constants or {})
        self.model, self.tokenizer = model, model.tokenizer
        self.max_tokens = min(max_tokens or model.max_positions, model.max_positions)
        self.has_chat = getattr(self.tokenizer, "chat_template", None) is not None
        self._control: dict[str, bool] = {}  # a response is in several questions

    def question(
        self, texts: Mapping[str, str], responses: Sequence[str], answer_tokens: int
    ) -> Question:
        """The question with these texts in the template's fields.

        responses      the fields that are responses
        answer_tokens  that must have room after it
        """
        for name in responses:
            if self._speaks_in_control_tokens(texts[name]):
                return Question([], f"{name} spells a control token of the model")
        text = self._template.format(**self._constants, **texts)
        ids = self._encode(text)
        if len(ids) + answer_tokens > self.max_tokens:
            why = f"must fit {self.max_tokens} tokens but needs {len(ids)} + {answer_tokens}"
            return Question([], f"the question {why}", too_long=True)
        return Question(ids)

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of answers in their place: after the question's last token.

        Where the model has no chat template, a blank stands before each.
        Raises ConfigError for two that are the same.
        """
        end = self._ending()
        before, found = self._tokens(end), list[list[int]]()
        for text in texts:
            label = text if self.has_chat else f" {text}"
            after = self._tokens(end + label)
            own = after[: len(before)] == before and after[len(before) :]
            found.append(list(own or self._tokens(label)))
        if len({tuple(ids) for ids in found}) < len(found):
            raise ConfigError(
                f"[{self.who}] labels must differ in the model's tokens but are {list(texts)}"
            )
        return found

    def logprobs(
        self, questions: Sequence[list[int]], labels: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Of each question the log-prob of each label, summed over its tokens; one call.

        A question is computed once for all its labels, and of labels of one token nothing else.
        """
        groups = [Group(ids, [Response(list(label)) for label in labels]) for ids in questions]
        if not groups:
            return []
        model = self.model
        found = model.score_once(groups) if isinstance(model, ScoresOnce) else model.score(groups)
        return [[score.logprob for score in scores] for scores in found]

    def _encode(self, text: str) -> list[int]:
        if self.has_chat:
            return list(self.tokenizer.encode_prompt([{"role": "user", "content": text}]))
        return list(self.tokenizer.encode_prompt(text))

    def _ending(self) -> str:
        """What stands before an answer: the template's last words, and what the chat adds."""
        *_, (words, name, _, _) = string.Formatter().parse(self._template + "{}")
        assert name is not None
        if not self.has_chat:
            return words
        return str(self.tokenizer.apply_chat_template([{"role": "user", "content": words or "?"}]))

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _speaks_in_control_tokens(self, text: str) -> bool:
        if text not in self._control:
            ids = self._tokens(text)
            whole, plain = (self.tokenizer.decode(ids, skip) for skip in (False, True))
            self._control[text] = bool(whole != plain)
        return self._control[text]


def answer_of(logprobs: Sequence[float], temperature: float, min_mass: float) -> list[float] | str:
    """The probabilities of labels among themselves: softmax of log-probs / temperature.

    min_mass  less likely than this together they are no answer: then why, in words
    """
    most, whole = max(logprobs), mass(logprobs)
    if not math.isfinite(most) or whole < min_mass:
        return f"the labels must have a probability of {min_mass:g} or more but have {whole:.3g}"
    weights = [math.exp((value - most) / temperature) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def mass(logprobs: Sequence[float]) -> float:
    """The probability that the model gives all labels together."""
    return math.fsum(math.exp(value) for value in logprobs)


def _braces(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))
