"""What a user looks at before training: the first example as rendered, and how long all are."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.data.tokenizer import Tokenizer
from pyengine.preferences.groups import Preferences

_SHOWN = 600  # characters of a text


def first_example(data: Preferences, unit: str, tokenizer: Tokenizer) -> str:
    """The first comparison, response or group: texts with special tokens, and what is trained.

    Every token of a response is trained; none of a prompt is.
    """
    group = data.groups[0]
    if unit == "comparison":
        comparison = data.comparisons[0]
        group = data.groups[comparison.group]
        named = [("chosen", comparison.winner), ("rejected", comparison.loser)]
    else:
        count = 1 if unit == "response" else len(group.responses)
        named = [(f"response {k}" if count > 1 else "response", k) for k in range(count)]
    lines = [_line("prompt", group.prompt_ids, "context only", tokenizer)]
    for name, k in named:
        known = "trained" + _known(data, unit, k)
        lines.append(_line(name, group.responses[k].token_ids, known, tokenizer))
    return "the first example as the model reads it:\n" + "\n".join(lines)


def _known(data: Preferences, unit: str, k: int) -> str:
    """What the feedback says of response k of the first group."""
    if data.feedback is None or unit == "comparison":
        return ""
    if data.feedback.labels is not None:
        return ", desirable" if data.feedback.labels[0][k] else ", undesirable"
    return f", reward {data.feedback.rewards[0][k]}"


def _line(name: str, ids: Sequence[int], what: str, tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False)
    short = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
    return f"  {name} ({len(ids)} tokens, {what}): {short!r}"


def length_report(data: Preferences) -> str:
    """Prompts, responses and their lengths in tokens, and what became of rows that did not fit."""
    prompts = sorted(len(group.prompt_ids) for group in data.groups)
    responses = sorted(len(r.token_ids) for group in data.groups for r in group.responses)
    words = [
        f"{len(prompts)} prompts of {_spread(prompts)} tokens, "
        f"{len(responses)} responses of {_spread(responses)} tokens"
    ]
    if (report := data.report) is not None:
        words.append(f"layout {report.layout}, {report.kept} of {report.rows} rows kept")
        for name in ("dropped_overlong", "dropped_identical", "truncated", "conflicting_columns"):
            if count := getattr(report, name):
                words.append(f"{count} {name.replace('_', ' ')}")
    return "; ".join(words)


def _spread(lengths: Sequence[int]) -> str:
    """Shortest, median, 95th of a hundred, longest."""
    last = len(lengths) - 1
    return "/".join(str(lengths[round(share * last)]) for share in (0.0, 0.5, 0.95, 1.0))
