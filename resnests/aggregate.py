"""Tables, figures and a report from finished runs: python aggregate.py [runs]. Imports no torch."""

from __future__ import annotations

import argparse
import sys

from resnests.errors import USER_ERROR, UserError, run_command_line
from resnests.results import output
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.stats import at_best_epoch
from resnests.results.tables import STATISTICS

EXAMPLES = """examples:
  python aggregate.py                        the tables of runs/, as markdown
  python aggregate.py --statistic median     medians with minimum and maximum
  python aggregate.py --compare standard     differences to Standard, paired by seed
  python aggregate.py --compare paper        beside the published numbers
  python aggregate.py --output tables.tex    LaTeX; also .md, .csv (a row a run), .html (report)
  python aggregate.py --output results/      everything, with the figures as PNG, PDF and CSV
  python aggregate.py --analysis             what task=analyze found; with --output DIR figures too
  python aggregate.py --to tensorboard       finished runs into a tracker; also wandb, mlflow
  python aggregate.py --status --watch       how far a sweep is, seen from another terminal
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="Make tables, figures and a report from the runs that run.py made.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("runs", nargs="?", default="runs", help="directory with the runs (default: runs)")
    where = "file, whose ending says the format, or directory, for all of them"
    add("--output", metavar="PATH", help=where)
    add("--format", choices=output.FORMATS, help="format, where the ending does not say it")
    shown = "; ".join(f"{name}: {meaning}" for name, meaning in STATISTICS.items())
    shown = f"what the cells show. {shown} (default: mean)".replace("%", "%%")
    add("--statistic", choices=STATISTICS, help=shown)
    table = "add a table of differences (may be given twice)"
    add("--compare", choices=output.COMPARISONS, action="append", help=table)
    best = "best: of the highest accuracy on a held-out split"
    add("--epoch", choices=("last", "best"), default="last", help=best)
    add("--analysis", action="store_true", help="tables of what task=analyze measured instead")
    add("--trials", action="store_true", help="with the trials of searches, which are no results")
    add("--status", action="store_true", help="instead of tables, how far every cell is")
    again = "with --status: again every two seconds, until Ctrl-C"
    add("--watch", action="store_true", help=again)
    sends = "send the finished runs to tensorboard, wandb or mlflow instead (may be given twice)"
    add("--to", metavar="TRACKER", action="append", help=sends)
    return made


def _aggregate() -> None:
    arguments = parser().parse_args()
    if arguments.to:
        from resnests.commands.track import export

        alone = parser().parse_args([arguments.runs])
        alone.to = arguments.to
        if arguments != alone:
            raise UserError("--to sends everything, and goes with no other option")
        return export(arguments.runs, arguments.to)
    if arguments.watch and not arguments.status:
        raise UserError("--watch goes with --status")
    if arguments.status:
        from resnests.commands.status import show

        return show(arguments.runs, arguments.watch, arguments.trials)
    plan = output.plan(
        arguments.output, arguments.format, arguments.statistic, arguments.compare, arguments.epoch
    )
    runs, warnings = read_runs(arguments.runs, arguments.trials)
    if arguments.epoch == "best":
        runs = at_best_epoch(runs)
    runs, copies = drop_copies(label_rows(runs))
    result = output.Results(runs, [*warnings, *copies], plan, arguments.analysis)
    output.write(result)
    for line in result.problems:
        print(f"aggregate.py: warning: {line}", file=sys.stderr)


def main() -> None:
    """Run the command line: exit status 2 and one line where the user must mend something."""
    run_command_line(_main)


def _main() -> None:
    try:
        _aggregate()
    except UserError as error:
        print(f"aggregate.py: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except BrokenPipeError:
        raise
    except OSError as error:
        place = error.filename or "standard output"
        sys.exit(f"aggregate.py: {place}: {error.strerror}")


if __name__ == "__main__":
    main()
