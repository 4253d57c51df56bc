"""Where the keys and values of packed trees lie in pages while a layer is computed.

Each sequence is a table of pages, as the sampler's are: a response shares its prompt's full pages,
and the prompt's tokens beyond them are written again to the response's own first page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch
from pyengine.models.spec import DecoderSpec
from pyengine.ops.attention import attention
from pyengine.ops.attention_backward import attention_backward
from pyengine.ops.kv_cache import kv_cache, kv_elements_per_page

PAGE_TOKENS = 16  # the smallest page copies the fewest tokens


@dataclass(frozen=True)
class TreePages:
    """The layout of one batch, and pages for one layer at a time.

    slots            (T,) int64: of each row
    copied_rows      (C,) int64: prompt rows that are written a second time, to `copied_slots`
    cu_seqlens       (S + 1,) int32: the rows of each prompt and each response
    prefix_begin, prefix_rows  (S,) int32: the rows of a response's prompt; none for a prompt
    first_positions  (S,) int32
    block_tables     (S, W) int32
    keys, values     (pages, elements) in the compute dtype
    """

    slots: Tensor
    copied_rows: Tensor
    copied_slots: Tensor
    cu_seqlens: Tensor
    prefix_begin: Tensor
    prefix_rows: Tensor
    first_positions: Tensor
    block_tables: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, batch: PackedBatch, spec: DecoderSpec, dtype: torch.dtype) -> TreePages:
        """For a batch on the CPU."""
        slots: list[int] = []
        copied_rows: list[int] = []
        copied_slots: list[int] = []
        cu_seqlens, prefix_begin, prefix_rows, tables = [0], [], [], []
        pages = 0
        for start, (prompt, responses) in zip(batch.tree_rows, batch.segments, strict=False):
            full, tail = divmod(prompt, PAGE_TOKENS)
            prompt_pages: list[int] = []
            for k, rows in enumerate([prompt, *responses]):
                shared = prompt_pages[:full] if k else []
                first = len(shared) * PAGE_TOKENS  # position of the first token in own pages
                end = prompt + rows if k else prompt
                own = list(range(pages, pages + -(-(end - first) // PAGE_TOKENS)))
                pages += len(own)
                places = [p * PAGE_TOKENS + i for p in own for i in range(PAGE_TOKENS)]
                if k and rows:
                    copied_rows.extend(range(start + full * PAGE_TOKENS, start + prompt))
                    copied_slots.extend(places[:tail])
                slots.extend(places[tail if k else 0 : end - first])
                if not k:
                    prompt_pages = own
                cu_seqlens.append(cu_seqlens[-1] + rows)
                prefix_begin.append(start)
                prefix_rows.append(prompt if k else 0)
                tables.append(shared + own)
        width = max(map(len, tables))
        elements = kv_elements_per_page(spec.num_kv_heads, spec.head_dim, PAGE_TOKENS)
        return cls(
            torch.tensor(slots, dtype=torch.int64),
            torch.tensor(copied_rows, dtype=torch.int64),
            torch.tensor(copied_slots, dtype=torch.int64),
            _i32(cu_seqlens),
            _i32(prefix_begin),
            _i32(prefix_rows),
            _i32(prefix_rows),  # a response's first row comes right after its prompt
            _i32([table + [0] * (width - len(table)) for table in tables]),
            torch.zeros(pages, elements, dtype=dtype),
            torch.zeros(pages, elements, dtype=dtype),
        )

    def write(self, k: Tensor, v: Tensor) -> None:
        """Keys and values (T, K, hd) of one layer; those of the last layer are gone."""
        if len(self.copied_rows):  # first: a token after them may finish a pair of bf16 values
            k_tail, v_tail = (x.index_select(0, self.copied_rows) for x in (k, v))
            kv_cache(k_tail, v_tail, self.keys, self.values, self.copied_slots,
                     page_tokens=PAGE_TOKENS)  # fmt: skip
        kv_cache(k, v, self.keys, self.values, self.slots, page_tokens=PAGE_TOKENS)

    def attend(
        self, q: Tensor, spec: DecoderSpec, layer: int, out: Tensor, lse: Tensor | None
    ) -> Tensor:
        """What each row of q (T, H, hd) reads, in `out`; `lse` (T, H) takes its softmax's sum."""
        return attention(
            q,
            self.keys,
            self.values,
            self.cu_seqlens,
            self.first_positions,
            self.block_tables,
            num_kv_heads=spec.num_kv_heads,
            page_tokens=PAGE_TOKENS,
            scale=spec.attention_scale,
            window=spec.layers[layer].window,
            lse=lse,
            out=out,
        )

    def attend_backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        spec: DecoderSpec,
        layer: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq (T, H, hd), dk and dv (T, K, hd) of what `attend` returned; no page is read."""
        return attention_backward(
            dout,
            q,
            k,
            v,
            out,
            lse,
            self.cu_seqlens,
            self.prefix_begin,
            self.prefix_rows,
            scale=spec.attention_scale,
            window=spec.layers[layer].window,
        )


def _i32(values: list[int] | list[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
