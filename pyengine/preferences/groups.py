"""The vocabulary every layer shares: groups of responses to a prompt, and comparisons between them.

Plain data: no model, no tensors on a device, no I/O. Token ids are made once, and never again
from text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyengine.data.grouping import DataReport
from pyengine.data.rows import EncodedRows, tokenize_rows
from pyengine.errors import RequestError
from pyengine.preferences.feedback import Feedback

FinishReason = Literal["stop", "length", "abort"]


@dataclass
class Response:
    """One response to a prompt.

    token_ids          the response's tokens; an end-of-sequence token that was sampled is part of
                       it. Any integers, also a NumPy array's; kept as Python's
    logprobs           (R,) log softmax(logits) of each token at temperature 1, untruncated; None if
                       not sampled here
    sampling_logprobs  (R,) under the distribution actually drawn from; None if not sampled here
    text               what it adds to the prompt's text, a blank at its beginning too, without
                       special tokens; None if there is no tokenizer
    finish_reason      "stop" (an end token), "length" (max_tokens), "abort" (cancelled); None if
                       not sampled here
    kept_mass          (R,) what top_k, top_p and min_p kept of the distribution after temperature,
                       as a probability; None if not sampled here
    entropy            (R,) entropy of the raw distribution in nats; None if not asked for
    top_logprobs       (R, k) the k most likely tokens and their raw log-probs, (token id, log-prob)
                       each, most likely first; None if not asked for
    model_logprobs     {model: (R,)} raw log-probs of the tokens under each of the models that were
                       sampled from in lock step; None if there was one
    origin             what it is from, in a group of several: "policy", "reference", "gold", a
                       snapshot's name, ...; None: the policy, or a row of data
    """

    token_ids: list[int]
    logprobs: list[float] | None = None
    sampling_logprobs: list[float] | None = None
    text: str | None = None
    finish_reason: FinishReason | None = None
    kept_mass: list[float] | None = None
    entropy: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    model_logprobs: dict[str, list[float]] | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        self.token_ids = _integers(self.token_ids, "[Response] token_ids")


@dataclass
class Group:
    """One prompt and its K responses.

    prompt_ids  the prompt's tokens; any integers, kept as Python's
    prompt    what the user passed (text or messages), for display and rewards; None when built from
              ids
    columns   further fields of the data row; reward functions receive them as keyword arguments
    """

    prompt_ids: list[int]
    responses: list[Response] = field(default_factory=list)
    prompt: str | list[dict[str, Any]] | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompt_ids = _integers(self.prompt_ids, "[Group] prompt_ids")


@dataclass(frozen=True)
class Comparison:
    """Response `winner` of group `group` is preferred to response `loser` with probability
    `probability`.

    margin     by how much, in the units of the objective that takes it (`Objective.takes_margin`);
               None: it has a default. Others refuse a margin
    auxiliary  further responses whose log-probs the objective takes (XPO's exploration, SLiC's
               target, a rationale): the index of one in the group, or (group, index) of each
    """

    group: int
    winner: int
    loser: int
    probability: float = 1.0
    margin: float | None = None
    weight: float = 1.0
    auxiliary: int | Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        for name in ("group", "winner", "loser"):
            index = getattr(self, name)
            if type(index) is not int:
                object.__setattr__(self, name, _integer(index, f"[Comparison] {name}"))

    @property
    def further(self) -> list[tuple[int, int]]:
        """(group, index) of each auxiliary response."""
        if isinstance(self.auxiliary, int):
            return [(self.group, self.auxiliary)]
        return list(self.auxiliary)


@dataclass
class Preferences:
    """Groups and what is known about their responses: what `Engine.update` learns from.

    comparisons  for objectives of pairs
    feedback     rewards, labels and other numbers of the responses, for objectives that take them
    report       what became of the rows that `from_rows` made them of
    """

    groups: Sequence[Group]
    comparisons: Sequence[Comparison] = ()
    feedback: Feedback | None = None
    report: DataReport | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.feedback is not None:
            self.feedback.check_shape([len(g.responses) for g in self.groups])
            self.feedback.check_tokens(
                [[len(r.token_ids) for r in g.responses] for g in self.groups]
            )
        for i, c in enumerate(self.comparisons):
            self._check(i, c)

    def _check(self, i: int, c: Comparison) -> None:
        if not 0 <= c.group < len(self.groups):
            raise RequestError(
                f"[Preferences] comparisons[{i}].group must be in [0, {len(self.groups)}) "
                f"but is {c.group}"
            )
        responses = self.groups[c.group].responses
        for role in ("winner", "loser"):
            index = getattr(c, role)
            if not 0 <= index < len(responses):
                raise RequestError(
                    f"[Preferences] comparisons[{i}].{role} must be in [0, {len(responses)}) "
                    f"for group {c.group} but is {index}"
                )
            if not responses[index].token_ids:
                raise RequestError(
                    f"[Preferences] comparisons[{i}].{role} is response {index} of "
                    f"group {c.group}, which has no tokens: an empty response cannot be compared"
                )
        for place in c.further:
            self._check_auxiliary(i, *place)
        if c.winner == c.loser:
            raise RequestError(
                f"[Preferences] comparisons[{i}] compares response {c.winner} with itself"
            )
        if not 0.0 <= c.probability <= 1.0:
            raise RequestError(
                f"[Preferences] comparisons[{i}].probability must be in [0, 1] "
                f"but is {c.probability}"
            )
        if c.margin is not None and not math.isfinite(c.margin):
            raise RequestError(
                f"[Preferences] comparisons[{i}].margin must be finite or None but is {c.margin}"
            )
        if not 0.0 <= c.weight < float("inf"):
            raise RequestError(
                f"[Preferences] comparisons[{i}].weight must be finite and >= 0 but is {c.weight}"
            )

    def _check_auxiliary(self, i: int, g: int, k: int) -> None:
        if not (0 <= g < len(self.groups) and 0 <= k < len(self.groups[g].responses)):
            raise RequestError(
                f"[Preferences] comparisons[{i}].auxiliary must be a response of the batch but is "
                f"response {k} of group {g}"
            )

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        engine: Any,
        *,
        columns: Mapping[str, str] | None = None,
        layout: str | None = None,
        overlong: str = "error",
        identical: str = "error",
        max_length: int | None = None,
        response_columns: Mapping[str, str] | None = None,
        unpair: str | None = None,
    ) -> Preferences:
        """Tokenise rows with the engine's tokenizer.

        Pairs (`prompt`, `chosen`, `rejected`) become one comparison a row, labelled responses
        (`prompt`, `completion`, `label`) groups with labels as feedback, ranked lists (`prompt`,
        `completions`, `scores`) groups with rewards as feedback; other layouts of public data are
        recognised by their columns (`data.layouts`). `report` says what became of the rows.

        rows       dicts; texts are strings or message lists; pairs may have `probability`,
                   `margin`, `weight`, and no `prompt` where both responses begin alike
        columns    what the rows call a column: {"prompt": "question", "chosen": "yes"}
        layout     the name of a layout, where columns alone do not say
        overlong   rows longer than the model's context: "error", "drop", "truncate_left",
                   "truncate_right"
        identical  pairs whose chosen equals their rejected: "error", "drop", "keep"
        max_length longest prompt plus response in tokens; default: the model's context
        response_columns  numbers of the responses that an objective asks for by name: name -> the
                   rows' column, of pairs without its _chosen and _rejected: {"safe": "safe"},
                   {"scores": "rating"}
        unpair     pairs become labelled responses: "both", or the "chosen" ones alone
        Raises DataError naming row and column; RequestError where the engine has no tokenizer.
        """
        if engine.tokenizer is None:
            raise RequestError(
                "[Preferences] engine must have a tokenizer to take rows but has none: "
                "build Group and Response of token ids"
            )
        encoded = tokenize_rows(
            rows,
            engine.tokenizer,
            engine.max_positions,
            columns=columns,
            layout=layout,
            overlong=overlong,
            identical=identical,
            max_length=max_length,
            response_columns=response_columns,
            unpair=unpair,
        )
        return cls(
            [
                Group(
                    each.prompt_ids,
                    [Response(ids, text=text) for ids, text in each.responses],
                    each.prompt,
                    each.columns,
                )
                for each in encoded.groups
            ],
            [Comparison(*pair) for pair in encoded.pairs],
            _feedback(encoded),
            encoded.report,
        )


def _feedback(encoded: EncodedRows) -> Feedback | None:
    if encoded.labels is not None:
        feedback = Feedback.from_labels(encoded.labels)
    elif encoded.scores is not None:
        feedback = Feedback.from_rewards(encoded.scores)
    elif encoded.columns:
        feedback = Feedback.from_rewards([[None] * len(g.responses) for g in encoded.groups])
    else:
        return None
    feedback.columns = encoded.columns
    return feedback


def _integers(values: Iterable[Any], name: str) -> list[int]:
    """The same list where it holds Python's integers only. Raises RequestError."""
    if type(values) is list and all(type(value) is int for value in values):
        return values
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise RequestError(f"{name} must be integers but are {type(values).__name__}")
    return [_integer(value, f"{name}[{i}]") for i, value in enumerate(values)]


def _integer(value: Any, name: str) -> int:
    """Raises RequestError for what is no integer; a bool is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise RequestError(f"{name} must be an integer but is {value!r:.80}")
