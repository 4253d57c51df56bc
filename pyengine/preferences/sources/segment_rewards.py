"""Rewards of parts of a response: each source judges every part of its kind by itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.combining import summed_counts
from pyengine.preferences.sources.source import Gives, labels
from pyengine.rules import FINITE, check_fields

_QUOTES = "[\"')\\]\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]*"
_ENDS = {
    "clause": re.compile(rf"[.!?,;:]+{_QUOTES}(?=\s|$)|\n+"),
    "sentence": re.compile(rf"[.!?]+{_QUOTES}(?=\s|$)|\n+"),
    "response": re.compile(r"(?!)"),
}


@dataclass(frozen=True)
class Segment:
    """Tokens first to last of a response, the last one included, and their text."""

    first: int
    last: int
    text: str


def segments_of(response: Response, kind: str, tokenizer: Any) -> list[Segment]:
    """The response's parts, in order; blanks alone are none, and what is left over is the last.

    kind  "clause" (ends in . ! ? , ; : before a blank), "sentence" (in . ! ?), both also at a line
          end; "response", the whole
    A part ends with the token in which its last character is.
    """
    ids = response.token_ids
    lengths = [len(tokenizer.decode_completion(ids[: t + 1])) for t in range(len(ids))]
    text = tokenizer.decode_completion(ids)
    cuts = [match.end() for match in _ENDS[kind].finditer(text)]
    found: list[Segment] = []
    first = start = 0
    for cut in [*cuts, len(text)]:
        last = next((t for t in range(first, len(ids)) if lengths[t] >= cut), len(ids) - 1)
        if not text[start:cut].strip() or first >= len(ids):
            continue
        found.append(Segment(first, last, text[start:cut].strip()))
        first, start = last + 1, cut
    if not found:
        return [Segment(0, len(ids) - 1, text)]
    end = found[-1]
    # What follows the last part, such as the end token, belongs to it.
    return [*found[:-1], Segment(end.first, len(ids) - 1, end.text)]


@dataclass(frozen=True)
class SegmentRewards:
    """Several sources, each judging every clause, sentence or whole response: rewards of tokens.

    The token that a segment ends with has the source's weight times its reward of the segment; a
    token at which several end has their sum. They are the token column "token_rewards", which PPO
    takes; the reward is their sum over the response. A source is shown the prompt and the segment
    as a response of its own. One that abstains on a segment adds nothing; an error is one of the
    response. A response without tokens abstains.

    sources   each asked once, of all segments of all responses
    segments  one a source: "clause", "sentence" or "response"
    weights   one finite number a source; empty: 1 each
    model     whose tokens the responses are of
    Counted: "segments", and what the sources count.
    Source: Wu et al., arXiv:2306.01693, section 2.
    """

    name: ClassVar[str] = "segment_rewards"
    gives: ClassVar[Gives] = Gives(token_columns=("token_rewards",))
    sources: Sequence[Any] = bound("sources")
    segments: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    model: AsksModel | str = bound("model", "policy")

    def __post_init__(self) -> None:
        check_fields(self)
        count = len(self.sources)
        if not count:
            raise ConfigError(f"[{self.name}] sources must hold at least one but is empty")
        for field in ("segments", "weights"):
            given = getattr(self, field)
            if len(given) != count and (given or field == "segments"):
                raise ConfigError(
                    f"[{self.name}] {field} must have one a source, {count}, but has {len(given)}"
                )
        for kind in self.segments:
            if kind not in _ENDS:
                raise ConfigError(
                    f"[{self.name}] segments must be of {', '.join(_ENDS)} but one is {kind!r}"
                )
        for weight in self.weights:
            if not FINITE.holds(weight):
                raise ConfigError(f"[{self.name}] weights must be finite but one is {weight}")

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """Rewards of tokens and their sums; one call of each source."""
        check_bound(self)
        tokenizer = cast(AsksModel, self.model).tokenizer
        if tokenizer is None:
            raise RequestError(f"[{self.name}] model must have a tokenizer but has none")
        sizes = [len(group.responses) for group in groups]
        tokens = [[[0.0] * len(r.token_ids) for r in group.responses] for group in groups]
        status: list[list[SampleStatus]] = [["abstain"] * size for size in sizes]
        weights = self.weights or (1.0,) * len(self.sources)
        components: dict[str, list[list[float | None]]] = {}
        members, count = [], 0
        for name, source, kind, weight in zip(
            labels(self.sources), self.sources, self.segments, weights, strict=True
        ):
            parts = [[_parts(r, kind, tokenizer) for r in group.responses] for group in groups]
            count += sum(len(each) for row in parts for each in row)
            judged = source([_as_group(g, of) for g, of in zip(groups, parts, strict=True)])
            members.append(judged)
            components[name] = _added(parts, judged, weight, tokens, status)
        rewards = [
            [math.fsum(tokens[g][k]) if status[g][k] == "value" else None for k in range(size)]
            for g, size in enumerate(sizes)
        ]
        table: list[list[list[float] | None]] = [
            [of if status[g][k] == "value" else None for k, of in enumerate(row)]
            for g, row in enumerate(tokens)
        ]
        return Feedback(
            rewards,
            status,
            [message for member in members for message in member.errors][:MAX_ERRORS],
            components,
            token_columns={"token_rewards": table},
            counts_by_name=summed_counts(members) | {"segments": float(count)},
        )


def _parts(response: Response, kind: str, tokenizer: Any) -> list[Segment]:
    return segments_of(response, kind, tokenizer) if response.token_ids else []


def _as_group(group: Group, parts: Sequence[Sequence[Segment]]) -> Group:
    """All segments of a group's responses, as responses to its prompt."""
    shown = [
        Response(response.token_ids[part.first : part.last + 1], text=part.text)
        for response, of in zip(group.responses, parts, strict=True)
        for part in of
    ]
    return Group(group.prompt_ids, shown, group.prompt, group.columns)


def _added(
    parts: Sequence[Sequence[Sequence[Segment]]],
    judged: Feedback,
    weight: float,
    tokens: list[list[list[float]]],
    status: list[list[SampleStatus]],
) -> list[list[float | None]]:
    """Adds one source's rewards to the tokens; the sum of each response's own, unweighted."""
    sums: list[list[float | None]] = []
    for g, of_group in enumerate(parts):
        place = 0
        row: list[float | None] = []
        for k, of in enumerate(of_group):
            known = []
            for part in of:
                reward, state = judged.rewards[g][place], judged.status[g][place]
                place += 1
                if state == "error":
                    status[g][k] = "error"
                elif reward is not None:
                    tokens[g][k][part.last] += weight * reward
                    known.append(reward)
                    if status[g][k] == "abstain":
                        status[g][k] = "value"
            row.append(math.fsum(known) if known else None)
        sums.append(row)
    return sums
