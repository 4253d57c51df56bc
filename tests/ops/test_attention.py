"""attention against its float64 reference, and the promise that a row's bits are its own."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paged_sequences import PagedSequences, Tokens, random_tokens
from reference.attention import attend, log_sum_exp
from reference.attention import attention as reference
from reference.kv_cache import gather
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

F32, BF16 = torch.float32, torch.bfloat16
BOTH = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
LENGTHS = (1, 2, 63, 64, 65, 128, 200)
Part = tuple[int, int, int]


def whole(sequences: Sequence[Tokens]) -> list[Part]:
    return [(s, 0, len(tokens)) for s, tokens in enumerate(sequences)]


def sdpa(pool: PagedSequences, parts: Sequence[Part], scale: float) -> Tensor:
    """torch's own attention in the pages' dtype, one sequence at a time."""
    out = []
    for s, begin, end in parts:
        tokens = pool.sequences[s]
        q = tokens.q[begin:end].to(pool.keys.dtype)
        head_dim = q.shape[2]
        k, v = gather(
            pool.keys, pool.values, pool.tables[s], end, pool.num_kv_heads, head_dim,
            pool.page_tokens,
        )  # fmt: skip
        G = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(G, 1).transpose(0, 1) for x in (k, v))
        seen = torch.arange(end)[None, :] <= torch.arange(begin, end)[:, None]
        out.append(
            F.scaled_dot_product_attention(q.transpose(0, 1), k, v, seen, scale=scale).transpose(
                0, 1
            )
        )
    return torch.cat(out)


def check(
    pool: PagedSequences,
    parts: Sequence[Part],
    scale: float | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    got = pool.attend(parts, scale, out_dtype)
    args = pool.queries(parts)
    scale = args["q"].shape[2] ** -0.5 if scale is None else scale
    exact = reference(
        **args, num_kv_heads=pool.num_kv_heads, page_tokens=pool.page_tokens, scale=scale
    )
    assert got.dtype == (out_dtype or args["q"].dtype)
    check_budget(got, sdpa(pool, parts, scale).to(got.dtype), exact)
    return got


@pytest.mark.parametrize("length", LENGTHS)
@BOTH
def test_prefill(length: int, dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(length, dtype=dtype)]
    check(PagedSequences(sequences, dtype=dtype).write_all(), whole(sequences))


@BOTH
def test_decode(dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(n, dtype=dtype, seed=n) for n in LENGTHS]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    check(pool, [(s, len(tokens) - 1, len(tokens)) for s, tokens in enumerate(sequences)])


@pytest.mark.parametrize("G", [1, 3, 8, 13])
@pytest.mark.parametrize("K", [1, 3])
@BOTH
def test_grouped_heads(K: int, G: int, dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(n, K=K, G=G, head_dim=32) for n in (1, 70)]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    check(pool, whole(sequences))
    check(pool, [(1, 69, 70), (0, 0, 1)])


@pytest.mark.parametrize("head_dim", [1, 8, 16, 17, 48, 64, 80, 128, 255, 256])
@BOTH
def test_head_dims(head_dim: int, dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(n, K=1, head_dim=head_dim) for n in (3, 67)]
    check(PagedSequences(sequences, dtype=dtype).write_all(), whole(sequences))


@pytest.mark.parametrize("q_dtype", [F32, BF16], ids=["q f32", "q bf16"])
@pytest.mark.parametrize("out_dtype", [F32, BF16], ids=["out f32", "out bf16"])
@BOTH
def test_dtypes(dtype: torch.dtype, q_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    sequences = [random_tokens(n, dtype=q_dtype, head_dim=40) for n in (70, 5)]
    check(PagedSequences(sequences, dtype=dtype).write_all(), whole(sequences), out_dtype=out_dtype)


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.02, 4.0])
def test_scales(scale: float, isa: str) -> None:
    """At 4.0 one key takes nearly all the weight, and the maximum moves from block to block."""
    sequences = [random_tokens(200)]
    check(PagedSequences(sequences).write_all(), whole(sequences), scale)


def test_value_by_hand() -> None:
    """q.k = 1 and 2 with scale 1: weights 1/(1+e) and e/(1+e) of the values 10 and 20."""
    q = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    k, v = torch.tensor([[[1.0, 5.0]], [[2.0, -5.0]]]), torch.tensor([[[10.0, 1.0]], [[20.0, 1.0]]])
    pool = PagedSequences([Tokens(q, k, v)]).write_all()
    e = torch.e
    want = torch.tensor([[[10.0, 1.0]], [[(10.0 + 20.0 * e) / (1.0 + e), 1.0]]])
    torch.testing.assert_close(pool.attend([(0, 0, 2)], 1.0), want)


def test_the_reference_is_causal_attention() -> None:
    tokens = random_tokens(9, G=1)
    want = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (tokens.q, tokens.k, tokens.v)), is_causal=True
    )
    torch.testing.assert_close(
        attend(tokens.q, tokens.k, tokens.v, 0, 64**-0.5).transpose(0, 1), want
    )


def alone(tokens: Tokens, dtype: torch.dtype, **how: Any) -> Tensor:
    """Each row in a call of its own, its key and value written just before."""
    pool = PagedSequences([tokens], dtype=dtype, **how)
    rows = []
    for t in range(len(tokens)):
        pool.write([(0, t, t + 1)])
        rows.append(pool.attend([(0, t, t + 1)]))
    return torch.cat(rows)


@pytest.mark.parametrize("G", [1, 3, 8])
@BOTH
def test_one_by_one_equals_all_at_once(G: int, dtype: torch.dtype, isa: str) -> None:
    tokens = random_tokens(140, K=2, G=G, head_dim=80)
    at_once = PagedSequences([tokens], dtype=dtype, seed=1).write_all().attend([(0, 0, 140)])
    assert torch.equal(alone(tokens, dtype), at_once)


@pytest.mark.parametrize("seed", range(4))
@BOTH
def test_any_schedule_gives_the_same_bits(dtype: torch.dtype, seed: int, isa: str) -> None:
    """Random chunks of random sequences in a call, pages of any size, anywhere, old numbers in
    what is not written yet, one or two threads.
    """
    rng = random.Random(seed)
    sequences = [random_tokens(n, K=2, G=3, head_dim=24, seed=n) for n in (*LENGTHS, 333)]
    plain = PagedSequences(sequences, dtype=dtype, page_tokens=64, garbage=0.0).write_all()
    want = [plain.attend([part]) for part in whole(sequences)]
    pool = PagedSequences(
        sequences, dtype=dtype, page_tokens=rng.choice((16, 32, 64)), seed=seed + 1, garbage=100.0
    )
    done = [0] * len(sequences)
    while any(done[s] < len(tokens) for s, tokens in enumerate(sequences)):
        parts = []
        for s in rng.sample(range(len(sequences)), rng.randint(1, len(sequences))):
            end = min(len(sequences[s]), done[s] + rng.choice((0, 1, 1, 2, 13, 64, 100)))
            parts.append((s, done[s], end))
            done[s] = end
        if all(begin == end for _, begin, end in parts):
            continue
        pool.write(parts)
        got = pool.attend(parts)
        start = 0
        for s, begin, end in parts:
            assert torch.equal(got[start : start + end - begin], want[s][begin:end]), (s, begin)
            start += end - begin


@BOTH
def test_page_sizes_and_places_give_the_same_bits(dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(n, head_dim=40, seed=n) for n in LENGTHS]
    results = [
        PagedSequences(sequences, page_tokens=size, dtype=dtype, seed=seed)
        .write_all()
        .attend(whole(sequences))
        for size in (16, 32, 64)
        for seed in (0, 1)
    ]
    assert all(torch.equal(r, results[0]) for r in results)


@BOTH
def test_shared_pages(dtype: torch.dtype) -> None:
    """Two sequences with the same first 128 tokens, on the same pages and on pages of their own."""
    a, b = random_tokens(150, seed=1), random_tokens(140, seed=2)
    b = Tokens(b.q, torch.cat([a.k[:128], b.k[128:]]), torch.cat([a.v[:128], b.v[128:]]))
    pool = PagedSequences([a, b], dtype=dtype).write_all()
    apart = pool.attend([(0, 149, 150), (1, 139, 140)])
    pool.tables[1, :8] = pool.tables[0, :8]
    assert torch.equal(pool.attend([(0, 149, 150), (1, 139, 140)]), apart)


@BOTH
def test_later_tokens_are_not_seen(dtype: torch.dtype) -> None:
    """What lies after a row's position, in its page too, changes no bit, not even as NaN."""
    tokens = random_tokens(100)
    pool = PagedSequences([tokens], dtype=dtype)
    pool.write([(0, 0, 70)])
    want = pool.attend([(0, 60, 70)])
    pool.pool[:, 0] = float("nan")
    slots = pool.slots(0, 70, 100)
    nan = torch.full((30, 2, 64), float("nan"))
    pe.ops.kv_cache(nan, nan, pool.keys, pool.values, slots, page_tokens=16)
    unused = [p for p in range(pool.keys.shape[0]) if p not in pool.tables[0].tolist()]
    pool.pool[unused] = float("nan")
    assert torch.equal(pool.attend([(0, 60, 70)]), want)


