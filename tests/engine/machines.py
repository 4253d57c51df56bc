"""Machines that sessions run on: all that must not matter to what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import pyengine as pe
from pyengine import _C
from pyengine.engine.infer.inference import SessionInference
from pyengine.engine.infer.sampler import Sampler


def fma_isas() -> list[str]:
    """Instruction sets of this CPU whose results are equal bit for bit, the best one last."""
    return [isa for isa in _C.available_isas() if isa != "baseline"]


@dataclass(frozen=True)
class Machine:
    """All that must not matter."""

    isa: str
    threads: int
    page_tokens: int = 32
    num_pages: int = 256
    max_rows: int = 512
    max_sequences: int = 512
    share_prefixes: bool = True

    def sampler(self, sampler: Sampler) -> Sampler:
        """The models of `sampler` on this machine; the pages hold NaN, as any memory may."""
        made = Sampler(
            sampler.models,
            self.num_pages * self.page_tokens,
            page_tokens=self.page_tokens,
            max_rows=self.max_rows,
            share_prefixes=self.share_prefixes,
            max_sequences=self.max_sequences,
        )
        made._pool = torch.full((made.pool_bytes,), 255, dtype=torch.uint8)
        return made

    @contextmanager
    def running(self, engine: pe.Engine, sampler: Sampler) -> Iterator[None]:
        """Runs the engine on `sampler`, of this machine."""
        inference = engine._inference
        assert isinstance(inference, SessionInference)
        before = inference.sampler, pe.get_num_threads(), _C.isa()
        inference.sampler = sampler
        pe.set_num_threads(self.threads)
        _C.set_isa(self.isa)
        try:
            yield
        finally:
            inference.sampler = before[0]
            pe.set_num_threads(before[1])
            _C.set_isa(before[2])
