"""Some of a data set's examples as a batch: comparisons, responses or groups by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Preferences

Unit = Literal["comparison", "response", "group"]


def num_examples(data: Preferences, unit: Unit) -> int:
    """How many examples of that kind there are."""
    if unit == "comparison":
        return len(data.comparisons)
    if unit == "response":
        return sum(len(group.responses) for group in data.groups)
    return len(data.groups)


def take_examples(data: Preferences, unit: Unit, indices: Sequence[int]) -> Preferences:
    """The examples `indices`, in the order of their groups.

    Examples of one prompt share its group, so that it is computed once. Groups, responses and
    columns are not copied.
    """
    if unit == "comparison":
        return _comparisons(data, indices)
    if unit == "group":
        kept = {g: range(len(data.groups[g].responses)) for g in sorted(indices)}
        return _responses(data, kept)
    places = [(g, k) for g, group in enumerate(data.groups) for k in range(len(group.responses))]
    wanted: dict[int, list[int]] = {}
    for g, k in sorted(places[i] for i in indices):
        wanted.setdefault(g, []).append(k)
    return _responses(data, wanted)


def _comparisons(data: Preferences, indices: Sequence[int]) -> Preferences:
    chosen = [data.comparisons[i] for i in indices]
    used = {c.group for c in chosen} | {g for c in chosen for g, _ in c.further}
    place = {g: i for i, g in enumerate(sorted(used))}
    comparisons = [
        replace(
            c,
            group=place[c.group],
            auxiliary=c.auxiliary
            if isinstance(c.auxiliary, int)
            else [(place[g], k) for g, k in c.auxiliary],
        )
        for c in chosen
    ]
    everything = {g: range(len(data.groups[g].responses)) for g in place}
    return replace(_responses(data, everything), comparisons=comparisons)


def _responses(data: Preferences, kept: Mapping[int, Sequence[int]]) -> Preferences:
    groups = []
    for g, ks in kept.items():
        group = data.groups[g]
        whole = len(ks) == len(group.responses)
        groups.append(group if whole else _some(group, ks))
    feedback = None if data.feedback is None else _feedback(data.feedback, kept)
    return Preferences(groups, (), feedback)


def _some(group: Group, ks: Sequence[int]) -> Group:
    return replace(group, responses=[group.responses[k] for k in ks])


def _feedback(feedback: Feedback, kept: Mapping[int, Sequence[int]]) -> Feedback:
    def rows(table: Sequence[Sequence[object]]) -> list[list[object]]:
        return [[table[g][k] for k in ks] for g, ks in kept.items()]

    matrix = feedback.preference_matrix
    tables = {name: rows(t) for name, t in feedback.columns.items()}
    of_tokens = {name: rows(t) for name, t in feedback.token_columns.items()}
    return Feedback(
        rows(feedback.rewards),  # type: ignore[arg-type]
        rows(feedback.status),  # type: ignore[arg-type]
        labels=None if feedback.labels is None else rows(feedback.labels),  # type: ignore[arg-type]
        columns=tables,  # type: ignore[arg-type]
        token_columns=of_tokens,  # type: ignore[arg-type]
        preference_matrix=None
        if matrix is None
        else [[[matrix[g][i][j] for j in ks] for i in ks] for g, ks in kept.items()],
    )