@BOTH
def test_threads_change_nothing(dtype: torch.dtype, restore_threads: None) -> None:
    sequences = [random_tokens(n, dtype=dtype, seed=n) for n in LENGTHS]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    results = []
    for threads in (1, 2, 3):
        pe.set_num_threads(threads)
        results.append(pool.attend(whole(sequences)))
    assert all(torch.equal(r, results[0]) for r in results)


def on_every_fma(pool: PagedSequences, parts: Sequence[Part], **how: Any) -> list[Tensor]:
    results = []
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results.append(pool.attend(parts, **how))
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    return results


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
@BOTH
def test_instruction_sets_with_fma_agree_bitwise(
    dtype: torch.dtype, head_dim: int, restore_isa: None
) -> None:
    sequences = [random_tokens(n, head_dim=head_dim, seed=n) for n in LENGTHS]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    first, *others = on_every_fma(pool, whole(sequences))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("size", [1e-36, 1e-38, 3e-39, 1e-42])
@BOTH
def test_denormal_numbers_agree_bitwise(dtype: torch.dtype, size: float, restore_isa: None) -> None:
    """The bf16 instructions take denormals for zero; so does everything else here."""
    tokens = random_tokens(130)
    tiny_values = Tokens(tokens.q, tokens.k, tokens.v * size)
    tiny_keys = Tokens(tokens.q, tokens.k * size, tokens.v)
    tiny_queries = Tokens(tokens.q * size, tokens.k, tokens.v)
    for sequence in (tiny_values, tiny_keys, tiny_queries):
        pool = PagedSequences([sequence], dtype=dtype).write_all()
        for scale in (0.125, 1.0 / size):
            if scale > 1e38:
                continue
            first, *others = on_every_fma(pool, [(0, 0, 130)], scale=scale)
            assert all(torch.equal(first.view(torch.int32), o.view(torch.int32)) for o in others)
    bits = alone(tiny_values, dtype).view(torch.int32)
    at_once = PagedSequences([tiny_values], dtype=dtype).write_all().attend([(0, 0, 130)])
    assert torch.equal(bits, at_once.view(torch.int32))  # the signs of zeros too
    assert torch.tensor([1e-39]).mul(1.0).item() > 0.0  # the caller's arithmetic is as it was


