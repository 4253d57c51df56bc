"""What a generate call is given: prompts become token ids here, and requests get their identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from pyengine.data.fitting import token_ids
from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.infer.generation import Request
from pyengine.errors import DataError, RequestError, TemplateError

_SEED_MIX = 0x9E3779B97F4A7C15

Messages = list[dict[str, Any]]
Prompt = str | Messages | list[int]


def prompt_list(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts of a call. Raises RequestError for what is one prompt or none."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise RequestError(
            f"[generate] prompts must be a list of prompts but is one {type(prompts).__name__}"
        )
    return list(prompts)


def request_id_list(count: int, given: Sequence[int] | None) -> list[int]:
    """The identity of each request, by default its position. Raises RequestError."""
    if given is None:
        return list(range(count))
    if len(given) != count:
        raise RequestError(f"[generate] request_ids must have {count} entries but has {len(given)}")
    for i, request_id in enumerate(given):
        if not isinstance(request_id, Integral) or not -(2**63) <= request_id < 2**63:
            raise RequestError(
                "[generate] request_ids must be integers of 64 bits "
                f"but request_ids[{i}] is {request_id!r}"
            )
    return [int(i) for i in given]


def params_list(
    count: int, given: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """The sampling parameters of each request. Raises RequestError."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    rule = "[generate] params must be SamplingParams or a list of them"
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RequestError(f"{rule} but is {type(given).__name__}")
    for i, each in enumerate(given):
        if not isinstance(each, SamplingParams):
            raise RequestError(f"{rule} but params[{i}] is {type(each).__name__}")
    if len(given) != count:
        raise RequestError(f"[generate] params must have {count} entries but has {len(given)}")
    return list(given)


def encode(index: int, prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    """Token ids of prompts[index]. Raises RequestError, DataError or TemplateError, naming it."""
    ids = token_ids(prompt)
    if ids is not None:
        return ids
    if tokenizer is None:
        raise RequestError(
            f"[generate] prompts[{index}] must be token ids since the model has no tokenizer "
            f"but is {type(prompt).__name__}"
        )
    try:
        return tokenizer.encode_prompt(prompt)
    except (DataError, RequestError, TemplateError) as error:
        raise type(error)(f"[generate] prompts[{index}] cannot be encoded: {error}") from error


def requests_of(
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    request_ids: Sequence[int] | None,
    tokenizer: Tokenizer | None,
    engine_seed: int,
) -> list[Request]:
    """The requests of a call. Raises RequestError, DataError or TemplateError."""
    ids = request_id_list(len(prompts), request_ids)
    each = params_list(len(prompts), params)
    return [
        Request(encode(i, prompt, tokenizer), request_id, own, draw_key(own.seed, engine_seed))
        for i, (prompt, request_id, own) in enumerate(zip(prompts, ids, each, strict=True))
    ]


def draw_key(seed: int, engine_seed: int) -> int:
    """A request's seed with the engine's mixed in, as a signed integer of 64 bits."""
    key = (seed ^ (engine_seed * _SEED_MIX)) & (2**64 - 1)
    return key - 2**64 if key >= 2**63 else key


def as_written(prompt: Prompt) -> str | Messages | None:
    """A prompt of text or messages as the caller wrote it; None for ids."""
    return None if token_ids(prompt) is not None else cast("str | Messages", prompt)


def stop_ids(tokenizer: Tokenizer | None, *configs: Mapping[str, Any]) -> frozenset[int]:
    """Every id that any source says ends a response."""
    ids: set[int] = set() if tokenizer is None else set(tokenizer.stop_ids)
    for config in configs:
        eos = config.get("eos_token_id")
        ids.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return frozenset(ids)
