"""attention beside torch's scaled_dot_product_attention on keys and values that lie ready for it.

torch gets its favourite memory, (sequences, heads, tokens, head_dim) without pages. In decode,
where lengths differ, it gets a call for each sequence, or one call for all, padded and masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from paged_sequences import PagedSequences, random_tokens
from reference.attention import attention as reference
from tolerances import check_budget
from torch import Tensor

PAGE_TOKENS = 64


class Shape(NamedTuple):
    """S sequences of `shortest` to `longest` tokens; the last row of each, or all rows."""

    job: str
    S: int
    shortest: int
    longest: int
    K: int
    G: int
    D: int

    def __str__(self) -> str:
        tokens = f"{self.shortest}-{self.longest}" if self.S > 1 else str(self.longest)
        return f"{self.job}-S{self.S}xL{tokens}xK{self.K}xG{self.G}xD{self.D}"

    @property
    def lengths(self) -> list[int]:
        steps = max(self.S - 1, 1)
        return [self.longest - i * (self.longest - self.shortest) // steps for i in range(self.S)]


DECODE = Shape("decode", 64, 100, 1000, 3, 3, 64)
PREFILL = Shape("prefill", 1, 512, 512, 3, 3, 64)
SHAPES = {
    "smoke": [Shape("decode", 5, 10, 70, 3, 3, 64), Shape("prefill", 1, 70, 70, 3, 3, 64)],
    "default": [DECODE, PREFILL],
    "full": [
        *(DECODE, DECODE._replace(S=1), DECODE._replace(K=8, G=4, D=128)),
        *(PREFILL, PREFILL._replace(longest=4096), PREFILL._replace(K=8, G=4, D=128)),
    ],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch", "torch_padded")


class Inputs:
    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.scale = shape.D**-0.5
        lengths = shape.lengths
        sequences = [
            random_tokens(n, K=shape.K, G=shape.G, head_dim=shape.D, dtype=dtype, seed=i)
            for i, n in enumerate(lengths)
        ]
        self.pool = PagedSequences(sequences, page_tokens=PAGE_TOKENS, dtype=dtype).write_all()
        first = [n - 1 if shape.job == "decode" else 0 for n in lengths]
        self.parts = [(s, first[s], n) for s, n in enumerate(lengths)]
        # For torch: (H, n, hd), the heads of a group repeated beforehand.
        self.lone = [
            tuple(
                x.repeat_interleave(shape.K * shape.G // x.shape[1], 1).transpose(0, 1).contiguous()
                for x in (tokens.q[begin:], tokens.k, tokens.v)
            )
            for tokens, (_, begin, _) in zip(sequences, self.parts, strict=True)
        ]
        self.causal = shape.job == "prefill"
        self.q = torch.stack([q for q, _, _ in self.lone])
        longest = max(lengths)
        self.k, self.v = (
            torch.stack([F.pad(x[i], (0, 0, 0, longest - x[i].shape[1])) for x in self.lone])
            for i in (1, 2)
        )
        seen = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        self.seen = seen[:, None, None, :]

    def pyengine(self) -> Tensor:
        return self.pool.attend(self.parts)

    def torch(self) -> Tensor:
        rows = [
            F.scaled_dot_product_attention(*(x[None] for x in qkv), is_causal=self.causal)[0]
            for qkv in self.lone
        ]
        return torch.cat(rows, 1).transpose(0, 1)

    def torch_padded(self) -> Tensor:
        mask = None if self.causal else self.seen
        out = F.scaled_dot_product_attention(
            self.q, self.k, self.v, mask, is_causal=self.causal
        )  # (S, H, n, hd)
        return out.transpose(1, 2).flatten(0, 1)


def test_forward(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    inputs = Inputs(shape, TORCH_DTYPES[dtype])
    pool = inputs.pool
    run: Callable[[], Tensor] = getattr(inputs, provider)
    exact = reference(
        **pool.queries(inputs.parts),
        num_kv_heads=shape.K,
        page_tokens=PAGE_TOKENS,
        scale=inputs.scale,
    )
    check_budget(run(), inputs.torch(), exact)
    pairs = sum(end * (end + 1) - begin * (begin + 1) for _, begin, end in inputs.parts) // 2
    keys = sum(end for *_, end in inputs.parts)
    measure(
        run,
        **{"job": "attention", "shape": shape, "dtype": dtype, "provider": provider},
        flops=4 * pairs * shape.K * shape.G * shape.D,
        bytes=2 * keys * shape.K * shape.D * TORCH_DTYPES[dtype].itemsize,
    )
