"""Sampling on the C++ session: requests go in, steps run, responses come out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.calls.streaming import Stream, TokenEvent, TokenText
from pyengine.engine.infer.sampler import Sampler
from pyengine.errors import NonFiniteError, RequestError
from pyengine.models.spec import DecoderSpec
from pyengine.preferences.groups import Response

# (tokens sampled so far, sequences finished, sequences in all)
Progress = Callable[[int, int, int], None]

STEP_SECONDS = 0.05  # between looks at progress, cancellation and Ctrl-C


class Decodes(Protocol):
    """What generation needs of a tokenizer: text for stop strings and responses."""

    def decode_completion(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Request:
    """A prompt to be sampled `params.n` times; `request_id` and `seed` key its draws."""

    prompt_ids: list[int]
    request_id: int
    params: SamplingParams
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest response."""
        return len(self.prompt_ids) + self.params.max_tokens


def check_requests(requests: Sequence[Request], spec: DecoderSpec, has_tokenizer: bool) -> None:
    """Raises RequestError, naming the prompt, for what the model cannot take."""
    limit, vocab_size = spec.max_positions, spec.vocab_size
    for i, request in enumerate(requests):
        params, P = request.params, len(request.prompt_ids)
        if params.stop and not has_tokenizer:
            raise RequestError("[generate] stop strings need a tokenizer but the model has none")
        if P == 0:
            raise RequestError(f"[generate] prompts[{i}] must have at least one token but is empty")
        for what, ids in (
            ("", request.prompt_ids),
            (": logit_bias", params.logit_bias),
            (": stop_token_ids", params.stop_token_ids),
        ):
            bad = next((t for t in ids if not 0 <= t < vocab_size), None)
            if bad is not None:
                raise RequestError(
                    f"[generate] prompts[{i}]{what} must hold ids in [0, {vocab_size}) "
                    f"but holds {bad}"
                )
        if request.longest > limit:
            raise RequestError(
                f"[generate] prompts[{i}] ({P} tokens) and max_tokens ({params.max_tokens}) "
                f"must fit {limit} positions but need {request.longest}"
            )
        if params.top_logprobs > vocab_size:
            raise RequestError(
                f"[generate] top_logprobs must be at most the vocabulary's {vocab_size} "
                f"but is {params.top_logprobs}"
            )


class Generator:
    """Samples responses from the models of a Sampler."""

    def __init__(
        self,
        sampler: Sampler,
        spec: DecoderSpec,
        tokenizer: Decodes | None,
        stop_ids: frozenset[int],
    ) -> None:
        self.sampler = sampler
        self._spec = spec
        self._tokenizer = tokenizer
        # A tokenizer or a config may name ids that the model has no row for.
        self._stop_ids = frozenset(i for i in stop_ids if 0 <= i < spec.vocab_size)

    def run(
        self,
        requests: Sequence[Request],
        models: Mapping[str, float],
        progress: Progress | None,
        stream: Stream | None,
        cancel: threading.Event | None,
    ) -> list[list[Response]]:
        """The n responses of each request, in order.

        Raises RequestError for a request that can never fit, NonFiniteError where the weights give
        logits that are not finite.
        """
        check_requests(requests, self._spec, self._tokenizer is not None)
        if not requests:
            return []
        session = self.sampler.open(models, max(r.longest for r in requests))
        for i, request in enumerate(requests):
            if why := session.refusal(request.longest):
                raise RequestError(
                    f"[generate] prompts[{i}] can never fit: prompt + max_tokens = "
                    f"{len(request.prompt_ids)} + {request.params.max_tokens} = {why}"
                )
        run = _Run(session, requests, self._tokenizer, self._stop_ids, list(models), stream)
        try:
            return run.finish(progress, cancel)
        finally:
            session.clear()


