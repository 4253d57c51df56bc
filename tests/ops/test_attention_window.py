"""attention and its gradient where a row sees only the last keys: float64, bits, by hand."""

from __future__ import annotations

import pytest
import torch
from packed_trees import PackedTrees, pack_trees
from paged_sequences import PagedSequences, random_tokens
from reference.attention import attend, attention, log_sum_exp
from reference.attention_backward import attention_backward
from tolerances import check_budget

import pyengine as pe

F32, BF16 = torch.float32, torch.bfloat16
BOTH = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
# A key, part of a block of 64, its ends, and more than two blocks.
WINDOWS = pytest.mark.parametrize("window", [1, 5, 63, 64, 65, 150])


@WINDOWS
@BOTH
def test_forward(window: int, dtype: torch.dtype, isa: str) -> None:
    sequences = [random_tokens(n, dtype=dtype) for n in (1, 70, 200)]
    pool = PagedSequences(sequences, dtype=dtype).write_all()
    parts = [(0, 0, 1), (1, 0, 70), (2, 0, 200)]
    lse = torch.empty(271, sequences[0].q.shape[1])
    got = pool.attend(parts, lse=lse, window=window)
    args = pool.queries(parts)
    scale = args["q"].shape[2] ** -0.5
    heads, page_tokens = pool.num_kv_heads, pool.page_tokens
    exact, plain = (
        attention(**args, num_kv_heads=heads, page_tokens=page_tokens, scale=scale, dtype=d,
                  window=window)
        for d in (torch.float64, dtype)
    )  # fmt: skip
    check_budget(got, plain, exact)
    q, k = (x[:70].to(dtype).double() for x in (sequences[1].q, sequences[1].k))
    torch.testing.assert_close(
        lse[1:71].double(), log_sum_exp(q, k, 0, scale, window), rtol=0, atol=1e-5
    )


@WINDOWS
@BOTH
def test_a_row_has_its_bits_alone_and_in_any_chunk(
    window: int, dtype: torch.dtype, isa: str
) -> None:
    """One row at a time leaves out all blocks before its window, a tile only those of all rows."""
    pool = PagedSequences([random_tokens(200, dtype=dtype)], dtype=dtype).write_all()
    whole = pool.attend([(0, 0, 200)], window=window)
    alone = torch.cat([pool.attend([(0, t, t + 1)], window=window) for t in range(200)])
    chunks = [pool.attend([(0, t, min(t + 37, 200))], window=window) for t in range(0, 200, 37)]
    assert torch.equal(alone, whole)
    assert torch.equal(torch.cat(chunks), whole)


@BOTH
def test_a_window_that_holds_everything_changes_no_bit(dtype: torch.dtype, isa: str) -> None:
    pool = PagedSequences([random_tokens(130, dtype=dtype)], dtype=dtype).write_all()
    parts = [(0, 0, 130)]
    assert torch.equal(pool.attend(parts, window=130), pool.attend(parts))
    trees = [(70, (70, 3)), (1, (129,))]
    windowed, plain = pack_trees(trees, dtype=dtype, window=140), pack_trees(trees, dtype=dtype)
    for ours, theirs in zip(windowed.backward(), plain.backward(), strict=True):
        assert torch.equal(ours, theirs)


def test_value_by_hand() -> None:
    """Scores are 0 and values 0, 1, 2, ...: a row's mean is of its last three."""
    tokens = random_tokens(100, K=1, G=1, head_dim=16, dtype=F32)
    tokens.k.zero_()
    tokens.v.copy_(torch.arange(100.0)[:, None, None].expand_as(tokens.v))
    out = PagedSequences([tokens], dtype=F32).write_all().attend([(0, 0, 100)], window=3)
    expected = [sum(range(max(t - 2, 0), t + 1)) / min(t + 1, 3) for t in range(100)]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trees", [
    [(130, ())], [(65, (0, 33, 0, 70))], [(7, (150,)), (64, (63, 63))], [(200, (2, 70))],
])  # fmt: skip
@pytest.mark.parametrize("window", [2, 5, 63, 64, 65, 150])
@BOTH
def test_backward(window: int, trees: list, dtype: torch.dtype, isa: str) -> None:
    packed = pack_trees(trees, dtype=dtype, window=window)
    got = packed.backward()
    args = (packed.dout, packed.q, packed.k, packed.v, packed.mask, packed.scale)
    exact, plain = attention_backward(*args), attention_backward(*args, dtype)
    for name, ours, by_torch, want in zip(("dq", "dk", "dv"), got, plain, exact, strict=True):
        check_budget(ours, by_torch, want, name)


def test_of_its_own_key_alone_a_row_has_no_slope(isa: str) -> None:
    """p = 1, so that dv is dout, summed over the three query heads, and scores change nothing."""
    packed = pack_trees([(70, (5, 66))], window=1)
    dq, dk, dv = packed.backward()
    heads = packed.dout.view(141, 2, 3, 64)
    torch.testing.assert_close(dv, (heads[:, :, 0] + heads[:, :, 1]) + heads[:, :, 2])
    # Of dot products of 64 numbers that cancel: 64 * 2^-24 of about 8 * 8.
    assert max(dq.abs().max(), dk.abs().max()) < 64 * 2**-24 * 64


@BOTH
def test_trees_and_threads_change_no_bit(dtype: torch.dtype, restore_threads: None) -> None:
    shapes = [(130, (70, 2)), (1, (100,)), (64, (0, 65))]
    found = {}
    for threads in (1, 3):
        pe.set_num_threads(threads)
        found[threads] = pack_trees(shapes, dtype=dtype, window=33).backward()
    rows = [0]
    for prompt, responses in shapes:
        rows.append(rows[-1] + prompt + sum(responses))
    for i, shape in enumerate(shapes):
        alone = pack_trees([shape], dtype=dtype, window=33).backward()
        for which in range(3):
            assert torch.equal(found[1][which], found[3][which])
            assert torch.equal(found[1][which][rows[i] : rows[i + 1]], alone[which])


def test_what_the_forward_kernel_made_is_what_its_gradient_reads() -> None:
    """A response of 40 behind a prompt of 90, through pages, as attend() sees them."""
    packed: PackedTrees = pack_trees([(90, (40,))], window=50)
    k, v = packed.k, packed.v  # of one text: the prompt, then the response
    want = attend(packed.q.double(), k.double(), v.double(), 0, packed.scale, 50)
    torch.testing.assert_close(packed.out.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, -3])
def test_windows_that_are_none(window: int) -> None:
    pool = PagedSequences([random_tokens(3, dtype=F32)], dtype=F32).write_all()
    with pytest.raises(ValueError) as caught:
        pool.attend([(0, 0, 3)], window=window)
    assert str(caught.value) == f"[attention] window must be >= 1 or None but is {window}"
    with pytest.raises(ValueError) as caught:
        pe.ops.attention_backward(**pack_trees([(3, ())]).arguments(), window=window)
    assert str(caught.value) == f"[attention_backward] window must be >= 1 or None but is {window}"
