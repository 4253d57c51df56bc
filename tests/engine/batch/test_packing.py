"""Prefix trees in one row: what is where, what sees what, and that it equals separate sequences."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_batches import group

from pyengine.engine.batch.packing import Tree, check_tree, micro_batches, pack
from pyengine.engine.torch_path.tree_model_torch import token_logps, tree_mask
from pyengine.errors import RequestError

CPU = torch.device("cpu")


def test_two_trees_row_by_row():
    """Tree A: prompt 10 11, responses (20 21 22) and (30). Tree B: prompt 40, response (50 51).

    rows        0   1 |  2   3 |     4 |  5
    tokens     10  11 | 20  21 |    40 | 50      the last token of a response has no row
    positions   0   1 |  2   3 |     0 |  1
    sources    of 20: row 1, of 21: row 2, of 22: row 3; of 30: row 1; of 50: row 4, of 51: row 5
    """
    batch = pack([Tree([10, 11], [[20, 21, 22], [30]]), Tree([40], [[50, 51]])], CPU)
    assert batch.token_ids.tolist() == [10, 11, 20, 21, 40, 50]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.tree_rows == [0, 4, 6]
    assert batch.segments == [(2, [2, 0]), (1, [1])]
    assert batch.source_rows.tolist() == [1, 2, 3, 1, 4, 5]
    assert batch.targets.tolist() == [20, 21, 22, 30, 50, 51]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert all(
        t.dtype == torch.int64
        for t in (batch.token_ids, batch.positions, batch.source_rows, batch.targets)
    )


def test_empty_responses_own_no_token():
    batch = pack([Tree([1, 2], [[], [3], []]), Tree([4], [])], CPU)
    assert batch.token_ids.tolist() == [1, 2, 4]
    assert batch.source_rows.tolist() == [1]
    assert batch.targets.tolist() == [3]
    assert batch.cu_seqlens.tolist() == [0, 0, 1, 1]
    assert batch.tree_rows == [0, 2, 3]


@given(st.lists(st.integers(0, 6), max_size=5), st.integers(1, 6))
def test_rows_are_what_is_packed(lengths, prompt):
    tree = Tree(list(range(prompt)), [[9] * n for n in lengths])
    batch = pack([tree, tree], CPU)
    assert len(batch.token_ids) == 2 * tree.num_rows
    assert len(batch.targets) == 2 * sum(lengths)


@settings(max_examples=60)
@given(st.integers(1, 7), st.lists(st.integers(0, 5), max_size=5))
def test_tree_mask_equals_brute_force(prompt, responses):
    """A row sees an earlier row, or itself, if that is in the prompt or in its own response."""
    owners = [-1] * prompt + [k for k, n in enumerate(responses) for _ in range(n)]
    expected = [
        [j <= i and (owners[j] in (-1, owners[i])) for j in range(len(owners))]
        for i in range(len(owners))
    ]
    assert tree_mask(prompt, responses, CPU).tolist() == expected


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 40))
def test_micro_batches_are_consecutive_full_and_within_the_budget(sizes, budget):
    parts = list(micro_batches(sizes, budget))
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    rows = [sum(sizes[i] for i in part) for part in parts]
    assert all(total <= budget or len(part) == 1 for total, part in zip(rows, parts, strict=True))
    # No part could have taken the next tree too.
    for part, total in zip(parts[:-1], rows[:-1], strict=True):
        assert total + sizes[part.stop] > budget


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Tree([], [[1]]), "groups[3].prompt_ids must not be empty"),
        (
            Tree([1, 97], [[1]]),
            "groups[3].prompt_ids must hold integers in [0, 97) but prompt_ids[1] = 97",
        ),
        (
            Tree([1], [[1], [5, -1]]),
            "groups[3].responses[1].token_ids must hold integers in [0, 97) "
            "but responses[1].token_ids[1] = -1",
        ),
        (
            Tree([1], [[2.5]]),
            "groups[3].responses[0].token_ids must hold integers in [0, 97) "
            "but responses[0].token_ids[0] = 2.5",
        ),
        (
            Tree([1], [["a"]]),
            "groups[3].responses[0].token_ids must hold integers in [0, 97) "
            "but responses[0].token_ids[0] = 'a'",
        ),
        (
            Tree([1] * 5, [[1], [2] * 4]),
            "groups[3] must fit 8 positions but prompt (5 tokens) and responses[1] (4) have 9",
        ),
        (Tree([1] * 9, []), "groups[3].prompt_ids must fit 8 positions but has 9 tokens"),
    ],
)
def test_check_tree_names_group_and_value(tree, message):
    with pytest.raises(RequestError) as caught:
        check_tree("score", 3, tree, vocab_size=97, max_positions=8)
    assert str(caught.value) == f"[score] {message}"


def test_check_tree_takes_what_fits_exactly():
    check_tree("score", 0, Tree([0, 96], [[96] * 6, []]), vocab_size=97, max_positions=8)


# Prompts and responses of many shapes: several, empty, of one token, a prompt of one token.
SHAPES = [(5, [4, 7]), (1, [3, 1, 6]), (6, [0, 5, 0, 2]), (3, [1, 1]), (9, [8]), (1, [1]), (4, [0])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_log_probs_equal_those_of_each_response_alone(engine, shape):
    made = group(*shape, seed=3)
    scores = engine.score([made])[0]
    assert [len(s.token_logprobs) for s in scores] == shape[1]
    for response, score in zip(made.responses, scores, strict=True):
        [[alone]] = engine.score([type(made)(made.prompt_ids, [response])])
        torch.testing.assert_close(score.token_logprobs, alone.token_logprobs, rtol=0, atol=2e-6)
        assert score.logprob == pytest.approx(score.token_logprobs.double().sum().item(), abs=1e-12)


def test_many_groups_packed_equal_each_group_alone(engine):
    groups = [group(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    together = engine.score(groups)
    for made, scores in zip(groups, together, strict=True):
        [alone] = engine.score([made])
        for one, other in zip(scores, alone, strict=True):
            torch.testing.assert_close(one.token_logprobs, other.token_logprobs, rtol=0, atol=2e-6)


def test_packed_gradient_equals_that_of_separate_sequences(engine):
    """The sum of coefficients times log-probs, over trees that share prompts and over sequences
    that do not: the gradients of every weight agree.
    """
    decoder = engine._network.decoder
    trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses])
             for g in (group(*shape, seed=i) for i, shape in enumerate(SHAPES))]  # fmt: skip
    total = sum(len(r) for t in trees for r in t.responses)
    coefficients = torch.randn(total, generator=torch.Generator().manual_seed(1))

    def gradient(batches: list[list[Tree]]) -> dict[str, torch.Tensor]:
        decoder.zero_grad()
        ends = list(accumulate(sum(len(r) for t in b for r in t.responses) for b in batches))
        for batch, end in zip(batches, ends, strict=True):
            logps = token_logps(decoder, pack(batch, CPU))
            (logps * coefficients[end - len(logps) : end]).sum().backward()
        return {name: p.grad.clone() for name, p in decoder.named_parameters()}

    packed = gradient([trees])
    separate = gradient([[Tree(t.prompt_ids, [r])] for t in trees for r in t.responses if r])
    for name, expected in separate.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(packed[name], expected, rtol=0, atol=3e-6 * scale)


def test_prompt_rows_are_computed_once(engine):
    """A prompt of 9 tokens with 8 responses of 4: 9 + 8 * 3 rows, not 8 * (9 + 3)."""
    engine.score([group(9, [4] * 8, seed=0)])
    session = engine._inference.sampler.open({"policy": 1.0}, 1)
    assert session.statistics()["computed_rows"] == 33
