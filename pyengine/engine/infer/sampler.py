"""Opens C++ sessions on the engine's models, within the memory planned for keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyengine import _C
from pyengine.engine.weights.arena import resident_bytes, untouched
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.models.spec import DecoderSpec

PAGE_TOKENS = 32
MAX_ROWS = 512  # tokens in one forward pass
MAX_MODELS = 3  # in lock step in one session
MAX_SEQUENCES = 512  # with rows in one forward pass


def page_bytes(spec: DecoderSpec, dtype: torch.dtype, page_tokens: int = PAGE_TOKENS) -> int:
    """Bytes of one page: keys and values of every layer, heads padded to 16 numbers."""
    elements = _C.kv_page_elements(spec.num_layers, spec.num_kv_heads, spec.head_dim, page_tokens)
    return elements * dtype.itemsize


class Sampler:
    """Sessions over one pool of pages. The last session is kept, with what its pages hold.

    models     by name: "policy" and, where there is one, "reference"; `put` adds others
    kv_tokens  tokens of the policy that the pool holds; models in lock step share it
    The other arguments never change a bit of what comes out.
    """

    def __init__(
        self,
        models: Mapping[str, PackedDecoder],
        kv_tokens: int,
        page_tokens: int = PAGE_TOKENS,
        max_rows: int = MAX_ROWS,
        share_prefixes: bool = True,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        self.models = dict(models)
        self._page_tokens = page_tokens
        self._max_rows = max_rows
        self._max_sequences = max_sequences
        self._share_prefixes = share_prefixes
        policy = self.models["policy"]
        pages = max(kv_tokens // page_tokens, 1)
        self.pool_bytes = pages * page_bytes(policy.decoder.spec, policy.compute_dtype, page_tokens)
        self._pool: Tensor | None = None
        self._session: Any = None
        self._opened: tuple[tuple[str, float], ...] | None = None
        # What the session was given: models with their versions, and the longest request.
        self._given: tuple[list[tuple[PackedDecoder, int]], int] = ([], 0)

    def open(self, models: Mapping[str, float], longest: int) -> Any:
        """A session of these models, nothing running in it, for requests of up to `longest` tokens.

        models  name and coefficient of its logits; the first is the one whose log-probs are asked
        """
        chosen = [self.models[name] for name in models]
        for model in chosen:
            model.refresh()
        key = tuple(models.items())
        now = [(model, model.version) for model in chosen]
        if self._opened != key:
            self._session, self._opened, self._given = None, None, ([], 0)  # its memory first
            weights = [model.weights(longest) for model in chosen]
            self._session = self._create(chosen, weights, list(models.values()))
            self._opened, self._given = key, (now, longest)
        else:
            self._session.clear()  # of what an interrupt left in it
            if self._given[0] != now or self._given[1] < longest:
                self._given = [], 0  # until all are there
                for i, model in enumerate(chosen):
                    self._session.set_weights(i, model.weights(longest))
                self._given = now, longest
        self._session.set_version(sum(model.version for model in chosen))
        return self._session

    def put(self, name: str, model: PackedDecoder) -> None:
        """Opens sessions with this model from now on when `name` is asked for."""
        if self.models.get(name) is not model:
            self.drop(name)
            self.models[name] = model

    def drop(self, name: str) -> None:
        """Lets go of a model, with the session that reads it."""
        if self._opened is not None and name in dict(self._opened):
            self._session, self._opened, self._given = None, None, ([], 0)
        self.models.pop(name, None)

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: packed matrices, and the pool as far as it was written."""
        unique = {id(model): model.num_bytes for model in list(self.models.values())}
        pool = 0 if self._pool is None else resident_bytes(self._pool)
        return {"packed": sum(unique.values()), "KV cache": pool}

    def forget(self) -> None:
        """Nothing that is in the pages now is used again."""
        if self._session is not None:
            self._session.forget()

    def _create(
        self, models: Sequence[PackedDecoder], weights: list[dict[str, Any]], mix: list[float]
    ) -> Any:
        if self._pool is None:
            # Not touched here: the system gives memory to pages when they are first written.
            self._pool = untouched(self.pool_bytes)
        sizes = [page_bytes(m.decoder.spec, m.compute_dtype, self._page_tokens) for m in models]
        num_pages = max(self.pool_bytes // sum(sizes), 1)
        pools, start = [], 0
        for model, size in zip(models, sizes, strict=True):
            end = start + num_pages * size
            pools.append(self._pool[start:end].view(model.compute_dtype))
            start = end
        return _C.Session(
            models=weights,
            pools=pools,
            coefficients=mix,
            num_pages=num_pages,
            page_tokens=self._page_tokens,
            share_prefixes=self._share_prefixes,
            max_rows=self._max_rows,
            max_sequences=self._max_sequences,
        )