def test_weight_that_vanishes(isa: str) -> None:
    """Scores 300 apart: the first block's sum is scaled to nothing, without NaN."""
    tokens = random_tokens(130, K=1, G=1, head_dim=16)
    tokens.k[:] = 0.0
    tokens.k[64:, :, 0] = torch.arange(66)[:, None] * 300.0
    tokens.q[:] = torch.eye(16)[0]
    pool = PagedSequences([tokens]).write_all()
    got = pool.attend([(0, 0, 130)], 1.0)
    torch.testing.assert_close(got[65:], tokens.v[65:])
    torch.testing.assert_close(got[9], tokens.v[:10].mean(0))


def lse_of(pool: PagedSequences, parts: Sequence[Part], **how: Any) -> Tensor:
    rows = sum(end - begin for _, begin, end in parts)
    lse = torch.full((rows, pool.sequences[0].q.shape[1]), float("nan"))
    with_lse = pool.attend(parts, lse=lse, **how)
    assert torch.equal(with_lse, pool.attend(parts, **how))
    return lse


@pytest.mark.parametrize("scale", [-0.5, 0.125, 4.0])
@BOTH
def test_lse(dtype: torch.dtype, scale: float, isa: str) -> None:
    sequences = [random_tokens(n, dtype=dtype, head_dim=24, seed=n) for n in LENGTHS]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    exact, plain = (
        torch.cat([log_sum_exp(t.q.to(d), t.k.to(d), 0, scale) for t in sequences])
        for d in (torch.float64, torch.float32)
    )
    check_budget(lse_of(pool, whole(sequences), scale=scale), plain, exact)


