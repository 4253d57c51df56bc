"""Samples of the policy; where all of a prompt's have failed, a teacher's responses among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.calls.scoring import Score
from pyengine.errors import ConfigError, DataError
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, FINITE, Rule, check_fields, checked, or_none
from pyengine.samplers.gold import gold_response
from pyengine.samplers.judging import rewards_of
from pyengine.samplers.sampler import Generates

_NAME = Rule("a column's name", lambda value: isinstance(value, str) and value != "")


class Scores(Generates, Protocol):
    """What this sampler needs of an Engine."""

    def score(self, groups: Sequence[Group], model: str = "policy") -> list[list[Score]]: ...


@dataclass(frozen=True)
class TeacherOnFailure:
    """n samples of the policy; where none is right, the last `replaced` are a teacher's responses.

    column    of the rows, with the teachers' responses to each prompt, one or a list: text,
              messages, or token ids where the prompt is token ids
    answer    column of the right answer; of several responses those come first after which the
              policy gives the answer the highest mean log-prob a token: what it comprehends. None:
              in the order of the list
    replaced  how many samples of a failed prompt, at most; fewer than n
    above     a prompt has failed where no sample's reward is greater, or has none
    The teacher's responses have origin "gold" and the policy's own log-probs. Takes `columns`, a
    mapping of names to a value for each prompt, and counts in the groups' column "taught" how many
    were replaced. Raises ConfigError for replaced >= n; DataError, before anything is sampled, for
    a row without a response, or one that is too long for the model.
    Source: Yuan et al., arXiv:2510.02227.
    """

    name: ClassVar[str] = "teacher_on_failure"
    needs_source: ClassVar[bool] = True
    adds_columns: ClassVar[tuple[str, ...]] = ("taught",)
    column: str = checked("gold", _NAME)
    answer: str | None = checked(None, or_none(_NAME))
    replaced: int = checked(1, COUNT)
    above: float = checked(0.0, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the rows."""
        return (self.column,) if self.answer is None else (self.column, self.answer)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group. Raises ConfigError."""
        if self.replaced >= params.n:
            raise ConfigError(
                f"[{self.name}] replaced must be less than n ({params.n}) but is {self.replaced}"
            )
        return params.n

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Group]:
        """One call to generate, one of the judge, and for failed prompts one or two to score."""
        self.size(params)
        taught = self._taught(engine, prompts, columns or {})
        groups: list[Group] = engine.generate(prompts, params, request_ids=request_ids)
        failed = [
            g
            for g, row in enumerate(rewards_of(self.name, judge, groups))
            if all(reward is None or reward <= self.above for reward in row)
        ]
        chosen = self._chosen(cast(Scores, engine), groups, failed, taught, columns or {})
        for group in groups:
            group.columns["taught"] = 0
        for g, responses in chosen.items():
            kept = groups[g].responses[: params.n - len(responses)]
            groups[g] = dataclasses.replace(
                groups[g],
                responses=[*kept, *responses],
                columns=groups[g].columns | {"taught": len(responses)},
            )
        return groups

    def _taught(
        self, engine: Generates, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[list[Response]]:
        """Every prompt's teachers' responses."""
        given = self._column(columns, self.column, len(prompts))
        found = []
        for i, (prompt, value) in enumerate(zip(prompts, given, strict=True)):
            where = f"{self.column}, prompt {i}"
            found.append(
                [
                    gold_response(engine.tokenizer, prompt, each, engine.max_positions, where)
                    for each in _each(value)
                ]
            )
        if self.answer is not None:
            self._column(columns, self.answer, len(prompts))
        return found

    def _column(self, columns: Mapping[str, Sequence[Any]], name: str, count: int) -> Sequence[Any]:
        given = columns.get(name)
        if given is None or len(given) != count:
            found = "is not there" if given is None else f"has {len(given)}"
            raise DataError(
                f"[{self.name}] columns must have {name!r} with a value for each of {count} "
                f"prompts but it {found}"
            )
        return given

    def _chosen(
        self,
        engine: Scores,
        groups: Sequence[Group],
        failed: Sequence[int],
        taught: Sequence[Sequence[Response]],
        columns: Mapping[str, Sequence[Any]],
    ) -> dict[int, list[Response]]:
        """group -> the responses that it gets, with the policy's log-probs."""
        ranked = {g: list(taught[g]) for g in failed}
        asked = [g for g in failed if self.answer is not None and len(ranked[g]) > self.replaced]
        if asked and self.answer is not None:
            answers = [columns[self.answer][g] for g in asked]
            for g, means in zip(
                asked, self._comprehended(engine, groups, asked, taught, answers), strict=True
            ):
                order = sorted(range(len(means)), key=lambda k: (-means[k], k))
                ranked[g] = [ranked[g][k] for k in order]
        chosen = {g: responses[: self.replaced] for g, responses in ranked.items()}
        given = [Group(groups[g].prompt_ids, responses) for g, responses in chosen.items()]
        for responses, scores in zip(
            chosen.values(), engine.score(given) if given else [], strict=True
        ):
            for response, score in zip(responses, scores, strict=True):
                response.logprobs = [float(x) for x in score.token_logprobs]
        return chosen

    def _comprehended(
        self,
        engine: Scores,
        groups: Sequence[Group],
        asked: Sequence[int],
        taught: Sequence[Sequence[Response]],
        answers: Sequence[Any],
    ) -> list[list[float]]:
        """[prompt][response] mean log-prob of the answer's tokens after prompt and response."""
        questions, sizes = [], []
        for g, answer in zip(asked, answers, strict=True):
            ids = self._answer_ids(engine, answer, g)
            for response in taught[g]:
                # A text's own end is left out: the answer is to go on from it.
                ids_of = response.token_ids[: -1 if response.text is not None else None]
                before = [*groups[g].prompt_ids, *ids_of]
                questions.append(Group(before, [Response(ids)]))
            sizes.append(len(taught[g]))
        means = [
            score.logprob / len(question.responses[0].token_ids)
            for question, [score] in zip(questions, engine.score(questions), strict=True)
        ]
        found, start = [], 0
        for size in sizes:
            found.append(means[start : start + size])
            start += size
        return found

    def _answer_ids(self, engine: Scores, answer: Any, g: int) -> list[int]:
        if isinstance(answer, str) and answer and engine.tokenizer is not None:
            ids: list[int] = engine.tokenizer.encode(answer, add_special_tokens=False)
            return ids
        if isinstance(answer, list) and answer and all(type(i) is int for i in answer):
            return answer
        raise DataError(
            f"[{self.answer}, prompt {g}] must be a text or token ids but is {answer!r:.80}"
        )


def _each(value: Any) -> list[Any]:
    """The responses of a row: one is a text, messages or token ids; several are a list of those."""
    is_one = not isinstance(value, list) or all(isinstance(v, (int, Mapping)) for v in value)
    return [value] if is_one else list(value)
