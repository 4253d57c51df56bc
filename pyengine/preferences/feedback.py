"""What is known about the responses of groups: rewards, who abstained, what went wrong.

A sample that failed has no reward, so it can never become a gradient; it is counted instead.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pyengine.errors import RequestError

SampleStatus = Literal["value", "abstain", "error"]
TokenTable = list[list[list[float] | None]]  # [group][response][token]
MAX_ERRORS = 5  # messages kept; every failure is counted


@dataclass
class Feedback:
    """Rewards of each response of each group.

    rewards     [group][response]: a finite number, or None if there is none
    status      [group][response]: "value", "abstain" (the source had no opinion), "error"
    errors      the first few messages of what went wrong
    components  name of a reward function -> its own rewards, shaped like `rewards`
    labels      [group][response]: desirable or not; None if the source gives no labels
    columns     name -> [group][response]: further numbers that an objective asks for by that name
                ("safe", "win_rate", "visits", "values"); None where there is none
    token_columns  name -> [group][response][token]: numbers of every token of a response
                ("token_weight"); None in place of a response's list where there are none
    preference_matrix  [group][i][j]: P(response i is preferred to response j), in [0, 1], or None
                where the source could not compare them; None if it compares nothing
    counts_by_name  what the source counted of itself: "comparisons", "calls", "tokens", ...
    """

    rewards: list[list[float | None]]
    status: list[list[SampleStatus]]
    errors: list[str] = field(default_factory=list)
    components: dict[str, list[list[float | None]]] = field(default_factory=dict)
    labels: list[list[bool]] | None = None
    columns: dict[str, list[list[float | None]]] = field(default_factory=dict)
    token_columns: dict[str, TokenTable] = field(default_factory=dict)
    preference_matrix: Sequence[Sequence[Sequence[float | None]]] | None = None
    counts_by_name: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rewards", "labels"):
            if name in self.columns:
                raise RequestError(
                    f"[Feedback] columns must not hold {name!r}, which would stand beside "
                    f"Feedback.{name}: give it as {name}="
                )
        sizes = [len(row) for row in self.rewards]
        tables: dict[str, Any] = {"status": self.status, "labels": self.labels}
        tables |= {f"columns[{name!r}]": table for name, table in self.columns.items()}
        tables |= {f"token_columns[{name!r}]": table for name, table in self.token_columns.items()}
        for name, table in tables.items():
            if table is not None and [len(row) for row in table] != sizes:
                raise RequestError(
                    f"[Feedback] {name} must have the shape of rewards, {sizes} responses a group, "
                    f"but has {[len(row) for row in table]}"
                )
        if self.preference_matrix is not None:
            _check_matrix(self.preference_matrix, sizes)
        for g, row in enumerate(self.rewards):
            for k, reward in enumerate(row):
                self._check(g, k, reward)
        for name, column in self.columns.items():
            for g, values in enumerate(column):
                for k, value in enumerate(values):
                    if value is not None and not math.isfinite(value):
                        raise RequestError(
                            f"[Feedback] columns[{name!r}][{g}][{k}] must be finite but is {value}"
                        )

    def check_shape(self, sizes: Sequence[int]) -> None:
        """Raises RequestError unless there is an entry for each of `sizes` responses a group."""
        if [len(row) for row in self.rewards] != list(sizes):
            raise RequestError(
                f"[Feedback] rewards must have the shape of the groups, {list(sizes)} responses, "
                f"but has {[len(row) for row in self.rewards]}"
            )

    def check_tokens(self, lengths: Sequence[Sequence[int]]) -> None:
        """Raises RequestError unless token columns have a finite number for each of the tokens.

        lengths  [group][response]: tokens
        """
        for name, table in self.token_columns.items():
            for g, row in enumerate(table):
                for k, values in enumerate(row):
                    what = f"[Feedback] token_columns[{name!r}][{g}][{k}]"
                    if values is not None and len(values) != lengths[g][k]:
                        raise RequestError(
                            f"{what} must have one number for each of the response's "
                            f"{lengths[g][k]} tokens but has {len(values)}"
                        )
                    for value in values or ():
                        if not math.isfinite(value):
                            raise RequestError(f"{what} must be finite but holds {value}")

    def _check(self, g: int, k: int, reward: float | None) -> None:
        has_value = self.status[g][k] == "value"
        if has_value != (reward is not None):
            raise RequestError(
                f"[Feedback] rewards[{g}][{k}] must be a number exactly when its status is "
                f"'value' but is {reward} with status {self.status[g][k]!r}"
            )
        if reward is not None and not math.isfinite(reward):
            raise RequestError(f"[Feedback] rewards[{g}][{k}] must be finite but is {reward}")

    @classmethod
    def from_rewards(cls, rewards: Sequence[Sequence[float | None]]) -> Feedback:
        """Feedback of ready-made rewards; None abstains."""
        table = [list(row) for row in rewards]
        status: list[list[SampleStatus]] = [
            ["abstain" if r is None else "value" for r in row] for row in table
        ]
        return cls(table, status)

    @classmethod
    def from_labels(cls, labels: Sequence[Sequence[bool]]) -> Feedback:
        """Feedback of desirable (reward 1) and undesirable (reward 0) responses."""
        feedback = cls.from_rewards([[float(label) for label in row] for row in labels])
        feedback.labels = [list(row) for row in labels]
        return feedback

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; `from_json` of it is equal."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Feedback:
        """What `to_json` gave. Raises RequestError for anything else."""
        names = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or not set(data) <= names:
            raise RequestError(f"[Feedback] data must have the fields {', '.join(sorted(names))}")
        return cls(**data)

    @classmethod
    def joined(cls, parts: Sequence[Feedback]) -> Feedback:
        """Feedback on groups that were judged in parts, one after the other.

        What only some parts have is None on the responses of others. Messages name groups by their
        place among all.
        """

        def table(of_parts: Iterable[Any], nothing: Any = None) -> list[Any]:
            return [
                row
                for part, of_part in zip(parts, of_parts, strict=True)
                for row in (of_part or [[nothing] * len(row) for row in part.rewards])
            ]

        def by_name(field: str) -> dict[str, Any]:
            of_parts = [getattr(part, field) for part in parts]
            names = dict.fromkeys(name for part in of_parts for name in part)
            return {name: table([part.get(name) for part in of_parts]) for name in names}

        errors, counts, first = [], Counter[str](), 0
        for part in parts:
            errors += [_renumbered(message, first) for message in part.errors]
            counts.update(part.counts_by_name)
            first += len(part.rewards)
        has_labels = any(part.labels for part in parts)
        has_matrix = any(part.preference_matrix for part in parts)
        unknown = [[[[None] * len(row)] * len(row) for row in part.rewards] for part in parts]
        matrices = [part.preference_matrix or no for part, no in zip(parts, unknown, strict=True)]
        return cls(
            table(part.rewards for part in parts),
            table(part.status for part in parts),
            list(dict.fromkeys(errors))[:MAX_ERRORS],
            by_name("components"),
            table((part.labels for part in parts), False) if has_labels else None,
            by_name("columns"),
            by_name("token_columns"),
            table(matrices) if has_matrix else None,
            dict(counts),
        )

    @property
    def counts(self) -> dict[str, int]:
        """Samples by status; all three keys are always there."""
        seen = Counter(s for row in self.status for s in row)
        return {s: seen[s] for s in ("value", "abstain", "error")}

    @property
    def valid_fraction(self) -> float:
        """Share of the samples that have a reward; 0 when there are no samples."""
        total = sum(self.counts.values())
        return self.counts["value"] / total if total else 0.0

    def metrics(self) -> dict[str, float]:
        """Mean and population standard deviation of each component's rewards.

        Keys `rewards/<name>/mean` and `rewards/<name>/std`; left out for a component without any.
        """
        result: dict[str, float] = {}
        for name, table in self.components.items():
            values = [r for row in table for r in row if r is not None]
            if values:
                mean = math.fsum(values) / len(values)
                variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
                result[f"rewards/{name}/mean"] = mean
                result[f"rewards/{name}/std"] = math.sqrt(variance)
        return result


def _renumbered(message: str, first: int) -> str:
    """groups[i] of a part as that of all groups."""
    return re.sub(r"groups\[(\d+)\]", lambda found: f"groups[{first + int(found[1])}]", message)


def _check_matrix(matrix: Sequence[Sequence[Sequence[float | None]]], sizes: Sequence[int]) -> None:
    shapes = [[len(row) for row in table] for table in matrix]
    if shapes != [[size] * size for size in sizes]:
        raise RequestError(
            f"[Feedback] preference_matrix must be square for each group, {sizes} responses a "
            f"group, but has rows of {shapes}"
        )
    for g, table in enumerate(matrix):
        for i, row in enumerate(table):
            for j, p in enumerate(row):
                if p is not None and not 0 <= p <= 1:
                    raise RequestError(
                        f"[Feedback] preference_matrix[{g}][{i}][{j}] must be in [0, 1] but is {p}"
                    )
