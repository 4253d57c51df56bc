"""Groups as one row of tokens without padding.

A prompt is there once; each response attends to its prompt and itself. A group's rows are its
prompt's tokens, then each response's tokens but the last, whose hidden state nobody needs: a
token's log-prob comes from the hidden state of the token before it, and the first tokens of all
responses share the prompt's last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pyengine.errors import RequestError


@dataclass(frozen=True)
class Tree:
    """A prompt and the responses that share it: token ids."""

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def num_rows(self) -> int:
        return len(self.prompt_ids) + sum(max(len(r) - 1, 0) for r in self.responses)


@dataclass(frozen=True)
class PackedBatch:
    """Trees packed one after another: T rows for the model, N response tokens for the head.

    token_ids, positions  (T,) int64
    tree_rows             rows of tree g: tree_rows[g] to tree_rows[g + 1]
    segments              per tree: (prompt rows, rows of each response)
    source_rows, targets  (N,) int64: the row whose hidden state predicts a response token, and that
                          token
    cu_seqlens            (S + 1,) int64: the tokens of each response among the N

    Packed with `last_rows`, the head is one of whole responses: each is one of the N, its source
    row is that of its last token, and there are no targets.
    """

    token_ids: Tensor
    positions: Tensor
    tree_rows: list[int]
    segments: list[tuple[int, list[int]]]
    source_rows: Tensor
    targets: Tensor
    cu_seqlens: Tensor

    def token_groups(self) -> Tensor:
        """(trees + 1,) int64: the tokens of each tree's responses among the N."""
        ends = list(accumulate((len(responses) for _, responses in self.segments), initial=0))
        return self.cu_seqlens[ends]


def pack(trees: Sequence[Tree], device: torch.device, last_rows: bool = False) -> PackedBatch:
    """Packs trees whose ids have been checked (check_tree).

    last_rows  the last token of a response has a row too, and that row alone is read; of an empty
               response it is the prompt's last
    """
    token_ids: list[int] = []
    positions: list[int] = []
    source_rows: list[int] = []
    targets: list[int] = []
    tree_rows, segments, cu_seqlens = [0], [], [0]
    for tree in trees:
        P = len(tree.prompt_ids)
        token_ids.extend(tree.prompt_ids)
        positions.extend(range(P))
        prompt_end = len(token_ids) - 1
        rows = []
        for response in tree.responses:
            start = len(token_ids)
            if last_rows:
                token_ids.extend(response)
                source_rows.append(len(token_ids) - 1 if response else prompt_end)
                cu_seqlens.append(len(source_rows))
            else:
                token_ids.extend(response[:-1])
                if response:
                    source_rows.append(prompt_end)
                    source_rows.extend(range(start, len(token_ids)))
                targets.extend(response)
                cu_seqlens.append(len(targets))
            positions.extend(range(P, P + len(token_ids) - start))
            rows.append(len(token_ids) - start)
        segments.append((P, rows))
        tree_rows.append(len(token_ids))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return PackedBatch(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        tree_rows=tree_rows,
        segments=segments,
        source_rows=tensor(source_rows),
        targets=tensor(targets),
        cu_seqlens=tensor(cu_seqlens),
    )


def check_tree(who: str, index: int, tree: Tree, vocab_size: int, max_positions: int) -> None:
    """Raises RequestError, naming the group: ids out of range, empty prompt, too many tokens."""
    if not tree.prompt_ids:
        raise RequestError(f"[{who}] groups[{index}].prompt_ids must not be empty")
    for name, ids in [("prompt_ids", tree.prompt_ids)] + [
        (f"responses[{k}].token_ids", r) for k, r in enumerate(tree.responses)
    ]:
        if bad := first_bad_id(ids, vocab_size):
            raise RequestError(
                f"[{who}] groups[{index}].{name} must hold integers in [0, {vocab_size}) "
                f"but {name}[{bad[0]}] = {bad[1]!r}"
            )
    if len(tree.prompt_ids) > max_positions:
        raise RequestError(
            f"[{who}] groups[{index}].prompt_ids must fit {max_positions} positions "
            f"but has {len(tree.prompt_ids)} tokens"
        )
    for k, response in enumerate(tree.responses):
        if len(tree.prompt_ids) + len(response) > max_positions:
            raise RequestError(
                f"[{who}] groups[{index}] must fit {max_positions} positions "
                f"but prompt ({len(tree.prompt_ids)} tokens) and responses[{k}] ({len(response)}) "
                f"have {len(tree.prompt_ids) + len(response)}"
            )


def first_bad_id(ids: Sequence[Any], vocab_size: int) -> tuple[int, Any] | None:
    """Place and value of the first id that is not an integer in [0, vocab_size); None if none."""
    if set(map(type, ids)) <= {int} and (not ids or (min(ids) >= 0 and max(ids) < vocab_size)):
        return None
    for place, token in enumerate(ids):
        is_integer = isinstance(token, Integral) and not isinstance(token, bool)
        if not is_integer or not 0 <= token < vocab_size:
            return place, token
    return None


def micro_batches(sizes: Sequence[int], budget: int) -> Iterator[range]:
    """Consecutive trees, at most `budget` rows in a part; a larger tree is a part of its own."""
    start, rows = 0, 0
    for i, size in enumerate(sizes):
        if i > start and rows + size > budget:
            yield range(start, i)
            start, rows = i, 0
        rows += size
    if start < len(sizes):
        yield range(start, len(sizes))
