"""`pyengine report DIR`: the table of a run's rounds, and its plot drawn anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyengine.cli.arguments import Commands
from pyengine.errors import ConfigError
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.reports.plot import plot
from pyengine.reports.table import table
from pyengine.reports.writers.jsonl import read_lines


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("report", parents=[common], help="table and plot of a run")
    parser.add_argument("folder", help="folder of a run, finished or not")
    parser.add_argument("--plot", metavar="FILE", help="where to draw; default: the run's plot.png")
    parser.add_argument("--no-plot", action="store_true", help="print the table only")
    parser.set_defaults(run=report)


def report(args: argparse.Namespace) -> int:
    """Print the table and draw the plot."""
    folder = RunFolder(args.folder)
    if not folder.metrics.is_file():
        raise ConfigError(
            f"[report] {folder.path} must be the folder of a run but has no metrics.jsonl"
        )
    rows = read_lines(folder.metrics)
    print(table(rows))
    if not args.no_plot:
        target = Path(args.plot or folder.plot)
        plot(rows, target)
        print(f"plot  {target}")
    return 0
