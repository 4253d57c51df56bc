"""One conversation: its messages, and the token ids that the next answer is sampled from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from pyengine.data.chat import Message
from pyengine.errors import ConfigError, RequestError

Overlong = Literal["error", "drop_oldest"]
OVERLONG = get_args(Overlong)


class Conversation:
    """Turns of a user and an assistant, after a system message or none.

    A turn is [user message, assistant message]; the last one may still lack its answer.

    encode     messages -> token ids of the prompt that the assistant continues
    room       most tokens that such a prompt may have
    overlong   a longer history: "error", or "drop_oldest": leave the oldest turns out of the prompt
               (never out of `messages`)
    left_out   messages that the last prompt left out
    shortened  prompts so far that left some out
    """

    def __init__(
        self, encode: Callable[[Sequence[Message]], list[int]], room: int, overlong: Overlong
    ) -> None:
        if room < 1:
            raise ConfigError(
                f"[chat] --max-tokens must leave room for a prompt in the model's context but "
                f"leaves {room} tokens"
            )
        self.system: str | None = None
        self.turns: list[list[Message]] = []
        self.left_out = self.shortened = 0
        self._encode, self._room, self._overlong = encode, room, overlong

    @property
    def messages(self) -> list[Message]:
        """All of them, the system message first."""
        return self._from(0)

    def ask(self, text: str) -> None:
        """Begins a turn."""
        self.turns.append([{"role": "user", "content": text}])

    def answer(self, text: str) -> None:
        """Ends the turn that `ask` began."""
        self.turns[-1].append({"role": "assistant", "content": text})

    def undo(self) -> None:
        """Takes the last turn back. Raises RequestError where there is none."""
        if not self.turns:
            raise RequestError("[chat] there must be a turn to undo but there is none")
        self.turns.pop()

    def reset(self) -> None:
        """Takes every turn back; the system message stays."""
        self.turns.clear()

    def prompt(self) -> list[int]:
        """Token ids to sample the next answer from.

        Raises RequestError where they are too many, and for "drop_oldest" where the last turn alone
        is too long; DataError and TemplateError of the template.
        """
        ids = self._encode(self._from(0))
        self.left_out = 0
        if len(ids) <= self._room:
            return ids
        rule = f"[chat] conversation must fit {self._room} tokens, the model's context less "
        rule += f"--max-tokens, but has {len(ids)}"
        if self._overlong == "error":
            raise RequestError(
                f"{rule}: take turns back with /undo or /reset, or start with "
                "--overlong drop_oldest"
            )
        # A prompt gets shorter with every turn that it leaves out.
        first = bisect_left(range(len(self.turns)), True, key=self._fits)
        if first == len(self.turns):
            raise RequestError(f"{rule}, too many of them in the last message (or the system's)")
        self.left_out = sum(map(len, self.turns[:first]))
        self.shortened += 1
        return self._encode(self._from(first))

    def _fits(self, first: int) -> bool:
        return len(self._encode(self._from(first))) <= self._room

    def _from(self, first: int) -> list[Message]:
        system: list[Message] = []
        if self.system is not None:
            system.append({"role": "system", "content": self.system})
        return system + [message for turn in self.turns[first:] for message in turn]
