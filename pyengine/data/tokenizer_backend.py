"""What every tokenizer is made of, whichever files it was read from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from pyengine.errors import ModelFileError

_T = TypeVar("_T")


@dataclass
class LoadedTokenizer:
    """A tokenizer as a model's files describe it.

    backend        text to ids and back, of the tokenizers library
    special        texts of the special tokens by name: bos_token, eos_token, ...
    chat_template  jinja2 source; None where the model has none
    end_ids        ids that the model's files name as ends of a text
    files          what `save` writes, by file name
    """

    backend: Backend
    special: dict[str, str]
    chat_template: str | None
    end_ids: set[int]
    files: dict[str, bytes] = field(repr=False)


def guarded(action: Callable[[], _T], rule: str) -> _T:
    """Runs a call into the tokenizers library; its failures, panics included, are one error.

    Raises: ModelFileError with `rule` and the library's reason.
    """
    try:
        return action()
    except BaseException as error:
        # Its Rust panics come as an exception that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(f"[tokenizer] {rule} but: {str(error)[:200]}") from error


def set_begin_and_end(backend: Backend, begin: str | None, end: str | None) -> None:
    """Makes the backend add these tokens around a text (and no others)."""
    tokens = [token for token in (begin, end) if token]
    pattern = [*([begin] if begin else []), "$A", *([end] if end else [])]
    backend.post_processor = TemplateProcessing(
        single=pattern,
        pair=[*pattern, *(f"{part.replace('$A', '$B')}:1" for part in pattern)],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def without_prefix_space(backend: Backend) -> Backend:
    """The same tokenizer, but the first word gets no space of its own."""
    state = json.loads(backend.to_str())
    changed = _drop_prefix(state.get("normalizer")) | _drop_prefix(state.get("pre_tokenizer"))
    normalizer = state.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "Prepend":
        state["normalizer"], changed = None, True
    return Backend.from_str(json.dumps(state)) if changed else backend


def _drop_prefix(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    changed = False
    for child in list(inner):
        if child.get("type") == "Prepend":
            inner.remove(child)
            changed = True
        changed |= _drop_prefix(child)
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
        step["prepend_scheme"], changed = "never", True
    if step.get("add_prefix_space"):
        step["add_prefix_space"], changed = False, True
    return changed
