"""Sampling with torch alone, for GPUs until their kernels are there: prompts in waves, then a token
a step for each open sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.engine.calls.sampling_params import Draw, SamplingParams, draw
from pyengine.engine.infer.generation import Decodes, Progress, Request, check_requests
from pyengine.engine.torch_path.kv_cache_torch import DecodeAttention, KVCache, PrefillAttention
from pyengine.errors import RequestError
from pyengine.models.decoder import Decoder
from pyengine.ops import philox_uniform
from pyengine.preferences.groups import FinishReason, Response

PREFILL_TOKENS = 2048  # prompt tokens in one forward pass


@dataclass
class _Sequence:
    """One sample being written."""

    request: Request
    sample: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    text: str | None = None
    finish_reason: FinishReason | None = None

    def response(self) -> Response:
        return Response(
            self.token_ids, self.logprobs, self.sampling_logprobs, self.text, self.finish_reason
        )


class TorchGenerator:
    """Samples responses from one decoder. All requests of a call share their parameters."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Decodes | None,
        stop_ids: frozenset[int],
        kv_tokens: int,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._kv_tokens = kv_tokens
        self._device = device

    @torch.no_grad()
    def run(self, requests: Sequence[Request], progress: Progress | None) -> list[list[Response]]:
        """The n responses of each request, in order.

        Raises RequestError for a request that can never fit or asks for what this path cannot do,
        NonFiniteError where the weights give logits that are not finite.
        """
        check_requests(requests, self._decoder.spec, self._tokenizer is not None)
        if not requests:
            return []
        params = requests[0].params
        self._check(requests, params)
        head = (
            self._decoder.head_weight().float()
        )  # logits in fp32: what the scorer's kernel computes
        done: list[list[Response]] = []
        tokens, finished, total = 0, 0, len(requests) * params.n
        for wave in self._waves(requests, params):
            with torch.no_grad():
                batch = _Batch(self, wave, params, head)
                while batch.running:
                    batch.step()
                    if progress is not None:
                        progress(tokens + batch.num_tokens, finished + batch.num_finished, total)
            tokens += batch.num_tokens
            finished += len(batch.sequences)
            done.extend(batch.responses())
        return done

    def _check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        unsupported = {
            "penalties, logit_bias and min_tokens": params.changes_logits,
            "top_logprobs": params.top_logprobs > 0,
            "entropy": params.entropy,
            "different params for each prompt": any(r.params != params for r in requests),
        }
        for what, asked in unsupported.items():
            if asked:
                raise RequestError(f"[generate] {what} must wait for the kernels on this device")
        for i, request in enumerate(requests):
            P = len(request.prompt_ids)
            need = params.n * (P + params.max_tokens)
            if need > self._kv_tokens:
                raise RequestError(
                    f"[generate] prompts[{i}] needs n * (prompt + max_tokens) = {params.n} * ({P} "
                    f"+ {params.max_tokens}) = {need} tokens of KV cache but kv_tokens is "
                    f"{self._kv_tokens}"
                )

    def _waves(
        self, requests: Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Request]]:
        """Requests in order, as many at a time as the KV cache holds."""
        wave: list[Request] = []
        longest = 0
        for request in requests:
            longest_now = max(longest, len(request.prompt_ids))
            if (
                wave
                and (len(wave) + 1) * params.n * (longest_now + params.max_tokens) > self._kv_tokens
            ):
                yield wave
                wave, longest_now = [], len(request.prompt_ids)
            wave.append(request)
            longest = longest_now
        if wave:
            yield wave

    def ends(self, sequence: _Sequence, params: SamplingParams) -> FinishReason | None:
        """Why the sequence ends with its last token, or None; a stop string also sets its text."""
        last = sequence.token_ids[-1]
        if not params.ignore_eos and (last in self._stop_ids or last in params.stop_token_ids):
            return "stop"
        if params.stop:
            assert self._tokenizer is not None
            text = self._tokenizer.decode_completion(sequence.token_ids)
            cut = min((i for i in map(text.find, params.stop) if i >= 0), default=-1)
            if cut >= 0:
                sequence.text = text[:cut]
                return "stop"
        return "length" if len(sequence.token_ids) == params.max_tokens else None

    def text(self, sequence: _Sequence) -> str | None:
        if sequence.text is None and self._tokenizer is not None:
            return self._tokenizer.decode_completion(sequence.token_ids)
        return sequence.text

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    @property
    def device(self) -> torch.device:
        return self._device


