"""llama.cpp through llama-cpp-python's low-level functions: batched prefill, decode, sampling."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
import torch
from torch import Tensor

FILE_TYPES = {"f32": 0, "int8": 7, "bf16": 32}  # llama.cpp's ftype numbers; int8 is Q8_0
BATCH_TOKENS = 2048  # of one llama_decode, which computes them 512 at a time
Choose = Callable[[int, int, int], int]  # (row of the last batch, sequence, step) -> new token


def requantize(source: Path, target: Path, dtype: str) -> Path:
    """Writes `source` with every matrix in `dtype`: both sides multiply the same numbers."""
    silence()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FILE_TYPES[dtype], True, os.cpu_count()
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
    """A model and one context that holds up to `sequences` of `tokens` each."""

    def __init__(self, path: Path, sequences: int, tokens: int, threads: int, n: int = 1) -> None:
        """n  samples of each prompt: where there are more, sequences share the prompt's cells"""
        silence()
        self.model = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("llama_model_load_from_file failed")
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        p = lib.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = sequences * (tokens + 8), BATCH_TOKENS, 512
        p.n_threads = p.n_threads_batch = threads
        p.n_seq_max, p.kv_unified = sequences, n > 1
        self.context = lib.llama_init_from_model(self.model, p)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed")
        self.batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)

    def close(self) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    # Jobs

    def generate(self, prompts: Tensor, n: int, new: int, temperature: float) -> list[list[int]]:
        """B * n lists of new tokens for prompts (B, P); temperature 0 is greedy."""
        sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        links = [lib.llama_sampler_init_greedy()]
        if temperature > 0:
            links = [lib.llama_sampler_init_temp(temperature), lib.llama_sampler_init_dist(0)]
        for link in links:
            lib.llama_sampler_chain_add(sampler, link)
        try:
            return self._run(
                prompts,
                n,
                new,
                lambda row, *_: lib.llama_sampler_sample(sampler, self.context, row),
            )
        finally:
            lib.llama_sampler_free(sampler)

    def forward(self, prompts: Tensor, tokens: Tensor, n: int = 1) -> None:
        """The passes of `generate` without its sampling: tokens (B * n, R) are given."""
        given = tokens.tolist()
        self._run(prompts, n, tokens.shape[1], lambda row, s, k: given[s][k])

    def score(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """(B, R) log-probs of the tokens (B, R) that `forward` feeds."""
        logps = torch.empty(tokens.shape)

        def look(row: int, s: int, k: int) -> int:
            pointer = lib.llama_get_logits_ith(self.context, row)
            logits = torch.from_numpy(np.ctypeslib.as_array(pointer, (self.vocab_size,)))
            logps[s, k] = logits.log_softmax(0)[tokens[s, k]]
            return int(tokens[s, k])

        self._run(prompts, 1, tokens.shape[1], look)
        return logps

    # Passes

    def _run(self, prompts: Tensor, n: int, new: int, choose: Choose) -> list[list[int]]:
        memory: Any = lib.llama_get_memory(self.context)
        lib.llama_memory_clear(memory, True)
        B, P = prompts.shape
        out: list[list[int]] = [[] for _ in range(B * n)]
        whole = BATCH_TOKENS // P  # prompts in one call
        for first in range(0, B, whole):
            part = prompts[first : first + whole].tolist()
            for i, prompt in enumerate(part):
                for position, token in enumerate(prompt):
                    s = (first + i) * n
                    self._put(i * P + position, token, position, s, position == P - 1)
            self._decode(len(part) * P)
            for i in range(len(part)):
                head = (first + i) * n
                for s in range(head, head + n):
                    if s > head:
                        lib.llama_memory_seq_cp(memory, head, s, -1, -1)
                    out[s].append(choose((i + 1) * P - 1, s, 0))
        for k in range(1, new):
            for s, tokens in enumerate(out):
                self._put(s, tokens[-1], P + k - 1, s, True)
            self._decode(len(out))
            for s, tokens in enumerate(out):
                tokens.append(choose(s, s, k))
        return out

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
        lib.llama_synchronize(self.context)
