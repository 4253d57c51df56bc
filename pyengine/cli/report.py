"""`pyengine report RUN [RUN2 ...]`: a run's rounds as a table, findings in words, a plot, and one
HTML page of it or of several side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyengine.cli.arguments import Commands
from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.reports.page.findings.available import findings_of
from pyengine.reports.page.layout import write_page
from pyengine.reports.page.record import RunRecord, read_runs
from pyengine.reports.plot import plot
from pyengine.reports.table import table

_PAGE = "report.html"


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "report",
        parents=[common],
        help="tables, findings, and an HTML page of one run or of several",
        description="Prints each run's rounds and what its figures say, and writes one HTML page "
        "with curves, findings and samples that loads nothing from anywhere.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="folder of a run, finished or not"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help=f"where the page goes; default: {_PAGE} in the run's folder, of several runs in the "
        "working directory",
    )
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument(
        "--plot", metavar="FILE", help="where to draw a single run; default: its plot.png"
    )
    parser.add_argument("--no-plot", action="store_true", help="draw nothing")
    parser.set_defaults(run=report)


def report(args: argparse.Namespace) -> int:
    """Print tables and findings, write the page, draw the plot."""
    runs = read_runs(args.folders)
    if args.plot is not None and len(runs) > 1:
        raise ConfigError(f"[report] --plot must be given with one run but there are {len(runs)}")
    if not args.no_html:
        single = RunFolder(args.folders[0]).path / _PAGE
        target = Path(args.html or (single if len(runs) == 1 else _PAGE))
        write_page(runs, target)
    print("\n\n".join(_text(run, len(runs) > 1) for run in runs))
    if not args.no_html:
        print(f"page  {target}")
    if len(runs) == 1 and not args.no_plot:
        _draw(runs[0], args)
    return 0


def _text(run: RunRecord, several: bool) -> str:
    lines = [run.name] if several else []
    lines.append(table(run.rows))
    lines += [f"{found.level}: {found.text}" for found in findings_of(run)]
    return "\n".join(lines)


def _draw(run: RunRecord, args: argparse.Namespace) -> None:
    target = Path(args.plot or RunFolder(args.folders[0]).plot)
    try:
        plot(run.rows, target)
    except MissingDependencyError as error:
        if args.plot is not None:
            raise
        print(f"no plot: {error}")
        return
    print(f"plot  {target}")
