"""From rows to groups of token ids: a prompt once, nothing cut or dropped in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyengine.data.grouping import DataReport, EncodedPrompt, Fit, GroupBuilder, RowTokenizer
from pyengine.data.layouts import canonical_rows
from pyengine.data.response_numbers import check_response_columns, numbers_of, unpaired
from pyengine.data.turns import Turns
from pyengine.data.validate import (
    PreferenceRow,
    RankedRow,
    Row,
    UnpairedRow,
    check_prompt,
    place,
    validate_rows,
)
from pyengine.errors import ConfigError, DataError, PyengineError

UNPAIR = ("both", "chosen")


class EncodedPair(NamedTuple):
    """Two responses of a group; the fields of `preferences.Comparison`, in its order."""

    group: int
    winner: int
    loser: int
    probability: float
    margin: float | None
    weight: float


@dataclass
class EncodedRows:
    """Rows as token ids; one of the three lists says what is known of the responses.

    pairs    of preference rows, in the order of the rows
    labels   [group][response] of unpaired rows
    scores   [group][response] of ranked rows; None where a response has none
    columns  name -> [group][response]: further numbers of the responses
    """

    groups: list[EncodedPrompt]
    report: DataReport
    pairs: list[EncodedPair] = field(default_factory=list)
    labels: list[list[bool]] | None = None
    scores: list[list[float | None]] | None = None
    columns: dict[str, list[list[float | None]]] = field(default_factory=dict)


def tokenize_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: RowTokenizer,
    max_positions: int,
    *,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    overlong: str = "error",
    identical: str = "error",
    max_length: int | None = None,
    response_columns: Mapping[str, str] | None = None,
    unpair: str | None = None,
    source: str = "rows",
) -> EncodedRows:
    """Rows of pairs, of labelled responses or of ranked lists as groups of token ids.

    Rows with the same prompt share a group, except ranked lists. Equal responses of pairs are
    stored once, unless their numbers differ; every labelled or ranked response is one of its own.

    max_positions  the model's context in tokens
    columns        what the file calls a column: {"prompt": "question", ...}
    layout         a name of `data.layouts`; None: the one that the columns of the first row spell
    overlong       rows over the limit: "error", "drop", "truncate_left" (the prompt's beginning
                   is cut), "truncate_right" (the response's end is cut)
    identical      pairs whose responses are equal, as text or as tokens: "error", "drop", "keep"
    max_length     a smaller limit on prompt + response, in tokens
    response_columns  numbers of the responses: name -> the file's column, see numbers_of
    unpair         pairs become labelled responses: "both", or the "chosen" ones alone
    source         names rows that do not come from a file
    Raises DataError naming row and column, also when a cut cannot make a row fit; ConfigError for
    an option.
    """
    fit = Fit(overlong, max_positions, max_length)
    numbers = dict(response_columns or {})
    check_response_columns(numbers)
    _check_unpair(unpair, identical)
    laid_out = canonical_rows(rows, columns, layout, source)
    checked = validate_rows(laid_out, laid_out.kind, source, identical)  # type: ignore[arg-type]
    report = DataReport(layout=laid_out.layout, rows=len(checked))
    encoder = _Encoder(GroupBuilder(tokenizer), fit, identical, report, numbers)
    if unpair is not None:
        checked = [each for row in checked for each in unpaired(row, unpair, numbers)]
    encoded = encoder.encode(checked)
    encoder.builder.finish(report, encoder.kept, source)
    return encoded


def _check_unpair(unpair: str | None, identical: str) -> None:
    if unpair is None:
        return
    if unpair not in UNPAIR:
        raise ConfigError(f"[rows] unpair must be one of {', '.join(UNPAIR)} but is {unpair!r}")
    if identical == "keep":
        raise ConfigError(
            "[rows] identical must be error or drop where pairs are taken apart: one response "
            "cannot be good and bad, but is 'keep'"
        )


def prompts_from_rows(
    rows: Sequence[Mapping[str, Any]], source: str = "rows", column: str = "prompt"
) -> tuple[list[Turns], list[dict[str, Any]]]:
    """The prompt of every row, and the row's other columns.

    column  what the rows call their prompt
    Raises DataError.
    """
    if not rows:
        raise DataError(f"[{source}] must hold at least one row but holds none")
    checked = [check_prompt(row, place(rows, i, source), column) for i, row in enumerate(rows)]
    return [r.prompt for r in checked], [r.columns for r in checked]


@dataclass
class _Encoder:
    builder: GroupBuilder
    fit: Fit
    identical: str
    report: DataReport
    columns: Mapping[str, str]
    kept: int = 0

    def encode(self, rows: Sequence[Row]) -> EncodedRows:
        result = EncodedRows(self.builder.groups, self.report)
        result.columns = {name: [] for name in self.columns}
        for given in rows:
            row, numbers = numbers_of(given, self.columns)
            if isinstance(row, PreferenceRow):
                pair = self._pair(row, numbers, result.columns)
                if pair is not None:
                    result.pairs.append(pair)
                    self.kept += 1
                continue
            if isinstance(row, UnpairedRow):
                result.labels = table = result.labels or []
                self._responses(row, [row.completion], [row.label], table, numbers, result.columns)
            else:
                assert isinstance(row, RankedRow)  # no layout reads prompts alone
                result.scores = scores = result.scores or []
                self._responses(row, row.completions, row.scores, scores, numbers, result.columns)
        return result

    def _responses(
        self,
        row: UnpairedRow | RankedRow,
        completions: Sequence[Turns],
        known: Sequence[Any],
        table: list[list[Any]],
        numbers: Sequence[Mapping[str, float | None]],
        columns: Mapping[str, list[list[float | None]]],
    ) -> None:
        """Adds the row's responses to a group, and what is known of each to the tables."""
        single = isinstance(row, UnpairedRow)
        names = ["completion"] if single else [f"completions[{i}]" for i in range(len(known))]
        pairs = dict(zip(names, completions, strict=True))
        prompt_ids, full = _encode(self.builder.tokenizer, row.prompt, pairs, row.where)
        fitted = self.fit(prompt_ids, full, row.where, self.report)
        if fitted is None:
            return
        g = self.builder.group(fitted[0], row.prompt, row.columns, self.report, share=single)
        table += [[] for _ in range(g + 1 - len(table))]
        for ids, uncut, completion, value, own in zip(
            fitted[1], full, completions, known, numbers, strict=True
        ):
            k = self.builder.respond(g, ids, completion, cut=ids != uncut, share=False)
            table[g].append(value)
            _note(columns, g, k, own)
        self.kept += 1

    def _pair(
        self,
        row: PreferenceRow,
        numbers: Sequence[Mapping[str, float | None]],
        columns: Mapping[str, list[list[float | None]]],
    ) -> EncodedPair | None:
        if row.chosen == row.rejected and self.identical == "drop":
            self.report.dropped_identical += 1
            return None
        assert row.prompt is not None  # validate_rows refuses what cannot be split
        pair = {"chosen": row.chosen, "rejected": row.rejected}
        prompt_ids, full = _encode(self.builder.tokenizer, row.prompt, pair, row.where)
        fitted = self.fit(prompt_ids, full, row.where, self.report)
        if fitted is None:
            return None
        winner_ids, loser_ids = fitted[1]
        same = winner_ids == loser_ids
        if same and self.identical == "error":
            raise DataError(
                f"[{row.where}] rejected must differ from chosen but has the same "
                f'{len(loser_ids)} tokens; identical="drop" leaves such rows out'
            )
        if same and self.identical == "drop":
            self.report.dropped_identical += 1
            return None
        g = self.builder.group(fitted[0], row.prompt, row.columns, self.report)
        places = []
        for ids, turns, uncut, share, own in (
            (winner_ids, row.chosen, full[0], True, numbers[0]),
            # Kept twice when equal: a comparison needs two responses.
            (loser_ids, row.rejected, full[1], not same, numbers[1]),
        ):
            k = self.builder.respond(
                g, ids, turns, cut=ids != uncut, share=share, known=tuple(own.items())
            )
            _note(columns, g, k, own)
            places.append(k)
        winner, loser = places
        return EncodedPair(g, winner, loser, row.probability, row.margin, row.weight)


def _note(
    columns: Mapping[str, list[list[float | None]]],
    g: int,
    k: int,
    numbers: Mapping[str, float | None],
) -> None:
    """Puts a response's numbers in their places, unless they are there already."""
    for name, table in columns.items():
        table += [[] for _ in range(g + 1 - len(table))]
        if k == len(table[g]):
            table[g].append(numbers[name])


def _encode(
    tokenizer: RowTokenizer, prompt: Turns, completions: Mapping[str, Turns], where: str
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt and of each completion (column -> turns)."""
    prompts, responses = [], []
    for column, completion in completions.items():
        try:
            prompt_ids, response_ids = tokenizer.encode_completion(prompt, completion)
        except PyengineError as error:
            raise type(error)(f"[{where}] {error}") from error
        for name, ids in (("prompt", prompt_ids), (column, response_ids)):
            if not ids:
                raise DataError(f"[{where}] {name} must have at least one token but has none")
        prompts.append(list(prompt_ids))
        responses.append(list(response_ids))
    if any(ids != prompts[0] for ids in prompts):
        raise DataError(
            f"[{where}] prompt must have the same tokens before {' and '.join(completions)} but "
            "has not: the chat template renders it by what follows"
        )
    return prompts[0], responses
