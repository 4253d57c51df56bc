"""`pyengine recipes`: list the packaged recipes, or show one."""

from __future__ import annotations

import argparse

from pyengine.cli.arguments import Commands
from pyengine.errors import ConfigError
from pyengine.recipes.schema.packaged import packaged_path, packaged_recipes


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("recipes", parents=[common], help="list or show packaged recipes")
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", help="with show: which recipe")
    parser.set_defaults(run=recipes)


def recipes(args: argparse.Namespace) -> int:
    """Print names with the first comment line of each file, or one file."""
    if args.action == "show":
        if args.name is None:
            raise ConfigError(
                f"[recipes] show needs a name: one of {', '.join(packaged_recipes())}"
            )
        print(packaged_path(args.name).read_text(encoding="utf-8"), end="")
        return 0
    if args.name is not None:
        raise ConfigError(f"[recipes] list takes no name but got {args.name!r}")
    for name in packaged_recipes():
        first_line = packaged_path(name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<12} {first_line.lstrip('# ')}")
    return 0
