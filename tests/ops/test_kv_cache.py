"""kv_cache against its reference, bit for bit: every element of the pool, written or not."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from reference.kv_cache import gather
from reference.kv_cache import kv_cache as reference
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops.kv_cache import kv_elements_per_page

F32, BF16 = torch.float32, torch.bfloat16
PAGES = 5


def make(
    T: int = 20,
    K: int = 2,
    head_dim: int = 40,
    page_tokens: int = 16,
    dtype: torch.dtype = F32,
    pages: torch.dtype = BF16,
    seed: int = 0,
) -> dict[str, Any]:
    """Tokens in order from the middle of a page on; the pages hold an earlier owner's numbers."""
    rng = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(T, K, head_dim, generator=rng).to(dtype) for _ in range(2))
    pool = torch.randn(
        PAGES, 2, 2, kv_elements_per_page(K, head_dim, page_tokens), generator=rng
    ).to(pages)
    order = torch.randperm(PAGES, generator=rng)
    positions = torch.arange(T) + 7
    slots = order[positions // page_tokens] * page_tokens + positions % page_tokens
    return {
        **{"k": k, "v": v, "keys": pool[:, 1, 0], "values": pool[:, 1, 1], "slots": slots},
        "page_tokens": page_tokens,
    }


def check(args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    want = {**args, "keys": args["keys"].clone(), "values": args["values"].clone()}
    reference(**want)
    assert not torch.equal(want["keys"], args["keys"]) or args["k"].numel() == 0
    pe.ops.kv_cache(**args)
    assert torch.equal(args["keys"], want["keys"])
    assert torch.equal(args["values"], want["values"])
    return args["keys"], args["values"]


@pytest.mark.parametrize("T", [0, 1, 2, 3, 31, 32, 33])
@pytest.mark.parametrize("pages", [F32, BF16], ids=["f32", "bf16"])
def test_rows(T: int, pages: torch.dtype, isa: str) -> None:
    check(make(T, pages=pages))


@pytest.mark.parametrize("head_dim", [1, 2, 15, 16, 17, 64, 80, 255, 256])
@pytest.mark.parametrize("pages", [F32, BF16], ids=["f32", "bf16"])
def test_head_dims(head_dim: int, pages: torch.dtype, isa: str) -> None:
    check(make(head_dim=head_dim, pages=pages))


@pytest.mark.parametrize("page_tokens", [16, 32, 64])
@pytest.mark.parametrize("dtypes", list(itertools.product((F32, BF16), repeat=2)), ids=str)
def test_page_sizes_and_dtypes(page_tokens: int, dtypes: tuple[torch.dtype, ...]) -> None:
    check(make(page_tokens=page_tokens, dtype=dtypes[0], pages=dtypes[1]))


def test_k_and_v_of_different_dtypes() -> None:
    for name in ("k", "v"):
        args = make(pages=F32)
        check({**args, name: args[name].to(BF16)})


def test_only_the_slots_change() -> None:
    """A pool of two layers: the other layer and the other pages keep their bits."""
    args = make(T=5)
    pool = args["keys"]._base
    before = pool.clone()
    check(args)
    assert torch.equal(pool[:, 0], before[:, 0])
    touched = sorted({slot // 16 for slot in args["slots"].tolist()})
    others = [p for p in range(PAGES) if p not in touched]
    assert torch.equal(pool[others], before[others])


def test_value_by_hand() -> None:
    """One head of two numbers, token at slot 3: pair 1, odd; keys are pairs along head_dim."""
    keys, values = (torch.full((1, 16 * 16), 9.0, dtype=BF16) for _ in range(2))
    k, v = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0]]])
    pe.ops.kv_cache(k, v, keys, values, torch.tensor([3]), page_tokens=16)
    tile = keys.view(8, 16, 2)  # [hd/2][page_tokens][2]
    assert tile[0, 3].tolist() == [1.0, 2.0]
    assert tile[1:, 3].tolist() == [[0.0, 0.0]] * 7
    assert int((tile == 9.0).sum()) == 16 * 16 - 16
    tile = values.view(8, 16, 2)  # [page_tokens/2][hd][2]
    assert tile[1, :2, 1].tolist() == [3.0, 4.0]
    assert tile[1, 2:, 1].tolist() == [0.0] * 14
    assert int((tile == 9.0).sum()) == 16 * 16 - 16  # the even partner among them


