"""Tokens as they are drawn: what a streaming callback receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenEvent:
    """One token of one sample, as soon as its step is done.

    request        the prompt's place in the call
    sample         which of its n samples
    position       of the token in the response
    token_id       the token
    logprob        its raw log-prob
    text           what it adds to the text, "" while a character is incomplete; None if there is no
                   tokenizer
    finish_reason  why the response ends with it, or None
    """

    request: int
    sample: int
    position: int
    token_id: int
    logprob: float
    text: str | None
    finish_reason: str | None


# Called with each token; returning False ends that sample ("abort").
Stream = Callable[[TokenEvent], bool | None]


class TokenText:
    """Text that grows with its tokens, cut at whole characters.

    Decodes a window of tokens, not all of them: what a token adds depends on few before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = 0  # first token of the window
        self._shown = 0  # tokens whose text has been given out

    def add(self, token: int, last: bool = False) -> str:
        """What the token adds; the rest, complete or not, when it is the last."""
        self._ids.append(token)
        before = self._decode(self._ids[self._window : self._shown])
        now = self._decode(self._ids[self._window :])
        if now.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return ""
        self._window, self._shown = self._shown, len(self._ids)
        return now[len(before) :]
