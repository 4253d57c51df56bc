"""Log-probs of packed trees with the training modules and autograd: on a GPU, until the kernels of
tree_model.py are there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch
from pyengine.models.decoder import Decoder
from pyengine.models.spec import DecoderSpec
from pyengine.ops import linear_logprob


def token_logps(decoder: Decoder, batch: PackedBatch) -> Tensor:
    """(N,) float32 log-prob of every response token, differentiable in the decoder's weights."""
    return linear_logprob(hidden_states(decoder, batch), decoder.head_weight(), batch.targets)


def hidden_states(decoder: Decoder, batch: PackedBatch) -> Tensor:
    """(N, D) after the final norm, of the rows that `source_rows` names."""
    hidden: Tensor = decoder(batch.token_ids, batch.positions, TreeAttention(batch, decoder.spec))
    return hidden.index_select(0, batch.source_rows)


class TreeAttention:
    """Attention over a packed batch: response rows see the prompt and their own past."""

    def __init__(self, batch: PackedBatch, spec: DecoderSpec) -> None:
        self._scale = spec.attention_scale
        self._windows = [layer.window for layer in spec.layers]
        self._rows = list(pairwise(batch.tree_rows))
        device = batch.token_ids.device
        self._masks = {
            window: [
                None
                if window is None and sum(n > 0 for n in responses) <= 1
                else tree_mask(prompt, responses, device, window)
                for prompt, responses in batch.segments
            ]
            for window in set(self._windows)
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (T, H, hd), k and v (T, K, hd) -> (T, H, hd)."""
        repeat, masks = q.shape[1] // k.shape[1], self._masks[self._windows[layer]]
        out = []
        for (start, end), mask in zip(self._rows, masks, strict=True):
            query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            if repeat > 1:
                key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
            y = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=self._scale
            )
            out.append(y[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)


def tree_mask(
    prompt: int, responses: Sequence[int], device: torch.device, window: int | None = None
) -> Tensor:
    """(L, L) bool: row i may see column j. Rows are the prompt's, then each response's."""
    owner = torch.cat(
        [torch.full((n,), i, device=device) for i, n in enumerate([prompt, *responses])]
    )
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool, device=device).tril()
    mask = causal & ((owner[:, None] == owner[None]) | (owner[None] == 0))
    if window is None:
        return mask
    positions = [*range(prompt), *(prompt + i for n in responses for i in range(n))]
    at = torch.tensor(positions, device=device)
    return mask & (at[:, None] - at[None] < window)
