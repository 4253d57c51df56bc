"""Which evaluation of a run was the best so far, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pyengine.errors import ConfigError
from pyengine.recipes.schema.recipe import EarlyStop


class Best:
    """Watches one metric of the evaluations; None watches nothing.

    round  of the best so far; None where none was seen
    over   whether there were `patience` evaluations in a row without a better one
    """

    def __init__(self, spec: EarlyStop | None) -> None:
        self._spec = spec
        self._value: float | None = None
        self._without = 0
        self.round: int | None = None

    def see(self, round_number: int, row: Mapping[str, Any]) -> bool:
        """Takes an evaluation's metrics in; True if it is the best so far.

        Raises ConfigError where the metric is not among them.
        """
        if self._spec is None:
            return False
        name = self._spec.metric
        if not isinstance(row.get(name), (int, float)):
            known = ", ".join(sorted(k for k in row if k.startswith("eval/")))
            raise ConfigError(
                f"[early_stop] metric must be one of the evaluation's ({known}) but is {name!r}"
            )
        if not self._spec.better(row[name], self._value):
            self._without += 1
            return False
        self.round, self._value, self._without = round_number, float(row[name]), 0
        return True

    @property
    def over(self) -> bool:
        spec = self._spec
        return spec is not None and spec.patience is not None and self._without >= spec.patience

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes the evaluations among a run's metrics in, each as often as it is on file: once."""
        for row in rows:
            if self._spec is not None and self._spec.metric in row:
                self.see(row["round"], row)
