"""`pyengine recipes`: list the packaged recipes, or show one."""

from __future__ import annotations

import argparse
import textwrap

from pyengine.cli.arguments import Commands
from pyengine.errors import ConfigError
from pyengine.recipes.schema.packaged import packaged_path, packaged_recipes
from pyengine.recipes.schema.summary import Summary, summary_of

_WIDTH = 110


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("recipes", parents=[common], help="list or show packaged recipes")
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument(
        "name", nargs="?", help="with show: which recipe; with list: a word that it must have"
    )
    parser.set_defaults(run=recipes)


def recipes(args: argparse.Namespace) -> int:
    """Print what each recipe is, or one file."""
    if args.action == "show":
        if args.name is None:
            raise ConfigError(
                f"[recipes] show needs a name: one of {', '.join(packaged_recipes())}"
            )
        print(packaged_path(args.name).read_text(encoding="utf-8"), end="")
        return 0
    texts = [described(summary_of(name)) for name in packaged_recipes()]
    found = [text for text in texts if args.name is None or args.name.lower() in text.lower()]
    if not found:
        raise ConfigError(f"[recipes] a packaged recipe must have {args.name!r} but none has")
    print("\n".join(found))
    return 0


def described(summary: Summary) -> str:
    """Name, system and paper; what it does; the paper's claim; parts and data."""
    head = " · ".join(filter(None, (summary.system, summary.paper)))
    parts = [f"loop {summary.loop}", *(f"{kind} {name}" for kind, name in summary.parts.items())]
    lines = [
        summary.does,
        *([f"claim: {summary.claim}"] if summary.claim else []),
        f"parts: {', '.join(parts)}; data: {', '.join(summary.data)}",
    ]
    wrapped = [
        textwrap.fill(t, _WIDTH, initial_indent="  ", subsequent_indent="    ") for t in lines
    ]
    return "\n".join([f"{summary.name}{f' ({head})' if head else ''}", *wrapped])
