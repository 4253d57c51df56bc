"""What an update minimises: pure functions of log-probabilities, one paper a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.base import LossInputs, LossOutput, Objective, PairwiseObjective
from pyengine.objectives.dpo import DPO

_REGISTRY: dict[str, type[Any]] = {DPO.name: DPO}


def available() -> list[str]:
    """Names that `get` takes."""
    return sorted(_REGISTRY)


def get(name: str, **options: Any) -> Objective:
    """The objective called `name`, e.g. get("dpo", beta=0.1).

    Raises ConfigError for an unknown name or option.
    """
    if name not in _REGISTRY:
        raise ConfigError(
            f"[objectives] name must be one of {', '.join(available())} but is {name!r}"
        )
    cls = _REGISTRY[name]
    known = {f.name for f in dataclasses.fields(cls)}
    for option in options:
        if option not in known:
            raise ConfigError(
                f"[objectives] {name} has no option {option!r}; it has {', '.join(sorted(known))}"
            )
    objective: Objective = cls(**options)
    return objective


def pairwise_loss(
    name: str,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """(B,) losses of the named objective for summed log-probs, all (B,).

    Differentiable; float64 in gives float64 out.
    Raises ConfigError (name, option), ValueError (shapes, a missing reference).
    """
    objective = get(name, **options)
    if not isinstance(objective, PairwiseObjective):
        raise ConfigError(f"[pairwise_loss] {name} is not a pairwise objective")
    given = {
        "rejected_logps": rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    for label, tensor in given.items():
        if tensor is None:
            if objective.needs_reference:
                raise ValueError(f"[pairwise_loss] {name} needs {label} but it is None")
        elif tensor.shape != chosen_logps.shape:
            raise ValueError(
                f"[pairwise_loss] {label} must have shape {tuple(chosen_logps.shape)} "
                f"like chosen_logps but got {tuple(tensor.shape)}"
            )
    losses, _ = objective.losses(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return losses


__all__ = [
    "DPO",
    "LossInputs",
    "LossOutput",
    "Objective",
    "PairwiseObjective",
    "available",
    "get",
    "pairwise_loss",
]