class _Run:
    """The requests of one call, in a session."""

    def __init__(
        self,
        session: Any,
        requests: Sequence[Request],
        tokenizer: Decodes | None,
        stop_ids: frozenset[int],
        models: list[str],
        stream: Stream | None,
    ) -> None:
        self._session = session
        self._requests = requests
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._models = models
        self._stream = stream
        self._total = sum(r.params.n for r in requests)
        self._watched = stream is not None or any(r.params.stop for r in requests)
        self._texts: dict[tuple[int, int], TokenText] = {}
        self._handles: list[int] = []
        self._index: dict[int, int] = {}

    def finish(
        self, progress: Progress | None, cancel: threading.Event | None
    ) -> list[list[Response]]:
        session = self._session
        session.collect_events(self._watched)
        for request in self._requests:
            settings = settings_of(request.params, self._stop_ids, request.seed, request.request_id)
            handle = session.submit(request.prompt_ids, settings, request.params.n, [])
            self._index[handle] = len(self._handles)
            self._handles.append(handle)
        steps = 1 if self._watched else 1 << 30
        while True:
            if cancel is not None and cancel.is_set():
                self._abort_all()
                break
            worked, bad_request, bad_sample = session.step(steps, STEP_SECONDS)
            if bad_request >= 0:
                raise self._not_finite(self._index[bad_request], bad_sample)
            if self._watched:
                self._look(session.take_events())
            if progress is not None:
                now = session.statistics()
                progress(now["tokens"], now["finished"], self._total)
            if not worked:
                break
        return [
            [self._response(i, k, s) for k, s in enumerate(session.take(handle))]
            for i, handle in enumerate(self._handles)
        ]

    def _abort_all(self) -> None:
        for handle, request in zip(self._handles, self._requests, strict=True):
            for sample in range(request.params.n):
                self._session.end_sample(handle, sample, "abort")

    def _not_finite(self, request: int, sample: int) -> NonFiniteError:
        where = f"prompts[{request}], sample {sample}"
        if self._requests[request].params.changes_logits:
            return NonFiniteError(
                f"[generate] logits must be finite but those of {where} are not: the weights give "
                "NaN or infinity, or logit_bias leaves no token to draw"
            )
        return NonFiniteError(
            f"[generate] logits must be finite but the weights give NaN or infinity for {where}"
        )

    def _look(self, events: list[tuple[int, int, int, int, float, str]]) -> None:
        """Stop strings and the caller's stream, after each step."""
        for handle, sample, position, token, logprob, finish in events:
            index = self._index[handle]
            text = None
            if self._tokenizer is not None:
                text = self._text_of(index, sample)
                # An end token comes first: what it adds to the text ends nothing any more.
                allowed = position + 1 >= self._requests[index].params.min_tokens
                text.add(token, may_stop=allowed and finish != "stop")
                if text.stopped:
                    self._session.end_sample(handle, sample, "stop")
                    finish = "stop"
            if self._stream is None:
                continue
            last = finish != "none"
            piece = None if text is None else text.show(last)
            reason = finish if last else None
            event = TokenEvent(index, sample, position, token, logprob, piece, reason)
            if self._stream(event) is False and not last:
                self._session.end_sample(handle, sample, "abort")

    def _text_of(self, index: int, sample: int) -> TokenText:
        assert self._tokenizer is not None
        key = (index, sample)
        if key not in self._texts:
            stops = self._requests[index].params.stop
            self._texts[key] = TokenText(self._tokenizer.decode_completion, stops)
        return self._texts[key]

    def _response(self, index: int, sample: int, columns: tuple[Any, ...]) -> Response:
        ids, logprobs, sampling, mass, entropy, top_ids, top_logprobs, finish = columns
        M, k = len(self._models), self._requests[index].params.top_logprobs
        text = None
        if (grown := self._texts.get((index, sample))) is not None and grown.stopped:
            text, finish = grown.text, "stop"  # also where the last token reached max_tokens
        elif self._tokenizer is not None:
            text = self._tokenizer.decode_completion(ids)
        pairs = list(zip(top_ids, top_logprobs, strict=True))
        return Response(
            ids,
            logprobs[::M],
            sampling,
            text,
            finish,
            kept_mass=mass,
            entropy=entropy if self._requests[index].params.entropy else None,
            top_logprobs=[pairs[i : i + k] for i in range(0, len(pairs), k)] if k else None,
            model_logprobs=(
                {name: logprobs[m::M] for m, name in enumerate(self._models)} if M > 1 else None
            ),
        )


def settings_of(
    params: SamplingParams, stop_ids: frozenset[int], seed: int, request_id: int
) -> dict[str, Any]:
    """What `_C.Session.submit` takes."""
    stops = set() if params.ignore_eos else {*stop_ids, *params.stop_token_ids}
    return {
        "temperature": float(params.temperature),
        "top_k": params.top_k,
        "top_p": float(params.top_p),
        "min_p": float(params.min_p),
        "repetition_penalty": float(params.repetition_penalty),
        "presence_penalty": float(params.presence_penalty),
        "frequency_penalty": float(params.frequency_penalty),
        "logit_bias": [(int(i), float(b)) for i, b in params.logit_bias.items()],
        "stop_ids": sorted(stops),
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "seed": seed,
        "request_id": request_id,
        "top_logprobs": params.top_logprobs,
        "entropy": params.entropy,
    }