@BOTH
def test_lse_has_the_same_bits_in_any_chunk(
    dtype: torch.dtype, isa: str, restore_threads: None
) -> None:
    sequences = [random_tokens(n, K=2, G=3, head_dim=24, seed=n) for n in (*LENGTHS, 333)]
    pool = PagedSequences(sequences, dtype=dtype, page_tokens=64).write_all()
    pe.set_num_threads(2)
    want = lse_of(pool, whole(sequences))
    pe.set_num_threads(1)
    pool = PagedSequences(sequences, dtype=dtype, seed=1, garbage=100.0).write_all()
    rng, start = random.Random(0), 0
    for s, tokens in enumerate(sequences):
        begin = 0
        while begin < len(tokens):
            end = min(len(tokens), begin + rng.choice((1, 2, 13, 64, 100)))
            got = lse_of(pool, [(s, begin, end)])
            assert torch.equal(got, want[start + begin : start + end]), (s, begin)
            begin = end
        start += len(tokens)


def test_strided_rows_and_out_of_the_same_memory() -> None:
    """q as a part of one fused projection, and out written over q."""
    tokens = random_tokens(70)
    pool = PagedSequences([tokens]).write_all()
    args = pool.queries([(0, 0, 70)])
    want = pool.attend([(0, 0, 70)])
    fused = torch.cat([tokens.q, tokens.k], 1)
    strided = fused[:, :6]
    assert not strided.is_contiguous()
    sizes = {"num_kv_heads": 2, "page_tokens": 16}
    assert torch.equal(pe.ops.attention(**{**args, "q": strided}, **sizes), want)
    _C.attention_forward(**{**args, "q": strided}, **sizes, scale=None, out=strided)
    assert torch.equal(strided, want)
    assert torch.equal(fused[:, 6:], tokens.k)


