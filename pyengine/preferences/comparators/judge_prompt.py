"""The question which of two responses is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.comparators.comparator import Duel
from pyengine.preferences.groups import Group
from pyengine.preferences.questions import (
    Asker,
    Question,
    check_template,
    prompt_text,
    response_text,
)


class AsksOfPairs(Protocol):
    """The fields of a judge that make its question."""

    @property
    def name(self) -> str: ...
    @property
    def template(self) -> str | None: ...
    @property
    def criteria(self) -> str: ...
    @property
    def criteria_column(self) -> str | None: ...


@dataclass(frozen=True)
class JudgePrompt:
    """A template of {prompt}, {a}, {b}, and {criteria} where there are any.

    criteria         what to judge by, of every prompt
    criteria_column  the column of a group that says it for its prompt, after `criteria`
    Source: criteria of a prompt's own, Pitis et al., arXiv:2407.14916, section 2.
    """

    who: str
    template: str
    criteria: str = ""
    criteria_column: str | None = None

    def __post_init__(self) -> None:
        check_template(self.who, self.template, ("prompt", "a", "b"), ("criteria",))
        says = bool(self.criteria) or self.criteria_column is not None
        if says and "{criteria}" not in self.template:
            raise ConfigError(
                f"[{self.who}] template must have {{criteria}} where criteria or criteria_column "
                "is given but has none"
            )

    def questions(
        self, asker: Asker, groups: Sequence[Group], duels: Sequence[Duel], answer_tokens: int
    ) -> dict[Duel, Question]:
        """Of each duel, its first response in the place of {a}.

        Raises RequestError for a group without the column, before anything is asked.
        """
        criteria = {g: self._criteria(groups[g], g) for g in sorted({d.group for d in duels})}
        questions = {}
        for duel in duels:
            group, tokenizer = groups[duel.group], asker.tokenizer
            texts = {
                "prompt": prompt_text(group, tokenizer),
                "criteria": criteria[duel.group],
                "a": response_text(group.responses[duel.first], tokenizer),
                "b": response_text(group.responses[duel.second], tokenizer),
            }
            questions[duel] = asker.question(texts, ("a", "b"), answer_tokens)
        return questions

    def _criteria(self, group: Group, g: int) -> str:
        if self.criteria_column is None:
            return self.criteria
        own = group.columns.get(self.criteria_column)
        if not isinstance(own, str):
            raise RequestError(
                f"[{self.who}] groups[{g}].columns[{self.criteria_column!r}] must be a text "
                f"but is {own!r:.60}"
            )
        return "\n".join(text for text in (self.criteria, own) if text)


def judge_prompt(judge: AsksOfPairs, ending: str) -> JudgePrompt:
    """The judge's own template, or ours with `ending`, which says how to answer.

    What all duels of a prompt share comes first in ours, so that it is computed once.
    """
    template = judge.template
    if template is None:
        says = bool(judge.criteria) or judge.criteria_column is not None
        by = "Judge by this:\n{criteria}\n\n" if says else ""
        literal = ending.replace("{", "{{").replace("}", "}}")
        template = (
            "Compare two responses to a prompt.\n\n"
            f"{by}[Prompt]\n{{prompt}}\n\n"
            "[Response A]\n{a}\n\n"
            "[Response B]\n{b}\n\n"
            f"{literal}"
        )
    return JudgePrompt(judge.name, template, judge.criteria, judge.criteria_column)