def test_an_even_slot_clears_its_odd_partner() -> None:
    args = make(T=1)
    args["slots"] = torch.tensor([2 * 16 + 4])
    args["values"].fill_(float("nan"))
    check_values = args["values"].view(PAGES, 2, 8, 48, 2)
    pe.ops.kv_cache(**args)
    assert check_values[2, :, 2, :40, 0].isfinite().all()
    assert (check_values[2, :, 2, :, 1] == 0.0).all()
    assert check_values[2, :, 3].isnan().all()


def test_token_by_token_equals_all_at_once(isa: str) -> None:
    args = make(T=37, page_tokens=16)
    one, many = dict(args), dict(args)
    for name in ("keys", "values"):
        many[name] = args[name].clone()
    pe.ops.kv_cache(**many)
    for t in range(37):
        row = slice(t, t + 1)
        pe.ops.kv_cache(**{**one, **{name: args[name][row] for name in ("k", "v", "slots")}})
    assert torch.equal(one["keys"], many["keys"])
    assert torch.equal(one["values"], many["values"])


@pytest.mark.parametrize("T", [8, 9, 37])
def test_threads_change_nothing(T: int, restore_threads: None) -> None:
    """Tasks are of 8 rows: pairs of tokens lie on both sides of a cut."""
    for shift in (0, 1):
        results = []
        for threads in (1, 2, 3):
            pe.set_num_threads(threads)
            args = make(T)
            args["slots"] = torch.arange(T) + 16 + shift
            results.append(check(args))
        for keys, values in results[1:]:
            assert torch.equal(keys, results[0][0])
            assert torch.equal(values, results[0][1])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_strided_rows(dtype: torch.dtype) -> None:
    """k and v as parts of one fused projection."""
    args = make(dtype=dtype)
    fused = torch.cat([args["k"], args["v"]], 1)
    check({**args, "k": fused[:, :2], "v": fused[:, 2:]})


def test_gather_reads_back_what_was_written() -> None:
    args = make(T=32, pages=F32, head_dim=17)
    args["slots"] = torch.tensor([3, 1]).repeat_interleave(16) * 16 + torch.arange(16).repeat(2)
    pe.ops.kv_cache(**args)
    k, v = gather(args["keys"], args["values"], torch.tensor([3, 1]), 30, 2, 17, 16)
    assert torch.equal(k, args["k"][:30])
    assert torch.equal(v, args["v"][:30])


def test_version_counts_the_write() -> None:
    args = make()
    before = args["keys"]._version
    pe.ops.kv_cache(**args)
    assert args["keys"]._version > before


