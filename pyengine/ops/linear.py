"""linear: products with weights that were packed once for the register tile."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pyengine import _C
from pyengine.errors import ModelFileError
from pyengine.runtime import stream_handle

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


@dataclass(frozen=True)
class StoredRows:
    """A matrix (N, K) that lies in an open file, row behind row, in the machine's byte order.

    path   the file's, for messages
    file   its descriptor, open for reading
    at     the byte where the first row begins
    dtype  torch.float32 or torch.bfloat16
    """

    path: Path
    file: int
    at: int
    dtype: torch.dtype
    shape: tuple[int, int]

    def read(self, row: int) -> bytes:
        """A row. Raises ModelFileError."""
        size, data = self.shape[1] * self.dtype.itemsize, b""
        try:
            data = os.pread(self.file, size, self.at + row * size)
        except OSError as error:
            self.raise_for(error.errno or errno.EIO)
        self.raise_for(0 if len(data) == size else -1)
        return data

    def raise_for(self, error: int) -> None:
        """Raises ModelFileError for what a kernel that read it returned, unless that is 0."""
        if error:
            why = "it has become shorter" if error < 0 else os.strerror(error)
            raise ModelFileError(f"[{self.path}] must stay readable but could not be read: {why}")


Matrix = Tensor | StoredRows


def linear_packed_words(kind: Kind, N: int, K: int) -> int:
    """Size of PackedWeight.data."""
    return int(_C.linear_packed_words(kind, N, K))


def linear_room(
    kind: Kind,
    N: int,
    K: int,
    gated: bool = False,
    memory: Tensor | None = None,
    device: torch.device | None = None,
) -> PackedWeight:
    """Room for a matrix to be packed into, on `device` (default: the CPU, or where `memory` is).

    memory  linear_packed_words int32 words, of which those that only fill up panels become zero;
            words of its own if it is not given
    """
    outputs = -(-N // _PANEL) * _PANEL
    data = memory
    if data is None:
        words = linear_packed_words(kind, N, K)
        data = torch.zeros(words, dtype=torch.int32, device=device)
    elif outputs != N or K % 2:
        data.zero_()
    scale = torch.zeros(outputs, device=data.device) if kind == "int8" else None
    return PackedWeight(data, scale, kind, N, K, gated)


def linear_pack(
    weights: Tensor | Sequence[Matrix],
    kind: Kind,
    gated: bool = False,
    out: PackedWeight | None = None,
) -> PackedWeight:
    """Packs matrices (N_i, K), float32 or bfloat16, one below the other, into one (sum N_i, K).

    gated   the two weights are gate and up of a gated MLP, of equal shape
    out     packed again in place, when the weights have changed; of the same shapes and kind
    Values are rounded to the kind: to nearest even for bfloat16, to 127ths of a row's largest
    magnitude for int8. Stored rows are read a few at a time and never lie in memory as a whole.
    Raises TypeError (dtype) or ValueError (shape, layout, kind), naming the argument, and
    ModelFileError for stored rows that cannot be read: what is in `out` is then undefined.
    """
    parts = [weights] if isinstance(weights, Tensor) else list(weights)
    _check_parts(parts)
    if gated and (len(parts) != 2 or parts[0].shape != parts[1].shape):
        raise ValueError(
            "[linear] a gated pair must be two matrices of one shape "
            f"but has shapes {[tuple(w.shape) for w in parts]}"
        )
    N, K = sum(w.shape[0] for w in parts), parts[0].shape[1]
    if out is None:
        out = linear_room(kind, N, K, gated, device=_device_of(parts))
    else:
        _check_out(out, kind, N, K, gated)
    first = 0
    for weight in parts:
        if isinstance(weight, StoredRows):
            pairs, rows = weight.dtype == torch.bfloat16, weight.shape[0]
            error = _C.linear_pack_file(
                weight.file, weight.at, pairs, rows, out.data, out.scale, kind, N, K, first, gated
            )
            weight.raise_for(error)
        else:
            stream = stream_handle(weight)
            _C.linear_pack(weight.detach(), out.data, out.scale, kind, N, K, first, gated, stream)
        first += 16 if gated else weight.shape[0]
    return out


def linear_pack_columns(
    weights: Tensor | Sequence[Tensor], kind: Kind, out: PackedWeight | None = None
) -> PackedWeight:
    """Packs the transpose of matrices (N_i, K), one below the other: a packed (K, sum N_i).

    What the gradient of `linear` with respect to x is multiplied by. `kind` is "float32" or
    "bfloat16"; for a gated pair the gradient's columns are the gate's, then up's.
    Raises TypeError (dtype) or ValueError (shape, layout, kind), naming the argument.
    """
    parts = [weights] if isinstance(weights, Tensor) else list(weights)
    _check_parts(parts)
    N, K = parts[0].shape[1], sum(w.shape[0] for w in parts)
    if out is None:
        out = linear_room(kind, N, K, device=_device_of(parts))
    else:
        _check_out(out, kind, N, K, gated=False)
    first = 0
    for weight in parts:
        stream = stream_handle(weight)
        _C.linear_pack_columns(weight.detach(), out.data, kind, N, K, first, stream)
        first += weight.shape[0]
    return out


def linear_transpose(weight: PackedWeight, out: PackedWeight | None = None) -> PackedWeight:
    """The transpose of a packed float32 or bfloat16 weight, bit for bit: (K, N) of a (N, K).

    As linear_pack_columns would make it of the values that the weight holds; of a gated pair, the
    gate over up. `out` is written again, of the same shape and kind.
    Raises ValueError (kind, shape), naming the argument.
    """
    kind, N, K = weight.kind, weight.N, weight.K
    if out is None:
        out = linear_room(kind, K, N, device=weight.data.device)
    else:
        _check_out(out, kind, K, N, gated=False)
    stream = stream_handle(weight.data)
    _C.linear_transpose(weight.data, out.data, kind, N, K, weight.gated, stream)
    return out


def _device_of(parts: Sequence[Matrix]) -> torch.device:
    first = parts[0]
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def _check_parts(parts: Sequence[Matrix]) -> None:
    if not parts or any(len(w.shape) != 2 or w.shape[1] != parts[0].shape[1] for w in parts):
        raise ValueError(
            "[linear] weights must be matrices of equal K "
            f"but have shapes {[tuple(w.shape) for w in parts]}"
        )


def _check_out(out: PackedWeight, kind: Kind, N: int, K: int, gated: bool) -> None:
    if (out.N, out.K, out.kind, out.gated) != (N, K, kind, gated):
        raise ValueError(
            f"[linear] out must be a {kind} matrix of shape ({N}, {K}), gated={gated}, "
            f"but is {out.kind} of shape ({out.N}, {out.K}), gated={out.gated}"
        )


def linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    splits: Sequence[int] | None = None,
    kept: Sequence[Tensor] = (),
    out: Tensor | None = None,
) -> Tensor | list[Tensor]:
    """f(x @ weight.T + bias), accumulated in float32; not differentiable (see linear_backward).

    x           (T, K) float32 for a float32 weight, bfloat16 for the others
    bias        (N,) float32
    activation  "silu_gate": silu(gate) * up of a gated weight, (T, N / 2); "gelu_tanh"
    residual    (T, N) float32: the product is added to it in place, and it is returned
    out_dtype   float32 or bfloat16; default: x's
    splits      up to three column counts that add up to N: a tensor for each, as of fused q, k, v
    kept        filled with what the activation takes, for its backward: gate and up, or one tensor;
                (T, columns) float32 or bfloat16
    out         takes the result, (T, columns) float32 or bfloat16, where there is one tensor of it
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
    if out is not None and (residual is not None or splits is not None or out_dtype is not None):
        raise ValueError("[linear] out must come without residual, splits and out_dtype")
    if residual is not None or out is not None:
        ys = [t for t in (residual, out) if t is not None]
    else:
        dtype = x.dtype if out_dtype is None else out_dtype
        ys = [
            torch.empty(x.shape[0], n, dtype=dtype, device=x.device)
            for n in ([columns] if splits is None else splits)
        ]
    epilogue = "add" if residual is not None else activation or "store"
    _C.linear_forward(
        x,
        weight.data,
        weight.scale,
        weight.kind,
        weight.N,
        weight.K,
        bias,
        epilogue,
        ys,
        list(kept),
        stream_handle(x),
    )
    written = [t for t in (*kept, residual, out) if t is not None]
    torch.autograd.graph.increment_version(written)
    return ys[0] if splits is None else ys


