"""The one table of tolerances, and the error budget that every kernel is held to.

A tolerance changes only here, with its reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a result may miss by beside twice torch's own error, relative to the largest exact value (at
# least 1): torch sometimes happens to round to the exact value.
ATOL = {
    torch.float64: 1e-15,
    torch.float32: 1e-6,  # 8 units in the last place
    torch.bfloat16: 2.0**-8,  # one rounding to nearest: half a unit in the last place
}

# Central differences of a float64 reference (step 1e-6) against a float32 gradient, relative to the
# sum of its terms' sizes.
FINITE_DIFFERENCE_RTOL = 2e-5

# linear's activations, backward: ulps of the sum of the sizes of a slope's terms. Where e^-z is
# near half an ulp of 1 (z = 16.6), 1 - sigmoid(z) has lost up to that much, which is multiplied by
# 16.6 for the silu gate (8.4 seen, torch's too) and by 34.7 for gelu_tanh (16.2 seen).
ACTIVATION_BACKWARD_ULPS = {"silu_gate": 10.0, "gelu_tanh": 20.0}

# sample adds up f32 exponentials of a vocabulary's blocks, each within 1 ulp, the blocks in f64: a
# word's cumulative probability, absolute; the kept mass and the entropy (at least 1), relative.
CDF_ATOL = 2e-6
KEPT_MASS_RTOL = 3e-6
ENTROPY_RTOL = 2e-6

# The C++ step against the training modules in torch, in the same dtype: log-probs of tokens of the
# tiny models, absolute. Both sum in float32 in orders of their own; in bfloat16 an activation may
# then round to its neighbour, 2^-8 away, layer after layer.
SCORE_ATOL = {torch.float32: 2e-5, torch.bfloat16: 0.3}


def check_budget(ours: Tensor, plain: Tensor, exact: Tensor, what: str = "") -> None:
    """|ours - exact| <= 2 * |plain - exact| + atol; `plain` is torch's, `exact` float64's."""
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)} != {tuple(exact.shape)}"
    assert exact.dtype == torch.float64
    if ours.numel() == 0:
        return
    finite = exact.isfinite()
    same = (ours.double() == exact) | (ours.isnan() & exact.isnan())
    assert bool((same | finite).all()), f"{what}: infinities or NaN differ from the reference"
    if not bool(finite.any()):
        return
    error = (ours.double() - exact)[finite].abs()
    plain_error = (plain.double() - exact)[finite].abs().max()
    scale = exact[finite].abs().max().clamp(min=1.0)
    budget = 2.0 * plain_error + ATOL[ours.dtype] * scale
    assert bool((error <= budget).all()), (
        f"{what}: error {float(error.max()):.3g} is over the budget {float(budget):.3g} "
        f"(torch's own error is {float(plain_error):.3g})"
    )
