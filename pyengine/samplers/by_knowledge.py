"""Answers that say whether the model knows them, written after its own samples were judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError, DataError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import FINITE, FRACTION, Rule, check_fields, checked
from pyengine.samplers.gold import gold_response
from pyengine.samplers.judging import rewards_of
from pyengine.samplers.sampler import Generates

_TEMPLATE = Rule("a text that is not empty", lambda v: isinstance(v, str) and v != "")
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class ByKnowledge:
    """One response a prompt, not sampled but written: one text where the model's n samples are
    right, another where they are not.

    known, unknown  what the response is: a text with places {answer}, the row's answer, and
                    {sample}, the first right sample, or the first one where none is right
    answer          the column with the answer: a text, a number, or a list whose first one counts
    share           a prompt is known where at least this share of its judged samples is right
    right_above     a sample is right whose reward is greater
    Its column "knowledge" is that share; where no sample could be judged the group is empty. The
    response has origin "relabelled" and no log-probs: it is to be imitated, by expert_iteration.
    Takes `columns`, a mapping of names to a value for each prompt.
    Raises ConfigError for other places, or no source; DataError for a row without an answer.
    Source: Zhang et al., arXiv:2311.09677, section 2 (R-Tuning: "I am sure", "I am unsure"); tokens
    before the response: Jain et al., arXiv:2412.06748.
    """

    name: ClassVar[str] = "by_knowledge"
    needs_source: ClassVar[bool] = True
    has_logprobs: ClassVar[bool] = False
    known: str = checked("{answer}", _TEMPLATE)
    unknown: str = checked("I don't know.", _TEMPLATE)
    answer: str = checked("answer", _TEMPLATE)
    share: float = checked(0.5, FRACTION)
    right_above: float = checked(0.5, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("known", "unknown"):
            if strange := set(_PLACE.findall(getattr(self, name))) - {"answer", "sample"}:
                raise ConfigError(
                    f"[{self.name}] {name} may have places for answer and sample but has one for "
                    f"{', '.join(sorted(strange))}"
                )

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most."""
        return 1

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Group]:
        """One generate call and one of the judge."""
        answers = [self._answer(columns, i) for i in range(len(prompts))]
        groups = engine.generate(prompts, params, request_ids=request_ids)
        found = rewards_of(self.name, judge, groups)
        return [
            self._written(engine, prompts[i], group, rewards, answers[i])
            for i, (group, rewards) in enumerate(zip(groups, found, strict=True))
        ]

    def _answer(self, columns: Mapping[str, Sequence[Any]] | None, i: int) -> str:
        values = (columns or {}).get(self.answer)
        given = None if values is None else values[i]
        if isinstance(given, (list, tuple)):
            given = given[0] if given else None
        if isinstance(given, bool) or not isinstance(given, (str, int, float)) or given == "":
            raise DataError(
                f"[{self.name}] column {self.answer!r} of prompt {i} must be a text or a number "
                f"but is {given!r:.80}"
            )
        return str(given)

    def _written(
        self,
        engine: Generates,
        prompt: Any,
        group: Group,
        rewards: Sequence[float | None],
        answer: str,
    ) -> Group:
        judged = [k for k, reward in enumerate(rewards) if reward is not None]
        right = [k for k in judged if (rewards[k] or 0.0) > self.right_above]
        if not judged:
            return dataclasses.replace(group, responses=[], columns={"knowledge": None})
        share = len(right) / len(judged)
        sample = group.responses[(right or judged)[0]].text or ""
        values = {"answer": answer, "sample": sample.strip()}
        template = self.known if right and share >= self.share else self.unknown
        text = _PLACE.sub(lambda place: values[place[1]], template)
        response = gold_response(
            engine.tokenizer, prompt, text, engine.max_positions, f"{self.name} {text!r:.40}"
        )
        response.origin = "relabelled"
        return dataclasses.replace(group, responses=[response], columns={"knowledge": share})