class _Batch:
    """The sequences of one wave. Slot i of the cache belongs to running[i]."""

    def __init__(
        self,
        generator: TorchGenerator,
        requests: Sequence[Request],
        params: SamplingParams,
        head: Tensor,
    ) -> None:
        self._generator, self._params, self._head = generator, params, head
        self._requests = requests
        self.sequences = [_Sequence(r, k) for r in requests for k in range(params.n)]
        self.running = list(self.sequences)
        self.num_tokens = 0
        decoder = generator.decoder
        capacity = max(len(r.prompt_ids) for r in requests) + params.max_tokens
        self._cache = KVCache(
            decoder.spec, len(self.sequences), capacity, decoder.compute_dtype, generator.device
        )
        self._hidden: Tensor | None = (
            self._prefill()
        )  # (B, D): what predicts each sequence's next token

    @property
    def num_finished(self) -> int:
        return len(self.sequences) - len(self.running)

    def responses(self) -> list[list[Response]]:
        n = self._params.n
        for sequence in self.sequences:
            sequence.text = self._generator.text(sequence)
        flat = [s.response() for s in self.sequences]
        return [flat[i : i + n] for i in range(0, len(flat), n)]

    def step(self) -> None:
        """One token for every running sequence."""
        if self._hidden is None:
            self._hidden = self._decode()
        logits = F.linear(self._hidden.float(), self._head)  # (B, V), of this step only
        drawn = draw(logits, self._params, self._uniforms())
        self._hidden = None
        self._append(drawn)

    def _prefill(self) -> Tensor:
        """Every prompt once, several in a pass.

        Returns the hidden state of each prompt's last token n times, once for each sample.
        """
        n, device = self._params.n, self._generator.device
        last: list[Tensor] = []
        for part in self._prefill_parts():
            requests = [self._requests[i] for i in part]
            lengths = [len(r.prompt_ids) for r in requests]
            attend = PrefillAttention(
                self._cache, lengths, [range(i * n, (i + 1) * n) for i in part]
            )
            ids = torch.tensor([t for r in requests for t in r.prompt_ids], device=device)
            positions = torch.cat([torch.arange(length, device=device) for length in lengths])
            hidden = self._generator.decoder(ids, positions, attend)
            ends = torch.tensor(lengths, device=device).cumsum(0) - 1
            last.append(hidden[ends].repeat_interleave(n, dim=0))
        return torch.cat(last)

    def _prefill_parts(self) -> Iterator[range]:
        start, tokens = 0, 0
        for i, request in enumerate(self._requests):
            if i > start and tokens + len(request.prompt_ids) > PREFILL_TOKENS:
                yield range(start, i)
                start, tokens = i, 0
            tokens += len(request.prompt_ids)
        yield range(start, len(self._requests))

    def _decode(self) -> Tensor:
        device = self._generator.device
        ids = torch.tensor([s.token_ids[-1] for s in self.running], device=device)
        lengths = [len(s.request.prompt_ids) + len(s.token_ids) - 1 for s in self.running]
        positions = torch.tensor(lengths, device=device)
        hidden: Tensor = self._generator.decoder(
            ids, positions, DecodeAttention(self._cache, positions)
        )
        return hidden

    def _uniforms(self) -> Tensor:
        """(B,) float64, a function of (seed, request id, sample, position) alone."""
        if self._params.temperature == 0:
            return torch.empty(len(self.running), dtype=torch.float64)
        keys = [
            (s.request.seed, s.request.request_id, s.sample, len(s.token_ids)) for s in self.running
        ]
        seed, request, sample, position = torch.tensor(keys, dtype=torch.int64).T.contiguous()
        return philox_uniform(seed, request, sample, position).to(self._generator.device)

    def _append(self, drawn: Draw) -> None:
        columns = (
            drawn.token_ids.tolist(),
            drawn.logprobs.tolist(),
            drawn.sampling_logprobs.tolist(),
        )
        kept = []
        for slot, (sequence, token, logprob, sampling) in enumerate(
            zip(self.running, *columns, strict=True)
        ):
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.sampling_logprobs.append(sampling)
            sequence.finish_reason = self._generator.ends(sequence, self._params)
            if sequence.finish_reason is None:
                kept.append(slot)
        self.num_tokens += len(self.running)
        if len(kept) < len(self.running):
            self.running = [self.running[i] for i in kept]
            if kept:
                self._cache.keep(torch.tensor(kept, device=self._generator.device))
