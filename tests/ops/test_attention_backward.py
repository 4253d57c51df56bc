"""attention_backward against float64 autograd, and the promise that a tree's bits are its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from packed_trees import PackedTrees, Tree, pack_trees
from paged_sequences import PagedSequences, random_tokens
from reference.attention import attend
from reference.attention_backward import attention_backward as reference
from reference.attention_backward import seen, tree_attention
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

F32, BF16 = torch.float32, torch.bfloat16
BOTH = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
Gradients = tuple[Tensor, Tensor, Tensor]
SIX_TREES: list[Tree] = [
    (64, (63, 63)),
    (1, (1,)),
    (31, (0, 2)),
    (65, (33,)),
    (130, ()),
    (7, (70,)),
]


def check(trees: PackedTrees, grad_dtype: torch.dtype | None = None) -> Gradients:
    got = trees.backward(grad_dtype)
    args = (trees.dout, trees.q, trees.k, trees.v, trees.mask, trees.scale)
    exact, plain = reference(*args), reference(*args, trees.q.dtype)
    for name, ours, by_torch, want in zip(("dq", "dk", "dv"), got, plain, exact, strict=True):
        assert ours.dtype == (grad_dtype or trees.q.dtype)
        check_budget(ours, by_torch, want, name)
    return got


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("prompt", [1, 31, 64, 65, 130])
@BOTH
def test_prompts(prompt: int, dtype: torch.dtype, isa: str) -> None:
    check(pack_trees([(prompt, (33, 2))], dtype=dtype))


@pytest.mark.parametrize(
    "responses",
    [(), (0,), (1,), (64,), (70,), (0, 33, 0, 70), (2,) * 8],
    ids=lambda r: "x".join(map(str, r)) or "none",
)
@BOTH
def test_responses(responses: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    check(pack_trees([(65, responses)], dtype=dtype))


@BOTH
def test_several_trees(dtype: torch.dtype, isa: str) -> None:
    check(pack_trees(SIX_TREES, dtype=dtype))


@pytest.mark.parametrize(("K", "G"), [(1, 1), (3, 1), (1, 3), (3, 3), (1, 8)])
@BOTH
def test_grouped_heads(K: int, G: int, dtype: torch.dtype, isa: str) -> None:
    check(pack_trees([(65, (33, 70))], K=K, G=G, head_dim=16, dtype=dtype))


@pytest.mark.parametrize("head_dim", [1, 8, 16, 17, 24, 64, 80, 128, 255, 256])
@BOTH
def test_head_dims(head_dim: int, dtype: torch.dtype, isa: str) -> None:
    check(pack_trees([(33, (5, 64))], K=1, G=2, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("dout_dtype", [F32, BF16], ids=["dout f32", "dout bf16"])
@pytest.mark.parametrize("grad_dtype", [F32, BF16], ids=["grad f32", "grad bf16"])
@BOTH
def test_dtypes(dtype: torch.dtype, grad_dtype: torch.dtype, dout_dtype: torch.dtype) -> None:
    trees = pack_trees([(40, (9, 70))], head_dim=40, dtype=dtype, dout_dtype=dout_dtype)
    check(trees, grad_dtype)


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.02, 1.0])
@BOTH
def test_scales(scale: float, dtype: torch.dtype, isa: str) -> None:
    check(pack_trees([(65, (70,))], head_dim=16, dtype=dtype, scale=scale))


def test_value_by_hand() -> None:
    """Row 1 sees keys 1 and 2 with weights w = 1/(1+e) and 1 - w, values 10 and 20, dout 1.

    dv is (1 + w, 1 - w). ds is w (1 - w) (10 - 20) for the first key and as much above 0 for the
    second; dq = ds k summed, dk = ds q. Row 0 sees itself alone: its ds is 0.
    """
    one = torch.ones(2, 1, 1)
    k, v = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[10.0]], [[20.0]]])
    w = 1.0 / (1.0 + torch.e)
    out = torch.tensor([[[10.0]], [[10.0 * w + 20.0 * (1.0 - w)]]])
    lse = torch.tensor([[1.0], [2.0 + torch.tensor(1.0 + 1.0 / torch.e).log()]])
    tables = (torch.tensor([0, 2]).int(), torch.zeros(1).int(), torch.zeros(1).int())
    dq, dk, dv = pe.ops.attention_backward(one, one, k, v, out, lse, *tables, scale=1.0)
    ds = 10.0 * w * (1.0 - w)
    torch.testing.assert_close(dq.flatten(), torch.tensor([0.0, ds * 2.0 - ds * 1.0]))
    torch.testing.assert_close(dk.flatten(), torch.tensor([-ds, ds]))
    torch.testing.assert_close(dv.flatten(), torch.tensor([1.0 + w, 1.0 - w]))


def test_the_reference_is_causal_attention_of_each_response_behind_its_prompt() -> None:
    P, lengths = 5, (3, 4)
    trees = pack_trees([(P, lengths)], G=1, head_dim=8)
    rows = [list(range(P)) + list(range(5, 8)), list(range(P)) + list(range(8, 12))]
    q, k, v = (x.double().requires_grad_() for x in (trees.q, trees.k, trees.v))
    out = torch.cat(
        [attend(q[:P], k[:P], v[:P], 0, trees.scale)]
        + [attend(q[r], k[r], v[r], 0, trees.scale)[P:] for r in rows]
    )
    want = torch.autograd.grad(out, (q, k, v), trees.dout.double())
    got = reference(trees.dout, trees.q, trees.k, trees.v, trees.mask, trees.scale)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@BOTH
def test_what_the_forward_kernel_made(dtype: torch.dtype, isa: str) -> None:
    """One sequence through its pages, then backward with the out and lse that came of it."""
    tokens = random_tokens(100, dtype=dtype)
    lse = torch.empty(100, 6)
    out = PagedSequences([tokens], dtype=dtype).write_all().attend([(0, 0, 100)], lse=lse)
    made = pack_trees([(100, ())], dtype=dtype)
    args = {**made.arguments(), "q": tokens.q, "k": tokens.k, "v": tokens.v}
    args |= {"out": out, "lse": lse}
    check(PackedTrees(**args, scale=made.scale))
    exact_out, exact_lse = tree_attention(
        *(x.double() for x in (tokens.q, tokens.k, tokens.v)), made.mask, made.scale
    )
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)
    assert float((out.double() - exact_out).abs().max()) < 0.02


def rows_of(trees: Sequence[Tree], i: int) -> slice:
    sizes = [prompt + sum(responses) for prompt, responses in trees]
    return slice(sum(sizes[:i]), sum(sizes[: i + 1]))


@BOTH
def test_a_tree_has_its_bits_alone_and_among_others(
    dtype: torch.dtype, isa: str, restore_threads: None
) -> None:
    """Alone, its heads are shared among the threads; among others, the trees are."""
    sizes = {"head_dim": 24, "dtype": dtype}
    together = pack_trees(SIX_TREES, **sizes).backward()
    turned = SIX_TREES[::-1]
    again = pack_trees(turned, **sizes).backward()
    for i, tree in enumerate(SIX_TREES):
        pe.set_num_threads(1 + i % 2)
        alone = pack_trees([tree], **sizes).backward()
        assert same(alone, [x[rows_of(SIX_TREES, i)] for x in together]), tree
        back = rows_of(turned, len(turned) - 1 - i)
        assert same(alone, [x[back] for x in again]), tree


@pytest.mark.parametrize("count", [1, 2, 6])
@BOTH
def test_threads_change_nothing(dtype: torch.dtype, count: int, restore_threads: None) -> None:
    trees = pack_trees(SIX_TREES[:count], K=2, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7):
        pe.set_num_threads(threads)
        results += [trees.backward() for _ in range(3)]
    assert all(same(r, results[0]) for r in results)


@BOTH
def test_other_trees_are_not_read(dtype: torch.dtype) -> None:
    trees = pack_trees(SIX_TREES[:3], dtype=dtype)
    want = trees.backward()
    first = rows_of(SIX_TREES, 0)
    for x in (trees.dout, trees.q, trees.k, trees.v, trees.out, trees.lse):
        x[first.stop :] = float("nan")
    assert same([x[first] for x in trees.backward()], [x[first] for x in want])


def test_a_row_has_no_gradient_from_rows_that_do_not_see_it() -> None:
    """With dout on the first response alone, the second gets nothing."""
    trees = pack_trees([(10, (70, 5))])
    trees.dout[:10] = 0.0
    trees.dout[80:] = 0.0
    dq, dk, dv = check(trees)
    assert not dq[:10].any()
    assert not any(x[80:].any() for x in (dq, dk, dv))
    assert all(bool(x[:10].any()) for x in (dk, dv))


def on_every_fma(trees: PackedTrees) -> list[Gradients]:
    results = []
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results.append(trees.backward())
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    return results


@pytest.mark.parametrize("head_dim", [8, 64, 80])
@BOTH
def test_instruction_sets_with_fma_agree_bitwise(
    dtype: torch.dtype, head_dim: int, restore_isa: None
) -> None:
    first, *others = on_every_fma(pack_trees(SIX_TREES, head_dim=head_dim, dtype=dtype))
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("size", [1e-20, 1e-36, 1e-38, 3e-39, 1e-42])
@pytest.mark.parametrize("name", ["dout", "q", "k", "v"])
@BOTH
def test_denormal_numbers_agree_bitwise(
    dtype: torch.dtype, name: str, size: float, restore_isa: None
) -> None:
    trees = pack_trees([(70, (33,))], K=1, dtype=dtype)
    getattr(trees, name).mul_(size)
    first, *others = on_every_fma(trees)
    for other in others:
        assert all(
            torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            for a, b in zip(first, other, strict=True)
        )
    assert torch.tensor([1e-39]).mul(1.0).item() > 0.0  # the caller's arithmetic is as it was


def test_strided_rows() -> None:
    """q, k and v as parts of one fused projection, their gradients too."""
    trees = pack_trees([(20, (9,))])
    want = trees.backward()
    fused = torch.cat([trees.q, trees.k, trees.v], 1)
    parts = {"q": fused[:, :6], "k": fused[:, 6:8], "v": fused[:, 8:]}
    grads = torch.zeros_like(fused)
    workspace = torch.empty(_C.attention_backward_workspace_bytes(29, 2, 6, 2, 64) // 4)
    _C.attention_backward(
        **{**trees.arguments(), **parts},
        **{"scale": None, "workspace": workspace},
        **{"dq": grads[:, :6], "dk": grads[:, 6:8], "dv": grads[:, 8:]},
    )
    assert torch.equal(grads, torch.cat(want, 1))


def test_empty_calls() -> None:
    for tables in ([0], [0, 0], [0, 0, 0]):
        S = len(tables) - 1
        ints = (torch.tensor(tables).int(), torch.zeros(S).int(), torch.zeros(S).int())
        x = [torch.zeros(0, h, 8) for h in (4, 4, 2, 2, 4)]
        grads = pe.ops.attention_backward(*x, torch.zeros(0, 4), *ints)
        assert [g.shape for g in grads] == [(0, 4, 8), (0, 2, 8), (0, 2, 8)]


def test_a_prompt_without_rows() -> None:
    """Its responses see themselves alone, like prompts."""
    trees = pack_trees([(9, ()), (5, ())])
    args = trees.arguments()
    args["cu_seqlens"] = ints(0, 0, 9, 9, 14)
    args["prefix_begin"] = args["prefix_rows"] = ints(0, 0, 0, 0)
    assert same(pe.ops.attention_backward(**args), trees.backward())


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_the_mask_of_the_reference() -> None:
    mask = seen(ints(0, 2, 3, 5), ints(0, 0, 0), ints(0, 2, 2)).int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(pack_trees([(31, (33,))], dtype=BF16))
