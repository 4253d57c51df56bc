"""llama.cpp through llama-cpp-python's low-level functions: batched prefill, decode, sampling."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp as lib
from torch import Tensor

FILE_TYPES = {"f32": 0, "bf16": 32}  # llama.cpp's ftype numbers


def requantize(source: Path, target: Path, dtype: str) -> Path:
    """Writes `source` with every matrix in `dtype`: both sides multiply the same numbers."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FILE_TYPES[dtype], True, os.cpu_count()
    silence()
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code}")
    return target


@lib.llama_log_callback
def _no_log(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    return None


def silence() -> None:
    lib.llama_log_set(_no_log, ctypes.c_void_p(0))


class LlamaCpp:
    """B sequences of prompt + new tokens in one context."""

    def __init__(
        self, path: Path, B: int, prompt_tokens: int, new_tokens: int, threads: int
    ) -> None:
        silence()
        self.B, self.P, self.new = B, prompt_tokens, new_tokens
        self.model = lib.llama_load_model_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        p = lib.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = B * (prompt_tokens + new_tokens + 8), 2048, 512
        p.n_threads = p.n_threads_batch = threads
        p.n_seq_max = B
        self.context = lib.llama_init_from_model(self.model, p)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed")
        self.batch = lib.llama_batch_init(2048, 0, 1)

    def close(self) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def _put(self, row: int, token: int, position: int, sequence: int, wants_logits: bool) -> None:
        batch = self.batch
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.logits[row] = wants_logits

    def _decode(self, rows: int) -> None:
        self.batch.n_tokens = rows
        code = lib.llama_decode(self.context, self.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def generate(self, prompts: Tensor, temperature: float = 1.0, seed: int = 0) -> list[list[int]]:
        """B lists of new tokens for prompts (B, P); temperature 0 is greedy."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if temperature > 0:
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_temp(temperature))
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_dist(seed))
        else:
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_greedy())
        out: list[list[int]] = [[] for _ in range(self.B)]
        whole = max(1, 2048 // self.P)  # prompts in one call
        for first in range(0, self.B, whole):
            group = range(first, min(first + whole, self.B))
            for i, s in enumerate(group):
                for j, token in enumerate(prompts[s].tolist()):
                    self._put(i * self.P + j, token, j, s, j == self.P - 1)
            self._decode(len(group) * self.P)
            for i, s in enumerate(group):
                row = (i + 1) * self.P - 1
                out[s].append(lib.llama_sampler_sample(sampler, self.context, row))
        for k in range(1, self.new):
            for s in range(self.B):
                self._put(s, out[s][-1], self.P + k - 1, s, True)
            self._decode(self.B)
            for s in range(self.B):
                out[s].append(lib.llama_sampler_sample(sampler, self.context, s))
        lib.llama_sampler_free(sampler)
        return out
