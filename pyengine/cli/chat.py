"""`pyengine chat`: talk with a model, on a terminal or one line a turn."""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pyengine.cli.arguments import Commands, add_model
from pyengine.cli.conversation import OVERLONG, Conversation
from pyengine.cli.sampling_flags import add_sampling, sampling_params
from pyengine.data.tokenizer import Tokenizer
from pyengine.engine import Engine, SamplingParams, TokenEvent
from pyengine.engine.persist.engine_state import load_tokenizer
from pyengine.errors import ConfigError, DataError, PyengineError
from pyengine.models.source import resolve
from pyengine.reports.writers.jsonl import append_lines

COMMANDS = {
    "/reset": "forget all turns; the system message stays",
    "/system": "TEXT: the system message from the next answer on; without TEXT: none",
    "/undo": "take the last turn back",
    "/save": 'FILE: append the conversation to a .jsonl file, as one line {"messages": [...]}',
    "/quit": "end, as Ctrl-D does",
}
_COMMAND = re.compile(r"/[a-z]+(?=\s|$)")


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "chat",
        parents=[common],
        help="talk with a model",
        description="On a terminal, answers are shown while they are sampled; Ctrl-C stops an "
        "answer, Ctrl-D ends. Elsewhere each line of stdin is a turn.",
        epilog="; ".join(f"{name} {text}" for name, text in COMMANDS.items()),
    )
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--overlong",
        choices=OVERLONG,
        default="error",
        help="a history longer than the context: refuse the turn, or leave the oldest turns out of "
        "what the model reads and say how many (default: error)",
    )
    add_sampling(parser, without=("n", "top_logprobs"))
    parser.set_defaults(run=chat)


def chat(args: argparse.Namespace) -> int:
    """Answer line after line until the input or /quit ends it."""
    params = sampling_params(args, "chat")
    tokenizer = _checked(load_tokenizer(resolve(args.model)), args.model)
    engine = Engine.from_pretrained(args.model, dtype=args.dtype, reference="none")
    room = engine.max_positions - params.max_tokens
    talk = Conversation(tokenizer.encode_chat, room, args.overlong)
    talk.system = args.system
    on_terminal = sys.stdin.isatty()
    session = _Session(engine, params, talk, on_terminal)
    if on_terminal:
        importlib.import_module("readline")  # gives input() its editing and history
        _say(f"{args.model}, {engine.max_positions} tokens of context; {', '.join(COMMANDS)}")
    while (line := _line(on_terminal)) is not None and session.take(line):
        pass
    if talk.shortened:
        _say(f"{talk.shortened} of {session.answers} answers did not see the whole conversation")
    return 0


def _checked(tokenizer: Tokenizer | None, model: str) -> Tokenizer:
    if tokenizer is None:
        raise ConfigError(f"[chat] --model must have a tokenizer but {model} has none")
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"[chat] --model must have a chat template but {model} has none; `pyengine generate "
            "--raw` continues a text"
        )
    return tokenizer


def _line(on_terminal: bool) -> str | None:
    """The next line, stripped; None at the end of the input."""
    try:
        if not on_terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        while True:
            try:
                return input("> " if sys.stdout.isatty() else "")
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit ends)")
    except EOFError:
        print()
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"[chat] stdin must be UTF-8 text but {error}") from error


def _say(words: str) -> None:
    print(f"[{words}]", file=sys.stderr, flush=True)


class _Session:
    """Takes lines: commands and messages."""

    def __init__(
        self, engine: Engine, params: SamplingParams, talk: Conversation, on_terminal: bool
    ) -> None:
        self.engine, self.params, self.talk = engine, params, talk
        self.on_terminal = on_terminal
        self.answers = 0

    def take(self, line: str) -> bool:
        """Does what a line asks for; False if that is to end.

        On a terminal an error is shown and the chat goes on; elsewhere it is raised.
        """
        try:
            command = _COMMAND.match(line)
            if command:
                return self._obey(command[0], line[command.end() :].strip())
            if line.strip():
                self._answer(line.strip())
        except (PyengineError, OSError) as error:
            if not self.on_terminal:
                raise
            print(f"pyengine: {error}", file=sys.stderr)
        return True

    def _obey(self, command: str, text: str) -> bool:
        if command not in COMMANDS:
            raise ConfigError(
                f"[chat] a command must be one of {', '.join(COMMANDS)} but is {command} "
                "(a line that begins with a space is a message)"
            )
        if text and command not in ("/system", "/save"):
            raise ConfigError(f"[chat] {command} must stand alone but is followed by {text!r:.80}")
        if command == "/reset":
            self.talk.reset()
        elif command == "/system":
            self.talk.system = text or None
        elif command == "/undo":
            self.talk.undo()
        elif command == "/save":
            self._save(text)
        return command != "/quit"

    def _save(self, file: str) -> None:
        if not file:
            raise ConfigError("[chat] /save must name a file but names none")
        messages = self.talk.messages
        if not messages:
            raise ConfigError("[chat] /save must have messages to save but there are none")
        append_lines(Path(file).expanduser(), [{"messages": messages}])
        _say(f"{len(messages)} messages appended to {file}")

    def _answer(self, text: str) -> None:
        self.talk.ask(text)
        try:
            answer, reason = self._sample()
        except BaseException:
            self.talk.undo()
            raise
        if reason == "abort" and not answer:
            self.talk.undo()
            _say("stopped before the answer began; the turn is taken back")
            return
        self.talk.answer(answer)
        if reason == "abort":
            _say("stopped; what there is of the answer stays in the conversation")
        elif reason == "length":
            _say(f"cut at --max-tokens {self.params.max_tokens}")

    def _sample(self) -> tuple[str, str | None]:
        """An answer, shown while it comes, and why it ended."""
        ids = self.talk.prompt()
        if self.talk.left_out:
            _say(f"the {self.talk.left_out} oldest messages do not fit and are left out")
        shown: list[str] = []

        def show(event: TokenEvent) -> None:
            shown.append(event.text or "")
            print(event.text, end="", flush=True)

        stop = threading.Event()
        with _on_ctrl_c(stop, self.on_terminal):
            # Each answer has draws of its own: one that is asked for again is another one.
            [group] = self.engine.generate(
                [ids], self.params, request_ids=[self.answers], stream=show, cancel=stop
            )
        self.answers += 1
        response = group.responses[0]
        answer = response.text or ""
        text = "".join(shown)
        # What was held back when it was stopped, such as a stop text's beginning.
        print(answer.removeprefix(text) if answer.startswith(text) else "")
        return answer, response.finish_reason


@contextmanager
def _on_ctrl_c(stop: threading.Event, on_terminal: bool) -> Iterator[None]:
    """On a terminal Ctrl-C sets `stop` meanwhile; elsewhere it ends the program as ever."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    if not on_terminal:
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