def linear_backward(
    dy: Tensor,
    x: Tensor,
    groups: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None = None,
) -> None:
    """Goes on with dweight += dy.T @ x and dbias += dy.sum(0): one chain over tokens an element.

    dy       (T, N) float32 or bfloat16, rounded to x's dtype for dweight
    x        (T, K) float32 or bfloat16
    groups   (G + 1,) int64 rising from 0 to T: rows that are never computed in different calls.
             In bfloat16 tokens are multiplied in pairs, and each group starts a pair
    dweight  (N, K) float32, or None
    dbias    (N,) float32, or None
    Splitting groups over several calls, in order, gives the same bits; so does any thread count.
    Raises TypeError (dtype) or ValueError (shape, layout, device, groups), naming the argument.
    """
    if dy.dim() != 2 or x.dim() != 2 or groups.dim() != 1:
        raise ValueError(
            "[linear] dy, x and groups must have 2, 2 and 1 dimensions but have shapes "
            f"{tuple(dy.shape)}, {tuple(x.shape)} and {tuple(groups.shape)}"
        )
    size = _C.linear_backward_workspace_bytes(
        x.shape[0],
        dy.shape[1],
        x.shape[1],
        max(len(groups) - 1, 0),
        x.dtype == torch.bfloat16,
        x.is_cuda,
    )
    workspace = torch.empty(-(-size // 4), device=x.device)
    _C.linear_backward(dy, x, groups, dweight, dbias, workspace, stream_handle(x))
    for buffer in (dweight, dbias):
        if buffer is not None:
            torch.autograd.graph.increment_version(buffer)


def linear_activation_backward(
    dy: Tensor,
    kept: Sequence[Tensor],
    out_dtype: torch.dtype | None = None,
    again: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to what the activation of `linear` took.

    dy     (T, N) float32 or bfloat16: gradient of the activated values
    kept   as filled by `linear`: gate and up for "silu_gate", one tensor for "gelu_tanh"
    again  (T, N) of kept's dtype, to be filled with the activated values: in float32 they have the
           bits that `linear` gave; in bfloat16 they are made of rounded values, as those were not
    Returns (T, 2 N), gate's columns first, or (T, N), in `out_dtype` (default: dy's).
    Raises TypeError (dtype) or ValueError (shape, layout, device), naming the argument.
    """
    if len(kept) not in (1, 2):
        raise ValueError(f"[linear] kept must be one or two tensors but is {len(kept)}")
    second = kept[1] if len(kept) == 2 else None
    columns = dy.shape[-1] * len(kept)
    dtype = dy.dtype if out_dtype is None else out_dtype
    dx = torch.empty(*dy.shape[:-1], columns, dtype=dtype, device=dy.device)
    _C.linear_activation_backward(dy, kept[0], second, dx, again, stream_handle(dy))
    if again is not None:
        torch.autograd.graph.increment_version(again)
    return dx
