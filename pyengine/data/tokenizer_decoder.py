"""Token ids back to text: of whole texts, and of responses, which follow other text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tokenizers import Tokenizer as Backend

_LOST = "\N{REPLACEMENT CHARACTER}"


class TextDecoder:
    """The text of token ids, which depends on nothing but the ids.

    U+FFFD stands for what is no text: an id without a token, and where a vocabulary spells rare
    characters in tokens of one byte each, every byte that is not part of a whole character (as in
    SentencePiece; the tokenizers library gives up the whole characters beside it too).

    vocabulary  the ids that have a token
    """

    def __init__(self, backend: Backend) -> None:
        self.vocabulary = frozenset(backend.get_vocab(with_added_tokens=True).values())
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        self._bytes = _byte_tokens(backend)
        self._all_text = self.vocabulary - self._bytes.keys()
        self._context: tuple[list[int], int] | None = None

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, follows: bool = False
    ) -> str:
        """The text of the ids, or what they add to a text that they follow.

        The difference is a blank at the beginning, which some decoders take away from a text.
        """
        if skip_special_tokens and not self._special.isdisjoint(ids):
            ids = [number for number in ids if number not in self._special]
        if self._all_text.issuperset(ids) or not (lost := self._lost(ids)):
            return self._decode(ids, skip_special_tokens, follows)
        text = ""
        for is_lost, places in groupby(range(len(ids)), key=lost.__contains__):
            run = [ids[place] for place in places]
            if is_lost:
                text += _LOST * len(run)
            else:
                text += self._decode(run, skip_special_tokens, follows or bool(text))
        return text

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool, follows: bool) -> str:
        context, length = self._known_context() if follows else ([], 0)
        text = self._backend.decode([*context, *ids], skip_special_tokens=skip_special_tokens)
        return str(text)[length:]

    def _known_context(self) -> tuple[list[int], int]:
        """A token to decode others after, and the length of its text; none if all are blank."""
        if self._context is None:
            choices = ([number] for number in sorted(self.vocabulary - self._special))
            self._context = next(
                ((ids, len(self._backend.decode(ids))) for ids in choices if self._is_whole(ids)),
                ([], 0),
            )
        return self._context

    def _is_whole(self, ids: list[int]) -> bool:
        """Whether the text is a word's or a sign's, and stays so whatever follows."""
        text, twice = self._backend.decode(ids), self._backend.decode(ids * 2)
        is_word = text.isprintable() and text == text.strip() and _LOST not in text
        return bool(text) and is_word and twice.startswith(text)

    def _lost(self, ids: Sequence[int]) -> set[int]:
        """Places of ids that stand for no text."""
        lost = {place for place, number in enumerate(ids) if number not in self.vocabulary}
        for is_byte, places in groupby(range(len(ids)), key=lambda k: ids[k] in self._bytes):
            if is_byte:
                run = list(places)
                lost.update(run[i] for i in _broken(bytes(self._bytes[ids[k]] for k in run)))
        return lost


def _byte_tokens(backend: Backend) -> dict[int, int]:
    """Id -> byte of the tokens <0x00> to <0xFF>, if the decoder reads them as bytes."""
    if backend.decoder is None or backend.decoder.decode(["<0x61>"]) != "a":
        return {}
    ids = {backend.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    return {number: byte for number, byte in ids.items() if number is not None}


def _broken(run: bytes) -> Iterator[int]:
    """Places of bytes that are not part of a whole UTF-8 character."""
    start = 0
    while start < len(run):
        try:
            run[start:].decode("utf-8")
            return
        except UnicodeDecodeError as error:
            yield from range(start + error.start, start + error.end)
            start += error.end
