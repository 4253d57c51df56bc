"""linear: products with weights that were packed once for the register tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyengine import _C

Kind = Literal["float32", "bfloat16", "int8"]
Activation = Literal["silu_gate", "gelu_tanh"]

_PANEL = 32  # kPanel in csrc/include/pyengine/packed.h


@dataclass(frozen=True)
class PackedWeight:
    """A matrix (N, K) in the kernel's layout: csrc/include/pyengine/packed.h.

    data   opaque words, int32
    scale  (N rounded up,) float32 of "int8", else None
    kind   "float32", "bfloat16", or "int8": symmetric, one scale an output
    gated  whether it is a gate and an up projection, interleaved; N counts both
    """

    data: Tensor
    scale: Tensor | None
    kind: Kind
    N: int
    K: int
    gated: bool = False

    @property
    def num_bytes(self) -> int:
        """Memory that the kernel reads for one pass over the weight."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def linear_pack(
    weights: Tensor | Sequence[Tensor],
    kind: Kind,
    gated: bool = False,
    out: PackedWeight | None = None,
) -> PackedWeight:
    """Packs matrices (N_i, K), float32 or bfloat16, one below the other, into one (sum N_i, K).

    gated  the two weights are gate and up of a gated MLP, of equal shape
    out    packed again in place, when the weights have changed; of the same shapes and kind
    Values are rounded to the kind: to nearest even for bfloat16, to 127ths of a row's largest
    magnitude for int8.
    Raises TypeError (dtype) or ValueError (shape, layout, kind), naming the argument.
    """
    parts = [weights] if isinstance(weights, Tensor) else list(weights)
    if not parts or any(w.dim() != 2 or w.shape[1] != parts[0].shape[1] for w in parts):
        raise ValueError(
            "[linear] weights must be matrices of equal K "
            f"but have shapes {[tuple(w.shape) for w in parts]}"
        )
    if gated and (len(parts) != 2 or parts[0].shape != parts[1].shape):
        raise ValueError(
            "[linear] a gated pair must be two matrices of one shape "
            f"but has shapes {[tuple(w.shape) for w in parts]}"
        )
    N, K = sum(w.shape[0] for w in parts), parts[0].shape[1]
    if out is None:
        words = _C.linear_packed_words(kind, N, K)
        data = torch.zeros(words, dtype=torch.int32)
        outputs = -(-N // _PANEL) * _PANEL
        scale = torch.zeros(outputs) if kind == "int8" else None
        out = PackedWeight(data, scale, kind, N, K, gated)
    elif (out.N, out.K, out.kind, out.gated) != (N, K, kind, gated):
        raise ValueError(
            f"[linear] out must be a {kind} matrix of shape ({N}, {K}), gated={gated}, "
            f"but is {out.kind} of shape ({out.N}, {out.K}), gated={out.gated}"
        )
    first = 0
    for weight in parts:
        _C.linear_pack(weight.detach(), out.data, out.scale, kind, N, K, first, gated)
        first += 16 if gated else weight.shape[0]
    return out


def linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    splits: Sequence[int] | None = None,
) -> Tensor | list[Tensor]:
    """f(x @ weight.T + bias), accumulated in float32; not differentiable.

    x           (T, K) float32 for a float32 weight, bfloat16 for the others
    bias        (N,) float32
    activation  "silu_gate": silu(gate) * up of a gated weight, (T, N / 2); "gelu_tanh"
    residual    (T, N) float32: the product is added to it in place, and it is returned
    out_dtype   float32 or bfloat16; default: x's
    splits      up to three column counts that add up to N: a tensor for each, as of fused q, k, v
    A row's values depend on nothing but that row and the weight: not on T, nor on the threads.
    Raises TypeError (dtype) or ValueError (shape, layout, device), naming the argument.
    Source: the silu gate is arXiv:2002.05202.
    """
    if weight.gated != (activation == "silu_gate"):
        raise ValueError(
            f"[linear] activation 'silu_gate' is of gated weights but the weight has gated="
            f"{weight.gated} and activation is {activation!r}"
        )
    if residual is not None and (activation is not None or splits is not None):
        raise ValueError("[linear] residual must come without activation and splits")
    columns = weight.N // 2 if weight.gated else weight.N
    if residual is not None:
        ys = [residual]
    else:
        dtype = x.dtype if out_dtype is None else out_dtype
        ys = [
            torch.empty(x.shape[0], n, dtype=dtype)
            for n in ([columns] if splits is None else splits)
        ]
    epilogue = "add" if residual is not None else activation or "store"
    _C.linear_forward(
        x, weight.data, weight.scale, weight.kind, weight.N, weight.K, bias, epilogue, ys
    )
    if residual is not None:
        torch.autograd.graph.increment_version(residual)
    return ys[0] if splits is None else ys