def test_elements_per_page() -> None:
    assert kv_elements_per_page(3, 64, 32) == 3 * 64 * 32
    assert kv_elements_per_page(3, 65, 16) == 3 * 80 * 16


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(make())


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": 3.0}, TypeError, "[kv_cache] k must be a torch.Tensor but is float"),
    ({"k": torch.zeros(20, 2, 40).double()}, TypeError,
     "[kv_cache] k must be float32 or bfloat16 but is float64"),
    ({"v": torch.zeros(20, 2, 40).int()}, TypeError,
     "[kv_cache] v must be float32 or bfloat16 but is int32"),
    ({"slots": torch.arange(20).int()}, TypeError, "[kv_cache] slots must be int64 but is int32"),
    ({"keys": torch.zeros(5, 1536).int()}, TypeError,
     "[kv_cache] keys must be float32 or bfloat16 but is int32"),
    ({"values": torch.zeros(5, 1536)}, TypeError,
     "[kv_cache] values must be bfloat16 but is float32"),
    ({"k": torch.zeros(20, 80)}, ValueError,
     "[kv_cache] k must have shape (T, K, hd) but got (20, 80)"),
    ({"k": torch.zeros(20, 2, 257)}, ValueError,
     "[kv_cache] k must have a head_dim from 1 to 256 but got shape (20, 2, 257)"),
    ({"k": torch.zeros(20, 0, 40)}, ValueError, "[kv_cache] k must have K >= 1"),
    ({"v": torch.zeros(20, 3, 40)}, ValueError,
     "[kv_cache] v must have shape (T, K, hd) = (20, 2, 40) but got (20, 3, 40)"),
    ({"k": torch.zeros(20, 2, 80)[:, :, ::2]}, ValueError,
     "[kv_cache] k must have contiguous heads but its strides are (160, 80, 2)"),
    ({"v": torch.zeros(20, 2, 48)[:, :, :40]}, ValueError,
     "[kv_cache] v must have contiguous heads but its strides are (96, 48, 1)"),
    ({"slots": torch.arange(19)}, ValueError,
     "[kv_cache] slots must have shape (T,) = (20,) but got (19,)"),
    ({"keys": torch.zeros(1536, dtype=BF16)}, ValueError,
     "[kv_cache] keys must have shape (P, E) but got (1536,)"),
    ({"keys": torch.zeros(5, 1537, dtype=BF16)}, ValueError,
     "[kv_cache] keys must have shape (P, E) with E = 1536 for 2 heads of 40 and pages of 16 "
     "tokens but got (5, 1537)"),
    ({"keys": torch.zeros(5, 3072, dtype=BF16)[:, ::2]}, ValueError,
     "[kv_cache] keys must have a contiguous last dimension but its stride is 2"),
    ({"keys": torch.zeros(1, 1536, dtype=BF16).expand(5, -1)}, ValueError,
     "[kv_cache] keys must have pages that do not overlap but its stride is 0"),
    ({"values": torch.zeros(4, 1536, dtype=BF16)}, ValueError,
     "[kv_cache] values must have shape (P, E) = (5, 1536) but got (4, 1536)"),
    ({"page_tokens": 48}, ValueError, "[kv_cache] page_tokens must be 16, 32 or 64 but is 48"),
    ({"slots": torch.arange(20) - 1}, ValueError,
     "[kv_cache] slots must be in [0, 80) but slots[0] = -1"),
    ({"slots": torch.arange(20) + 61}, ValueError,
     "[kv_cache] slots must be in [0, 80) but slots[19] = 80"),
    ({"slots": torch.tensor([*range(19), 3])}, ValueError,
     "[kv_cache] slots must be different, with slots 2i and 2i + 1 in neighbouring rows in that "
     "order, but slots 2 and 3 are not"),
    ({"slots": torch.arange(20).flip(0)}, ValueError, "but slots 0 and 1 are not"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_checks(change: dict[str, Any], error: type[Exception], message: str, reading: str) -> None:
    args = make()
    before = args["keys"].clone()
    with pytest.raises(error, match=re.escape(message)):
        _C.kv_cache_write(**{**args, **change})
    assert torch.equal(args["keys"], before)


def test_gradients_are_refused() -> None:
    args = make()
    args["k"].requires_grad_()
    with pytest.raises(ValueError, match=r"\[kv_cache\] k must not require a gradient"):
        pe.ops.kv_cache(**args)
    with torch.no_grad():
        check({**args, "k": args["k"].detach()})


@pytest.mark.parametrize("args", [(0, 8, 16), (1, 0, 16), (1, 257, 16), (1, 8, 8)])
def test_elements_per_page_checks(args: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"\[kv_cache\] (num_kv_heads|page_tokens) must"):
        kv_elements_per_page(*args)


# On a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("T", [0, 1, 33, 70])
@pytest.mark.parametrize("page_tokens", [16, 64])
@pytest.mark.parametrize("dtypes", list(itertools.product((F32, BF16), repeat=2)), ids=str)
def test_a_gpu_writes_the_same_bits(
    T: int, page_tokens: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    args = make(T, page_tokens=page_tokens, dtype=dtypes[0], pages=dtypes[1])
    there = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in args.items()}
    pe.ops.kv_cache(**there)
    pe.ops.kv_cache(**args)
    assert torch.equal(there["keys"].cpu(), args["keys"])
    assert torch.equal(there["values"].cpu(), args["values"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["v", "keys", "values", "slots"])
def test_all_on_one_device(name: str) -> None:
    args = make()
    message = rf"\[kv_cache\] {name} must be on cpu like k but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        pe.ops.kv_cache(**(args | {name: args[name].cuda()}))