def test_empty_calls() -> None:
    pool = PagedSequences([random_tokens(5)]).write_all()
    assert pool.attend([(0, 2, 2)]).shape == (0, 6, 64)
    args = pool.queries([(0, 0, 5)])
    none = {
        **{"q": args["q"][:0], "cu_seqlens": torch.zeros(1).int()},
        **{"first_positions": torch.zeros(0).int(), "block_tables": torch.zeros(0, 3).int()},
    }
    out = pe.ops.attention(**{**args, **none}, num_kv_heads=2, page_tokens=16)
    assert out.shape == (0, 6, 64)


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    sequences = [random_tokens(70, dtype=BF16)]
    check(PagedSequences(sequences, dtype=BF16).write_all(), whole(sequences))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": None}, TypeError, "[attention] q must be a torch.Tensor but is NoneType"),
    ({"q": torch.zeros(20, 6, 64).double()}, TypeError,
     "[attention] q must be float32 or bfloat16 but is float64"),
    ({"out": torch.zeros(20, 6, 64).int()}, TypeError,
     "[attention] out must be float32 or bfloat16 but is int32"),
    ({"keys": torch.zeros(5, 2048).int()}, TypeError,
     "[attention] keys must be float32 or bfloat16 but is int32"),
    ({"values": torch.zeros(5, 2048, dtype=BF16)}, TypeError,
     "[attention] values must be float32 but is bfloat16"),
    ({"cu_seqlens": torch.tensor([0, 10, 20])}, TypeError,
     "[attention] cu_seqlens must be int32 but is int64"),
    ({"first_positions": torch.tensor([0, 20])}, TypeError,
     "[attention] first_positions must be int32 but is int64"),
    ({"block_tables": torch.zeros(2, 2).long()}, TypeError,
     "[attention] block_tables must be int32 but is int64"),
    ({"q": torch.zeros(20, 384)}, ValueError,
     "[attention] q must have shape (T, H, hd) but got (20, 384)"),
    ({"q": torch.zeros(20, 6, 257)}, ValueError,
     "[attention] q must have a head_dim from 1 to 256 but got shape (20, 6, 257)"),
    ({"q": torch.zeros(20, 6, 0)}, ValueError, "[attention] q must have a head_dim from 1 to 256"),
    ({"q": torch.zeros(20, 5, 64)}, ValueError,
     "[attention] q must have a multiple of num_kv_heads = 2 heads but got shape (20, 5, 64)"),
    ({"num_kv_heads": 0}, ValueError,
     "[attention] q must have a multiple of num_kv_heads = 0 heads"),
    ({"q": torch.zeros(20, 6, 65)[:, :, :64]}, ValueError,
     "[attention] q must have contiguous heads but its strides are (390, 65, 1)"),
    ({"out": torch.zeros(20, 6, 65)[:, :, :64]}, ValueError,
     "[attention] out must have contiguous heads but its strides are (390, 65, 1)"),
    ({"out": torch.zeros(20, 5, 64)}, ValueError,
     "[attention] out must have shape (T, H, hd) = (20, 6, 64) but got (20, 5, 64)"),
    ({"lse": torch.zeros(20, 6, dtype=BF16)}, TypeError,
     "[attention] lse must be float32 but is bfloat16"),
    ({"lse": torch.zeros(20, 5)}, ValueError,
     "[attention] lse must have shape (T, H) = (20, 6) but got (20, 5)"),
    ({"lse": torch.zeros(6, 20).T}, ValueError,
     "[attention] lse must have a contiguous last dimension but its stride is 20"),
    ({"page_tokens": 8}, ValueError, "[attention] page_tokens must be 16, 32 or 64 but is 8"),
    ({"keys": torch.zeros(5, 2047)}, ValueError,
     "[attention] keys must have shape (P, E) with E = 2048 for 2 heads of 64 and pages of 16 "
     "tokens but got (5, 2047)"),
    ({"values": torch.zeros(6, 2048)}, ValueError,
     "[attention] values must have shape (P, E) = (5, 2048) but got (6, 2048)"),
    ({"first_positions": torch.zeros(2, 1).int()}, ValueError,
     "[attention] first_positions must have shape (S,) but got (2, 1)"),
    ({"cu_seqlens": ints(0, 20)}, ValueError,
     "[attention] cu_seqlens must have shape (S + 1,) = (3,) but got (2,)"),
    ({"block_tables": ints(0, 1)}, ValueError,
     "[attention] block_tables must have shape (S, W) but got (2,)"),
    ({"block_tables": torch.zeros(3, 2).int()}, ValueError,
     "[attention] block_tables must have shape (S, W) = (2, 2) but got (3, 2)"),
    ({"scale": float("nan")}, ValueError, "[attention] scale must be finite but is nan"),
    ({"cu_seqlens": ints(1, 10, 20)}, ValueError,
     "[attention] cu_seqlens must start with 0 but with 1"),
    ({"cu_seqlens": ints(0, 10, 19)}, ValueError,
     "[attention] cu_seqlens must end with the rows of q, 20, but with 19"),
    ({"cu_seqlens": ints(0, -1, 20)}, ValueError,
     "[attention] cu_seqlens must not decrease but cu_seqlens[1] = -1 follows 0"),
    ({"first_positions": ints(0, -1)}, ValueError,
     "[attention] first_positions must be >= 0 but first_positions[1] = -1"),
    ({"first_positions": ints(0, 23)}, ValueError,
     "[attention] block_tables must have 3 pages for the 33 tokens of sequence 1 but has shape "
     "(2, 2)"),
    ({"block_tables": torch.tensor([[0, 9], [2, 5]]).int()}, ValueError,
     "[attention] block_tables must be in [0, 5) but block_tables[1, 1] = 5"),
    ({"block_tables": torch.tensor([[-1, 9], [2, 3]]).int()}, ValueError,
     "[attention] block_tables must be in [0, 5) but block_tables[0, 0] = -1"),
]  # fmt: skip


def good() -> dict[str, Any]:
    """Two sequences of ten rows, the second from position 20 on; entry [0, 1] is never read."""
    return {
        "q": torch.zeros(20, 6, 64),
        "keys": torch.zeros(5, 2048),
        "values": torch.zeros(5, 2048),
        "cu_seqlens": ints(0, 10, 20),
        "first_positions": ints(0, 20),
        "block_tables": torch.tensor([[0, 9], [2, 3]]).int(),
        "num_kv_heads": 2,
        "page_tokens": 16,
        "scale": 0.125,
        "out": torch.full((20, 6, 64), 7.0),
    }


def test_good_arguments_pass(reading: str) -> None:
    args = good()
    _C.attention_forward(**args)
    assert torch.equal(args["out"], torch.zeros(20, 6, 64))


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_checks(change: dict[str, Any], error: type[Exception], message: str, reading: str) -> None:
    args = {**good(), **change}
    with pytest.raises(error, match=re.escape(message)):
        _C.attention_forward(**args)
    assert "out" in change or bool((args["out"] == 7.0).all())


def test_gradients_are_refused() -> None:
    args = good()
    del args["out"]
    args["q"].requires_grad_()
    with pytest.raises(ValueError, match=r"\[attention\] q must not require a gradient"):
        pe.ops.attention(**args)
    with torch.no_grad():
        assert not pe.ops.attention(**args).requires_grad
