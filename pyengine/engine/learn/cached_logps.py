"""Log-probs under models that do not change, of responses that were not asked before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, cast

import torch
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch, Tree, micro_batches, pack
from pyengine.engine.learn.logprob_cache import LogprobCache
from pyengine.engine.named.named_models import Model, NamedModels

REFERENCE_BATCH_TOKENS = 4096

# (groups done, groups in all)
ScoreProgress = Callable[[int, int], None]


class CachedReference:
    """A reference's log-probs: large batches of what has not been computed yet.

    compute  (N,) float32 log-probs of a packed batch
    """

    def __init__(
        self, compute: Callable[[PackedBatch], Tensor], cache: LogprobCache, device: torch.device
    ) -> None:
        self._compute = compute
        self._cache = cache
        self._device = device

    def logps(
        self,
        trees: Sequence[Tree],
        prepare: Callable[[], object] | None = None,
        progress: ScoreProgress | None = None,
    ) -> list[Tensor]:
        """See Learner.reference_logps.

        prepare   called before the first batch, where anything is missing
        progress  called with (trees done, trees in all)
        """
        keys = [[self._cache.key(t.prompt_ids, r) for r in t.responses] for t in trees]
        found = {key: self._cache.find(key) for of_tree in keys for key in of_tree}
        missing = [
            Tree(t.prompt_ids, [r for r, k in zip(t.responses, of_tree, strict=True)
                                if found[k] is None])
            for t, of_tree in zip(trees, keys, strict=True)
        ]  # fmt: skip
        done = len(trees)
        missing = [t for t in missing if t.responses]
        done -= len(missing)
        if missing and prepare is not None:
            prepare()
        made: dict[bytes, Tensor] = {}
        try:
            for part in micro_batches([t.num_rows for t in missing], REFERENCE_BATCH_TOKENS):
                made |= self._computed([missing[i] for i in part])
                done += len(part)
                if progress is not None:
                    progress(done, len(trees))
        finally:  # what was computed before an interrupt is kept too
            if made:
                self._cache.store(made)
        found |= made
        return [
            torch.cat([torch.empty(0), *(cast(Tensor, found[k]) for k in of_tree)]).to(self._device)
            for of_tree in keys
        ]

    def _computed(self, trees: Sequence[Tree]) -> dict[bytes, Tensor]:
        """(R,) of each response, by key. Raises NonFiniteError."""
        batch = pack(trees, self._device)
        pieces = iter(torch.split(self._compute(batch).cpu(), batch.cu_seqlens.diff().tolist()))
        return {
            self._cache.key(tree.prompt_ids, response): next(pieces).clone()
            for tree in trees
            for response in tree.responses
        }


class NamedLogps(Generic[Model]):
    """Log-probs under snapshots, kept by the digest of their weights.

    compute  (N,) float32 log-probs of a packed batch under a model
    """

    def __init__(
        self,
        named: NamedModels[Model],
        compute: Callable[[Model, PackedBatch], Tensor],
        cache: LogprobCache,
        device: torch.device,
    ) -> None:
        self._named, self._compute = named, compute
        self._cache, self._device = cache.of(b""), device

    def has(self, name: str) -> bool:
        """Whether a name is a snapshot's, or "reference" where one stands for it."""
        return (self._named.source(name) or "") in self._named.snapshots

    def model(self, name: str) -> Model:
        """A snapshot, loaded."""
        source = self._named.source(name)
        assert source is not None
        return self._named.take([source])[source]

    def logps(
        self,
        name: str,
        trees: Sequence[Tree],
        prepare: Callable[[], object] | None = None,
        progress: ScoreProgress | None = None,
    ) -> list[Tensor]:
        """See CachedReference. The model is loaded only where something is missing."""
        source = self._named.source(name)
        assert source is not None

        def compute(batch: PackedBatch) -> Tensor:
            return self._compute(self._named.take([source])[source], batch)

        cache = self._cache.of(self._named.snapshots.digest(source))
        return CachedReference(compute, cache, self._device).logps(trees, prepare, progress)
