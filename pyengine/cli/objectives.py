"""`pyengine objectives`: what an update can minimise."""

from __future__ import annotations

import argparse

from pyengine.cli.arguments import Commands
from pyengine.errors import ConfigError
from pyengine.objectives.catalogue import Entry, catalogue, markdown


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "objectives", parents=[common], help="list objectives: formula, inputs, paper"
    )
    parser.add_argument("name", nargs="?", help="one of them in full")
    parser.add_argument("--markdown", action="store_true", help="all of them as a page")
    parser.set_defaults(run=objectives)


def objectives(args: argparse.Namespace) -> int:
    """Print a paragraph for each, one in full, or the page."""
    if args.markdown:
        print(markdown(), end="")
        return 0
    entries = {entry.name: entry for entry in catalogue()}
    if args.name is None:
        print("\n\n".join(_short(entry) for entry in entries.values()))
        return 0
    if args.name not in entries:
        raise ConfigError(
            f"[objectives] name must be one of {', '.join(entries)} but is {args.name!r}"
        )
    print(_full(entries[args.name]))
    return 0


def _short(entry: Entry) -> str:
    return f"{entry.name:<14} {entry.formula}\n{'':<15}{entry.needs}\n{'':<15}{entry.source}"


def _full(entry: Entry) -> str:
    options = [f"  {name:<20} {default!r}, {rule}" for name, default, rule in entry.hyperparameters]
    parts = [
        f"{entry.name}: pe.objectives.{entry.cls.__name__}",
        entry.formula,
        entry.text,
        "\n".join(["hyperparameters, with their defaults:", *options]) if options else "",
        f"needs: {entry.needs}",
        f"source: {entry.source}",
    ]
    return "\n\n".join(part for part in parts if part)
