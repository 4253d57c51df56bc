"""`pyengine align RECIPE`: run a recipe from its first round to a saved model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pyengine.cli.arguments import Commands, add_dtype, add_log, add_set
from pyengine.cli.progress import Progress, silent_after_first
from pyengine.errors import ConfigError
from pyengine.recipes import Recipe, RunResult, load_recipe, run
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.run.samples import before_and_after
from pyengine.recipes.schema.prompt_files import prompt_text
from pyengine.recipes.schema.strict_yaml import read_value
from pyengine.reports.writers.jsonl import read_lines

_SHOWN, _WIDTH = 3, 400


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("align", parents=[common], help="run a recipe")
    parser.add_argument("recipe", help="a .yaml file or the name of a packaged recipe")
    add_run_arguments(parser)
    parser.add_argument("--model", help="another model than the recipe's")
    parser.add_argument("--out", help="folder of the run; default: the recipe's output")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="let the recipe run the Python code that it names as its reward; read that code first",
    )
    parser.set_defaults(run=lambda args: align(args, args.recipe))


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What `align` and `demo` share."""
    parser.add_argument(
        "--small",
        action="store_true",
        help="with the recipe's small settings: a run of a minute or two on two cores",
    )
    parser.add_argument("--objective", help="another objective than the recipe's, its settings too")
    parser.add_argument("--pairing", help="another pairing than the recipe's, its settings too")
    parser.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped or killed"
    )
    parser.add_argument("--rounds", type=int, help="another number of rounds than the recipe's")
    add_set(parser, "sampling.n=8 or objective=ipo")
    add_log(parser)
    add_dtype(parser, default=None)


def align(args: argparse.Namespace, name: str) -> int:
    """Run recipe `name` with what the command line overrides, and print what came of it."""
    return run_and_print(load_recipe(name, changes_of(args), small=args.small), args)


def run_and_print(recipe: Recipe, args: argparse.Namespace) -> int:
    """Run a recipe with progress, and print what came of it."""
    out = Path(args.out or recipe.output)
    with Progress(stream=silent_after_first(sys.stderr)) as progress:
        result = run(
            recipe,
            out,
            resume=args.resume,
            allow_code=args.allow_code,
            allow_log=args.log,
            on_rounds=progress.begin,
            on_report=progress.report,
            on_status=progress.status,
        )
    if result.interrupted:
        again = " ".join(["pyengine", *sys.argv[1:]])
        again += "" if args.resume else " --resume"
        print(f"stopped after round {result.rounds} of {progress.rounds}; continue with: {again}")
        return 130
    print(summary(result))
    return 0


def summary(result: RunResult) -> str:
    """Samples before and after, held-out means, time, and where the files are."""
    folder = RunFolder(result.folder)
    parts = []
    if folder.samples.exists():
        pairs = before_and_after(read_lines(folder.samples), result.rounds)
        parts += [_side_by_side(before, after) for before, after in pairs[:_SHOWN]]
    if result.before and result.after:
        parts.append(
            f"held-out mean reward: {_plus_minus(result.before)} before, "
            f"{_plus_minus(result.after)} after"
        )
    if result.gain:
        parts[-1] += f"; gain {_plus_minus(result.gain)} (standard errors over prompts)"
    minutes, seconds = divmod(round(result.seconds), 60)
    parts.append(f"{result.rounds} rounds, {result.steps} updates, {minutes} min {seconds:02d} s")
    parts.append(f"model    {folder.model}\nmetrics  {folder.metrics}")
    for label, path in (("samples", folder.samples_markdown), ("plot", folder.plot)):
        if path.exists():
            parts[-1] += f"\n{label:<8} {path}"
    return "\n" + "\n\n".join(parts)


def set_values(args: argparse.Namespace) -> dict[str, Any]:
    """What --set says: dotted key -> value. Raises ConfigError."""
    values: dict[str, Any] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"[--set] must be KEY=VALUE, such as sampling.n=8, but is {text!r}")
        values[key] = read_value(value, f"--set {key}")
    return values


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line puts into the recipe: dotted key -> value. Raises ConfigError."""
    flags = ("objective", "pairing", "rounds", "dtype", "model")
    given = {flag: getattr(args, flag) for flag in flags if getattr(args, flag) is not None}
    if "model" in given and not args.model.startswith("pypi:"):
        given["model"] = str(Path(args.model).absolute())
    if args.log:
        given["log"] = args.log
    values = set_values(args)
    for flag in given:
        if flag in values:
            raise ConfigError(
                f"[command line] {flag} must be given once but is as --{flag} and --set"
            )
    return given | values  # settings of a part come after the part


def _side_by_side(before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = [f"prompt  {_short(prompt_text(before['prompt']))}"]
    for name, row in (("before", before), ("after", after)):
        reward = row["rewards"][0]
        score = "  none" if reward is None else f"{reward:+.3f}"
        lines.append(f"{name:<7} {score}  {_short(row['completions'][0] or '')}")
    return "\n".join(lines)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _WIDTH else flat[: _WIDTH - 3] + "..."


def _plus_minus(value: tuple[float, float | None]) -> str:
    mean, error = value
    return f"{mean:+.3f}" if error is None else f"{mean:+.3f} ± {error:.3f}"
