"""The command `pyengine`: finds the subcommand, turns errors into a sentence and a code."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout

import pyengine
from pyengine.cli import (
    align,
    chat,
    compare,
    demo,
    doctor,
    generate,
    objectives,
    parts,
    recipes,
    report,
    score,
    train,
)
from pyengine.errors import PyengineError
from pyengine.ranks.launch import joined

_COMMANDS = (
    demo, train, align, generate, chat, compare, score, recipes, parts, objectives, report, doctor,
)  # fmt: skip
USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns 0, 2 for an error of input or environment (one sentence on stderr), 1 for a bug, 130
    after Ctrl-C. --debug lets every error through with its traceback.
    """
    args = _parser().parse_args(argv)
    try:
        with joined(pyengine.__version__) as world, ExitStack() as silence:
            if world.rank > 0:  # the first rank alone speaks, but of errors
                silence.enter_context(redirect_stdout(io.StringIO()))
            if args.threads is not None:
                pyengine.set_num_threads(args.threads)
            return int(args.run(args))
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERNAL_ERROR
    except Exception as error:
        if args.debug:
            raise
        return _say(*_sentence(error))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: one a core")
    parser = argparse.ArgumentParser(
        prog="pyengine", description="Preference alignment of language models in one process."
    )
    parser.add_argument("--version", action="version", version=f"pyengine {pyengine.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_command(commands, common)
    return parser


def _sentence(error: Exception) -> tuple[str, int]:
    if isinstance(error, PyengineError):
        return str(error), USER_ERROR
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return (f"{error.filename}: {reason}" if error.filename else reason), USER_ERROR
    if isinstance(error, MemoryError):
        return "not enough memory", USER_ERROR
    kind = type(error).__name__
    return f"this is a bug in pyengine ({kind}: {error}); --debug shows where", INTERNAL_ERROR


def _say(sentence: str, code: int) -> int:
    print(f"pyengine: {' '.join(sentence.split())}", file=sys.stderr)
    return code
