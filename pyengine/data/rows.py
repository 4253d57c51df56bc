"""From rows to groups of token ids: a prompt once, nothing cut or dropped in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyengine.data.grouping import DataReport, Fit, GroupBuilder, Overlong, RowTokenizer
from pyengine.data.turns import Turns
from pyengine.data.validate import (
    Identical,
    PreferenceRow,
    PromptRow,
    RowFormat,
    UnpairedRow,
    detect_format,
    validate_rows,
)
from pyengine.errors import DataError, PyengineError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group, Preferences

__all__ = [
    "DataReport",
    "Identical",
    "Overlong",
    "RowFormat",
    "detect_format",
    "preferences_from_rows",
    "prompts_from_rows",
    "tokenize_preferences",
    "unpaired_from_rows",
    "validate_rows",
]


def preferences_from_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: RowTokenizer,
    max_positions: int,
    *,
    overlong: str = "error",
    identical: str = "error",
    max_length: int | None = None,
    source: str = "rows",
) -> Preferences:
    """`tokenize_preferences` without the report."""
    return tokenize_preferences(
        rows,
        tokenizer,
        max_positions,
        overlong=overlong,
        identical=identical,
        max_length=max_length,
        source=source,
    )[0]


def tokenize_preferences(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: RowTokenizer,
    max_positions: int,
    *,
    overlong: str = "error",
    identical: str = "error",
    max_length: int | None = None,
    source: str = "rows",
) -> tuple[Preferences, DataReport]:
    """Preference rows as groups and one comparison a row, in the order of the rows.

    max_positions  the model's context in tokens
    max_length     a smaller limit on prompt + response, in tokens
    overlong       rows over the limit: "error", "drop", "truncate_left" (the prompt's beginning
                   is cut), "truncate_right" (the response's end is cut)
    identical      rows whose responses are equal, as text or as tokens: "error", "drop", "keep"
    source         names rows that do not come from a file
    Raises DataError naming row and column, also when a cut cannot make a row fit.
    """
    fit = Fit(overlong, max_positions, max_length)
    checked = validate_rows(rows, "preference", source, identical)  # type: ignore[arg-type]
    report = DataReport(rows=len(checked))
    builder = GroupBuilder(tokenizer)
    comparisons: list[Comparison] = []
    for row in checked:
        assert isinstance(row, PreferenceRow)
        comparison = _add_preference(row, builder, fit, identical, report)
        if comparison is not None:
            comparisons.append(comparison)
    builder.finish(report, len(comparisons), source)
    return Preferences(builder.groups, comparisons), report


def unpaired_from_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: RowTokenizer,
    max_positions: int,
    *,
    overlong: str = "error",
    max_length: int | None = None,
    source: str = "rows",
) -> tuple[list[Group], Feedback, DataReport]:
    """Rows of prompt, completion, label as groups, with the labels (reward 1 or 0) as feedback.

    Every row is a response of its own, also when it repeats another. Arguments and errors as in
    `tokenize_preferences`.
    """
    fit = Fit(overlong, max_positions, max_length)
    checked = validate_rows(rows, "unpaired", source)
    report = DataReport(rows=len(checked))
    builder = GroupBuilder(tokenizer)
    labels: list[list[bool]] = []
    for row in checked:
        assert isinstance(row, UnpairedRow)
        ids = _encode(tokenizer, row.prompt, {"completion": row.completion}, row.where)
        fitted = fit(*ids, row.where, report)
        if fitted is None:
            continue
        g = builder.group(fitted[0], row.prompt, row.columns, report)
        builder.respond(g, fitted[1][0], row.completion, cut=fitted[1] != ids[1], share=False)
        labels += [[] for _ in range(g + 1 - len(labels))]
        labels[g].append(row.label)
    builder.finish(report, sum(map(len, labels)), source)
    return builder.groups, Feedback.from_labels(labels), report


def prompts_from_rows(
    rows: Sequence[Mapping[str, Any]], source: str = "rows"
) -> tuple[list[Turns], list[dict[str, Any]]]:
    """The prompt of every row, and the row's other columns. Raises DataError."""
    checked = [r for r in validate_rows(rows, "prompt", source) if isinstance(r, PromptRow)]
    return [r.prompt for r in checked], [r.columns for r in checked]


def _add_preference(
    row: PreferenceRow, builder: GroupBuilder, fit: Fit, identical: str, report: DataReport
) -> Comparison | None:
    if row.chosen == row.rejected and identical == "drop":
        report.dropped_identical += 1
        return None
    assert row.prompt is not None  # validate_rows refuses what cannot be split
    pair = {"chosen": row.chosen, "rejected": row.rejected}
    prompt_ids, responses = _encode(builder.tokenizer, row.prompt, pair, row.where)
    fitted = fit(prompt_ids, responses, row.where, report)
    if fitted is None:
        return None
    winner_ids, loser_ids = fitted[1]
    same = winner_ids == loser_ids
    if same and identical == "error":
        raise DataError(
            f"[{row.where}] rejected must differ from chosen but has the same {len(loser_ids)} "
            'tokens; identical="drop" leaves such rows out'
        )
    if same and identical == "drop":
        report.dropped_identical += 1
        return None
    g = builder.group(fitted[0], row.prompt, row.columns, report)
    winner, loser = (
        builder.respond(g, ids, turns, cut=ids != full, share=share)
        for ids, turns, full, share in (
            (winner_ids, row.chosen, responses[0], True),
            # Kept twice when equal: a comparison needs two responses.
            (loser_ids, row.rejected, responses[1], not same),
        )
    )
    return Comparison(g, winner, loser, row.probability, row.margin, row.weight)


def _encode(
    tokenizer: RowTokenizer, prompt: Turns, completions: dict[str, Turns], where: str
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
            f"[{where}] prompt must have the same tokens before chosen and rejected but has not: "
            "the chat template renders it by what follows"
        )
    return prompts[0], responses
