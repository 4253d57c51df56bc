"""`pyengine demo`: the whole loop on a real model, from an empty machine, in minutes."""

from __future__ import annotations

import argparse

from pyengine.cli.align import add_run_arguments, align
from pyengine.cli.arguments import Commands


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="align SmolLM2-135M-Instruct to write more positively, in minutes",
        description="Fetches SmolLM2-135M-Instruct, aligns it online with DPO to a sentiment "
        "reward (VADER) and compares held-out samples before and after.",
    )
    parser.add_argument("--out", default="demo-run", help="folder of the run (default: demo-run)")
    add_run_arguments(parser)
    # The demo's reward is built in, so it never needs the user's code.
    parser.set_defaults(run=lambda args: align(args, "demo"), allow_code=False, model=None)
