"""Tokens as they are drawn: what a streaming callback receives, and text that grows with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for a character's first bytes
_MOST_INCOMPLETE = 3  # of four bytes; more of them are broken ones that nothing completes


@dataclass(frozen=True)
class TokenEvent:
    """One token of one sample, as soon as its step is done.

    request        the prompt's place in the call
    sample         which of its n samples
    position       of the token in the response
    token_id       the token
    logprob        its raw log-prob
    text           what it adds to the text, less what is still open: a character's first bytes, or
                   what may be a stop text's beginning; a response's pieces make up its text, unless
                   it was cancelled; None if there is no tokenizer
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
    """A response's text as it grows with its tokens, cut before the first stop text.

    Decodes a window of tokens, not all of them: what a token adds depends on few before it.

    decode   the text that a response's ids add to what they follow, so a window's too
    text     whole characters so far; after a stop text, what stands before it
    stopped  whether a stop text was found
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._window = 0  # first token that is decoded again
        self._whole = 0  # tokens that end with a whole character
        self._known = 0  # characters of the window that are in `text`
        self._shown = 0  # characters of `text` that have been given out

    def add(self, token: int, may_stop: bool = True) -> None:
        """may_stop: whether a stop text that the token completes counts."""
        self._ids.append(token)
        window = self._decode(self._ids[self._window :])
        whole = window[:-_MOST_INCOMPLETE] + window[-_MOST_INCOMPLETE:].rstrip(_INCOMPLETE)
        before = len(self.text)
        self._extend(whole)
        if may_stop:
            self._cut(before)
        if whole == window and not self.stopped:
            self._window, self._whole = self._whole, len(self._ids)
            self._known = len(self._decode(self._ids[self._window :]))

    def show(self, last: bool) -> str:
        """What has not been given out and is settled; at the last token everything."""
        if last and not self.stopped:
            self._extend(self._decode(self._ids[self._window :]))
        end = len(self.text) if last else len(self.text) - self._open()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _extend(self, window: str) -> None:
        self.text += window[self._known :]
        self._known = max(self._known, len(window))

    def _cut(self, before: int) -> None:
        """Cuts before the first stop text of those that end after the first `before` characters."""
        found = (self.text.find(s, max(before - len(s) + 1, 0)) for s in self._stops)
        cut = min((i for i in found if i >= 0), default=-1)
        if cut >= 0:
            self.text, self.stopped = self.text[:cut], True

    def _open(self) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        longest = max((len(s) - 1 for s in self._stops), default=0)
        ends = range(min(longest, len(self.text)), 0, -1)
        return next((k for k in ends if any(self._opens(s, k) for s in self._stops)), 0)

    def _opens(self, stop: str, length: int) -> bool:
        return length < len(stop) and self.text.endswith(stop[:length])
