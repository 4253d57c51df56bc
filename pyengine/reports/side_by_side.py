"""Two models' samples of the same prompts and who wins: as data, as text, and as Markdown."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pyengine.loops.evaluate import Evaluation
from pyengine.loops.head_to_head import HeadToHead
from pyengine.preferences.groups import Group
from pyengine.recipes.schema.prompt_files import prompt_text
from pyengine.reports.table import format_value

Document = Mapping[str, Any]
SIDES = ("a", "b")
_GAP = "   "


def document(
    models: Sequence[str],
    groups: Sequence[Sequence[Group]],
    sampling: Mapping[str, Any],
    source: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    result: HeadToHead | None = None,
) -> dict[str, Any]:
    """All of a comparison as JSON-able data; sides are "a" and "b".

    models, groups  of the two sides; [side][prompt]
    evaluations, result  what the source says of them; left out where there is no source
    """
    data: dict[str, Any] = {"prompts": len(groups[0]), "sampling": dict(sampling), "source": source}
    for i, side in enumerate(SIDES):
        responses = [r for group in groups[i] for r in group.responses]
        data[side] = {
            "model": models[i],
            "mean_length": sum(len(r.token_ids) for r in responses) / len(responses),
            "cut": sum(r.finish_reason == "length" for r in responses),
        }
        if evaluations:
            own = evaluations[i]
            data[side] |= {
                "mean_reward": own.mean,
                "standard_error": own.standard_error,
                "no_reward": sum(reward is None for row in own.rewards for reward in row),
            }
    if result is not None:
        names = ("win_rate", "standard_error", "wins", "losses", "ties", "failed", "gain")
        data["result"] = {name: getattr(result, name) for name in names}
    data["samples"] = [_row(k, groups, evaluations, result) for k in range(len(groups[0]))]
    return data


def _row(
    index: int,
    groups: Sequence[Sequence[Group]],
    evaluations: Sequence[Evaluation],
    result: HeadToHead | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": groups[0][index].prompt}
    if result is not None:
        row["share_of_a"] = result.shares[index]
    for i, side in enumerate(SIDES):
        samples: list[dict[str, Any]] = [
            {"text": r.text, "finish_reason": r.finish_reason, "tokens": len(r.token_ids)}
            for r in groups[i][index].responses
        ]
        if evaluations:
            rewards = evaluations[i].rewards[index]
            samples = [s | {"reward": r} for s, r in zip(samples, rewards, strict=True)]
        row[side] = samples
    return row


def as_text(data: Document, width: int, shown: int) -> str:
    """A table of both sides, the first samples of the first `shown` prompts, and the result."""
    column = max((width - len(_GAP)) // 2, 20)
    parts = [
        f"prompt  {_flat(prompt_text(row['prompt']))}\n{_columns(row, column)}"
        for row in data["samples"][:shown]
    ]
    lines = [["", "A", "B"]] + [[name, *cells] for name, cells in _facts(data)]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    table = "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n\n".join([*parts, table, *_verdict(data)])


def as_markdown(data: Document) -> str:
    """The same table and result, then all samples of all prompts side by side."""
    parts = [f"# {_cell(data['a']['model'])} (A) and {_cell(data['b']['model'])} (B)"]
    rows = [f"| {name} | {_cell(a)} | {_cell(b)} |" for name, (a, b) in _facts(data)]
    parts += ["\n".join(["| | A | B |", "|---|---|---|", *rows]), *_verdict(data)]
    for number, row in enumerate(data["samples"], 1):
        text = prompt_text(row["prompt"])
        quoted = "\n".join(f"> {html.escape(line, quote=False)}" for line in text.splitlines())
        pairs = zip(row["a"], row["b"], strict=True)
        cells = [[_cell(_headed(sample, "\n")) for sample in pair] for pair in pairs]
        rows = ["| A | B |", "|---|---|", *(f"| {a} | {b} |" for a, b in cells)]
        parts += [f"## Prompt {number}", quoted, "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _facts(data: Document) -> list[tuple[str, list[str]]]:
    """Name and both sides' values of each line of the table."""
    facts = [("model", [data[side]["model"] for side in SIDES])]
    if data["source"] is not None:
        facts.append(
            (
                "mean reward",
                [
                    _plus_minus(data[s]["mean_reward"], data[s]["standard_error"], "+.3f")
                    for s in SIDES
                ],
            )
        )
        facts.append(("without reward", [str(data[s]["no_reward"]) for s in SIDES]))
    facts.append(("mean tokens", [f"{data[s]['mean_length']:.1f}" for s in SIDES]))
    facts.append(("cut at the limit", [str(data[s]["cut"]) for s in SIDES]))
    return facts


def _verdict(data: Document) -> list[str]:
    """The win rate in a sentence; nothing without a source."""
    result = data.get("result")
    if result is None:
        return []
    pairs = sum(result[name] for name in ("wins", "losses", "ties", "failed"))
    error, (gain, gain_error) = result["standard_error"], result["gain"]
    rate = _plus_minus(100 * result["win_rate"], None if error is None else 100 * error, ".1f")
    return [
        f"A wins {rate} % by {data['source']}: of {pairs} pairs {result['wins']} won, "
        f"{result['losses']} lost, {result['ties']} tied (half a win each), {result['failed']} "
        f"failed. Reward A - B: {_plus_minus(gain, gain_error, '+.3f')}. "
        f"Standard errors over {data['prompts']} prompts, paired."
    ]


def _columns(row: Document, width: int) -> str:
    """The first sample of each side, in two columns of `width` characters."""
    left, right = (
        textwrap.wrap(_headed(row[side][0], " "), width) or ["(empty)"] for side in SIDES
    )
    return "\n".join(
        f"{a:<{width}}{_GAP}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")
    )


def _headed(sample: Mapping[str, Any], between: str) -> str:
    """A sample's text after its reward, where a source gave one or failed to."""
    text = sample["text"] or ""
    if "reward" not in sample:
        return text
    return f"({format_value(sample['reward'], '+.3f')}){between}{text}"


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table: what a model wrote must not become markup."""
    escaped = html.escape(text, quote=False).replace("|", "&#124;")
    return "<br>".join(escaped.splitlines())


def _flat(text: str) -> str:
    return " ".join(text.split())


def _plus_minus(mean: float, error: float | None, spec: str) -> str:
    plain = spec.removeprefix("+")
    return format(mean, spec) + ("" if error is None else f" ± {format(error, plain)}")
