"""The vocabulary every layer shares: groups of responses to a prompt, and comparisons between them.

Plain data: no model, no tensors on a device, no I/O. Token ids are made once and never re-
tokenised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pyengine.errors import RequestError

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback

FinishReason = Literal["stop", "length", "abort"]


@dataclass
class Response:
    """One response to a prompt.

    token_ids          the response's tokens; an end-of-sequence token that was sampled is part of
                       it
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


@dataclass
class Group:
    """One prompt and its K responses.

    prompt    what the user passed (text or messages), for display and rewards; None when built from
              ids
    columns   further fields of the data row; reward functions receive them as keyword arguments
    """

    prompt_ids: list[int]
    responses: list[Response] = field(default_factory=list)
    prompt: str | list[dict[str, Any]] | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Response `winner` of group `group` is preferred to response `loser` with probability
    `probability`.

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
    """

    groups: Sequence[Group]
    comparisons: Sequence[Comparison] = ()
    feedback: Feedback | None = None

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
        overlong: str = "error",
        identical: str = "error",
        max_length: int | None = None,
    ) -> Preferences:
        """Tokenise prompt/chosen/rejected rows with the engine's tokenizer; one comparison a row.

        rows      dicts with `prompt` (optional when chosen and rejected share a message prefix),
                  `chosen`, `rejected`: text or message lists; optional `probability`, `margin`,
                  `weight`
        overlong  rows longer than the model's context: "error", "drop", "truncate_left",
                  "truncate_right"
        identical  rows whose chosen equals their rejected: "error", "drop", "keep"
        max_length longest prompt plus response in tokens; default: the model's context
        Raises DataError naming row and column.
        """
        # Not at the top: data imports this module.
        from pyengine.data.rows import preferences_from_rows

        return preferences_from_rows(
            rows,
            engine.tokenizer,
            engine.max_positions,
            overlong=overlong,
            identical=identical,
            max_length=max_length,
        )
