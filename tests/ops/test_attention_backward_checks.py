"""What attention_backward refuses: one message each, and nothing is written."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import pyengine as pe
from pyengine import _C

BF16 = torch.bfloat16


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def wrong(name: str, dtype: torch.dtype, text: str, expected: str) -> tuple[Any, ...]:
    shapes = {"lse": (20, 6), "k": (20, 2, 8), "v": (20, 2, 8), "dk": (20, 2, 8), "dv": (20, 2, 8)}
    shapes |= {"cu_seqlens": (4,), "prefix_begin": (3,), "prefix_rows": (3,), "workspace": (9999,)}
    tensor = torch.zeros(shapes.get(name, (20, 6, 8)), dtype=dtype)
    return (
        {name: tensor},
        TypeError,
        f"[attention_backward] {name} must be {expected} but is {text}",
    )


def misshapen(name: str, tensor: Tensor, what: str) -> tuple[Any, ...]:
    return {name: tensor}, ValueError, f"[attention_backward] {name} must {what}"


EITHER = "float32 or bfloat16"
BAD: list[tuple[Any, ...]] = [
    ({"q": None}, TypeError, "[attention_backward] q must be a torch.Tensor but is NoneType"),
    *(wrong(name, torch.float64, "float64", EITHER) for name in ("q", "dout", "dq", "dk", "dv")),
    *(wrong(name, BF16, "bfloat16", "float32") for name in ("k", "v", "out", "lse", "workspace")),
    *(wrong(name, torch.int64, "int64", "int32")
      for name in ("cu_seqlens", "prefix_begin", "prefix_rows")),
    misshapen("q", torch.zeros(20, 48), "have shape (T, H, hd) but got (20, 48)"),
    misshapen("k", torch.zeros(20, 16), "have shape (T, K, hd) but got (20, 16)"),
    misshapen("q", torch.zeros(20, 6, 257),
              "have a head_dim from 1 to 256 but got shape (20, 6, 257)"),
    misshapen("q", torch.zeros(20, 5, 8),
              "have a multiple of the 2 heads of k but got shape (20, 5, 8)"),
    misshapen("q", torch.zeros(20, 0, 8), "have a multiple of the 2 heads of k"),
    ({"k": torch.zeros(20, 0, 8)}, ValueError,
     "[attention_backward] q must have a multiple of the 0 heads of k"),
    *(misshapen(name, torch.zeros(19, 2, 8),
                "have shape (T, K, hd) = (20, 2, 8) but got (19, 2, 8)")
      for name in ("k", "v", "dk", "dv")),
    *(misshapen(name, torch.zeros(20, 6, 7),
                "have shape (T, H, hd) = (20, 6, 8) but got (20, 6, 7)")
      for name in ("out", "dout", "dq")),
    *(misshapen(name, torch.zeros(20, 6, 9)[:, :, :8],
                "have contiguous heads but its strides are (54, 9, 1)")
      for name in ("q", "out", "dout", "dq")),
    misshapen("lse", torch.zeros(20, 2), "have shape (T, H) = (20, 6) but got (20, 2)"),
    misshapen("lse", torch.zeros(6, 20).T,
              "have a contiguous last dimension but its stride is 20"),
    misshapen("prefix_rows", torch.zeros(3, 1).int(), "have shape (S,) but got (3, 1)"),
    misshapen("prefix_begin", ints(0, 0), "have shape (S,) = (3,) but got (2,)"),
    misshapen("cu_seqlens", ints(0, 10, 20), "have shape (S + 1,) = (4,) but got (3,)"),
    misshapen("prefix_begin", torch.zeros(6).int()[::2], "be contiguous but its stride is 2"),
    ({"scale": float("inf")}, ValueError,
     "[attention_backward] scale must be finite but is inf"),
    misshapen("workspace", torch.zeros(7, 7), "have shape (bytes,) but got (7, 7)"),
    misshapen("cu_seqlens", ints(1, 10, 15, 20), "start with 0 but with 1"),
    misshapen("cu_seqlens", ints(0, 10, 15, 19), "end with the rows of q, 20, but with 19"),
    misshapen("cu_seqlens", ints(0, 10, 9, 20),
              "not decrease but cu_seqlens[2] = 9 follows 10"),
    misshapen("prefix_rows", ints(10, 10, 10),
              "start with 0, for a prompt, but prefix_rows[0] = 10"),
    misshapen("prefix_rows", ints(0, 10, 9),
              "be 0 or the 10 rows of the prompt, sequence 0, but prefix_rows[2] = 9"),
    misshapen("prefix_rows", ints(0, 0, 10),
              "be 0 or the 5 rows of the prompt, sequence 1, but prefix_rows[2] = 10"),
    misshapen("prefix_begin", ints(0, 0, 3),
              "be the first row of the prompt, sequence 0, 0, but prefix_begin[2] = 3"),
]  # fmt: skip


def good() -> dict[str, Any]:
    """One tree: a prompt of ten rows and two responses of five."""
    args: dict[str, Any] = {name: torch.zeros(20, 6, 8) for name in ("dout", "q", "out")}
    args |= {name: torch.zeros(20, 2, 8) for name in ("k", "v")}
    args |= {name: torch.full((20, 2, 8), 7.0) for name in ("dk", "dv")}
    args |= {"dq": torch.full((20, 6, 8), 7.0), "lse": torch.zeros(20, 6), "scale": None}
    args |= {"cu_seqlens": ints(0, 10, 15, 20), "prefix_begin": ints(0, 0, 0)}
    return args | {"prefix_rows": ints(0, 10, 10), "workspace": workspace(3)}


def workspace(threads: int) -> Tensor:
    """For these shapes."""
    before = pe.get_num_threads()
    pe.set_num_threads(threads)
    size = _C.attention_backward_workspace_bytes(20, 3, 6, 2, 8)
    pe.set_num_threads(before)
    return torch.empty(size // 4)


def test_good_arguments_pass(reading: str) -> None:
    args = good()
    _C.attention_backward(**args)
    assert not any(bool(args[name].any()) for name in ("dq", "dk", "dv"))


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_checks(change: dict[str, Any], error: type[Exception], message: str, reading: str) -> None:
    args = {**good(), **change}
    with pytest.raises(error, match=re.escape(message)):
        _C.attention_backward(**args)
    assert all(bool((args[n] == 7.0).all()) for n in ("dq", "dk", "dv") if n not in change)


@pytest.mark.parametrize("name", ["q", "k"])
def test_the_op_names_what_it_cannot_size(name: str) -> None:
    args = good()
    for own in ("dq", "dk", "dv", "workspace"):
        del args[own]
    args[name] = torch.zeros(20, 48)
    message = f"[attention_backward] {name} must have 3 dimensions but got shape (20, 48)"
    with pytest.raises(ValueError, match=re.escape(message)):
        pe.ops.attention_backward(**args)


def test_workspace_of_fewer_threads(restore_threads: None) -> None:
    """It is used by as many as it has room for, and by one at least."""
    args = good()
    pe.set_num_threads(2)
    _C.attention_backward(**{**args, "workspace": workspace(1)})
    size = 4 * workspace(1).numel()
    message = f"[attention_backward] workspace must have {size} bytes but has {size - 4}"
    with pytest.raises(ValueError, match=re.escape(message)):
        _C.attention_backward(**{**args, "workspace": workspace(1)[1:]})
