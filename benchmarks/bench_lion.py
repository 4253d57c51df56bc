"""A whole model's Lion step, clipping included, beside AdamW's of ours.

Bytes are those that the algorithm must move: 4 a weight for the norm, then param, grad and the
moment are read and two of them written: 4 + 20. torch has no Lion; AdamW moves 4 + 28.
"""

from __future__ import annotations

import torch
from bench_adamw import DTYPES, SHAPES, Shape, make
from measuring import Measure
from reference.lion import lion as reference

from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.optim import AdamW, Lion

__all__ = ["DTYPES", "SHAPES"]

PROVIDERS = ("pyengine", "pyengine-adamw")
RATE, LIMIT = 1e-4, 1.0


def test_step(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    rule = Lion(RATE) if provider == "pyengine" else AdamW(RATE)
    config = OptimizerConfig(rule, max_grad_norm=LIMIT)
    if provider == "pyengine":
        small = make(Shape(1, 128))
        before = {name: p.detach().clone() for name, p in small.items()}
        norm = Optimizer(small, config).step()["grad_norm"]
        for name, p in small.items():
            expected, _ = reference(
                before[name], p.grad, torch.zeros_like(p.grad),
                lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, grad_scale=LIMIT / norm,
            )  # fmt: skip
            torch.testing.assert_close(p.detach(), expected)
    parameters = make(shape)
    weights = sum(p.nbytes for p in parameters.values())
    moments = sum(rule.state_bytes(p.numel()) for p in parameters.values())
    measure(
        Optimizer(parameters, config).step,
        **{"job": "lion step", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=4 * weights + 2 * moments,
    )
