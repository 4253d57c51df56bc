"""Objectives as plain functions of tensors, without the engine: the same formulas and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.available import OBJECTIVES, get
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import (
    PairwiseObjective,
    PointwiseObjective,
    SequenceObjective,
)
from pyengine.objectives.lists.listwise import ListwiseObjective, plain_losses
from pyengine.objectives.tokens.token_level import TokenObjective, plain_loss


def pairwise_loss(
    name: str,
    chosen_logps: Any,
    rejected_logps: Any,
    ref_chosen_logps: Any = None,
    ref_rejected_logps: Any = None,
    **options: Any,
) -> Tensor:
    """(B,) losses of the named pairwise objective; of the whole batch, (), where it is scalar.

    All log-probs are sums over a response's tokens, (B,) tensors or arrays. The objective's further
    inputs and its hyperparameters are keywords. Differentiable in the log-probs under the policy.
    float64 gives float64; float32 on the CPU is computed by the fused kernel.
    Raises ConfigError (name, option), ValueError (shapes, a missing input).
    """
    given = {
        "chosen_logps": chosen_logps,
        "rejected_logps": rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    return _loss("pairwise_loss", PairwiseObjective, name, given, options)


def pointwise_loss(name: str, logps: Any, ref_logps: Any = None, **options: Any) -> Tensor:
    """(B,) losses of the named pointwise objective, as `pairwise_loss`."""
    given = {"logps": logps, "ref_logps": ref_logps}
    return _loss("pointwise_loss", PointwiseObjective, name, given, options)


def listwise_loss(name: str, scores: Any, **options: Any) -> Tensor:
    """(G,) losses of the named listwise objective, differentiable in scores (G, K).

    Scores are beta times log-ratios of policy and reference, so beta is no option here. What else
    the objective takes, "relevance", "rewards" or "order" (G, K), and its hyperparameters are
    keywords. float64 gives float64; float32 on the CPU is computed by the fused kernel.
    Raises ConfigError (name, option), ValueError (shapes, values, a missing input).
    """
    cls = OBJECTIVES.class_of(name)
    if not issubclass(cls, ListwiseObjective):
        raise ConfigError(f"[listwise_loss] {name} is not a listwise objective")
    if "beta" in options:
        raise ConfigError("[listwise_loss] scores must hold beta already, it is no option here")
    given = {cls.needs: options.pop(cls.needs, None)}
    objective = get(name, **options)
    assert isinstance(objective, ListwiseObjective)
    return plain_losses(objective, scores, given)


def token_loss(
    name: str,
    token_logps: Any,
    old_token_logps: Any,
    ref_token_logps: Any,
    advantages: Any,
    mask: Any,
    **options: Any,
) -> Tensor:
    """() loss of the named token-level objective, differentiable in token_logps (B, T).

    old_token_logps  (B, T) under the model that sampled; None where the objective takes none
    ref_token_logps  (B, T) under the reference; None where the objective takes none
    advantages       (B,), or (B, T) where they differ between tokens
    mask             (B, T) 1 on response tokens; what the others hold does not matter
    Hyperparameters are keywords. float64 gives float64; float32 on the CPU is computed by the fused
    kernel.
    Raises ConfigError (name, option), ValueError (shapes, a missing input).
    """
    cls = OBJECTIVES.class_of(name)
    if not issubclass(cls, TokenObjective):
        raise ConfigError(f"[token_loss] {name} is not a token-level objective")
    for option in cls.engine_only:
        if option in options:
            raise ConfigError(f"[token_loss] advantages are given, {option} is no option here")
    objective = get(name, **options)
    assert isinstance(objective, TokenObjective)
    given = {
        "token_logps": token_logps,
        "old_token_logps": old_token_logps,
        "ref_token_logps": ref_token_logps,
        "advantages": advantages,
        "mask": mask,
    }
    return plain_loss(objective, given)


def _loss(
    who: str,
    kind: type[SequenceObjective],
    name: str,
    given: dict[str, Any],
    options: dict[str, Any],
) -> Tensor:
    cls = OBJECTIVES.class_of(name)
    if not issubclass(cls, kind):
        word = "pairwise" if kind is PairwiseObjective else "pointwise"
        raise ConfigError(f"[{who}] {name} is not a {word} objective")
    further = [key for op in cls.operands for key in (_policy(op), _reference(op, cls))]
    for key in (*further, *cls.inputs):
        if key in options:
            given[key] = options.pop(key)
    objective = get(name, **options)
    assert isinstance(objective, SequenceObjective)
    first = torch.as_tensor(given[_policy(cls.operands[0])])
    tensors = _checked(who, objective, first, given)
    x = Examples(
        {op: tensors[_policy(op)] for op in cls.operands},
        {op: tensors.get(_reference(op, objective)) for op in cls.operands},
        {key: tensors.get(key, default) for key, default in cls.inputs.items()},
    )
    losses = objective.per_example(x)
    if not objective.scalar:
        return losses
    return objective.reduce(losses, torch.ones_like(losses), float(len(losses)))


def _policy(operand: str) -> str:
    return "logps" if operand == "response" else f"{operand}_logps"


def _reference(operand: str, objective: SequenceObjective | type[SequenceObjective]) -> str:
    """The keyword of an operand's reference; empty where it has none."""
    if not objective.needs_reference or operand in objective.plain:
        return ""
    return f"ref_{_policy(operand)}"


def _checked(
    who: str, objective: SequenceObjective, first: Tensor, given: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What was given, as tensors like the first; numbers stay numbers."""
    if first.dim() != 1 or not first.is_floating_point():
        raise ValueError(
            f"[{who}] log-probs must be floating point of shape (B,) "
            f"but are {first.dtype} of shape {tuple(first.shape)}"
        )
    needed = [_policy(op) for op in objective.operands]
    needed += [r for op in objective.operands if (r := _reference(op, objective))]
    needed += [key for key, default in objective.inputs.items() if default is None]
    for key in needed:
        if given.get(key) is None:
            raise ValueError(f"[{who}] {objective.name} needs {key} but it is None")
    wanted = {*needed, *objective.inputs}
    tensors: dict[str, Any] = {}
    for key, value in given.items():
        if value is None or key not in wanted:
            continue
        if isinstance(value, (int, float)) and key in objective.inputs:
            tensors[key] = float(value)
            continue
        tensor = torch.as_tensor(value, dtype=first.dtype, device=first.device)
        if tensor.shape != first.shape:
            raise ValueError(
                f"[{who}] {key} must have shape {tuple(first.shape)} "
                f"like {needed[0]} but got {tuple(tensor.shape)}"
            )
        tensors[key] = tensor
    return tensors
