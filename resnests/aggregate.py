"""Make tables, figures and a report from finished runs. Imports no torch."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

import pandas as pd

from resnests import __version__
from resnests.errors import USER_ERROR, UserError, require_one_of, run_command_line
from resnests.results import output
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.measured import SPLITS, Measured, choose, measured
from resnests.results.select import select
from resnests.results.stats import at_best_epoch
from resnests.results.tables import STATISTICS

EXAMPLES = """examples:
  python aggregate.py                        the tables of runs/, as markdown
  python aggregate.py --statistic median     medians with minimum and maximum
  python aggregate.py --compare standard     differences to Standard, paired by seed
  python aggregate.py --compare arch=resnet18    to any value of any axis, optimizer=adamw say
  python aggregate.py --compare paper        beside the published numbers
  python aggregate.py --output tables.tex    LaTeX; also .md, .csv (a row a run), .html (report)
  python aggregate.py --output results/      everything, with the figures as PNG, PDF and CSV
  python aggregate.py --metric f1            tables of another metric; --split val: held-out images
  python aggregate.py --select optimizer.lr  of each cell the rate that is best on held-out images
  python aggregate.py --analysis             what task=analyze found; with --output DIR figures too
  python aggregate.py --confusion            confusion matrices, of runs with predictions=true
  python aggregate.py --to tensorboard       finished runs into a tracker; also wandb, mlflow
  python aggregate.py --to mlflow --watch    the same while they are trained, until all are over
  python aggregate.py arch=resnet* seed=0,1  of these runs only; any key of the configuration
  python aggregate.py --list status=failed   their directories
  python aggregate.py --show arch=resnet20 variant=standard seed=0    one run, whole
  python aggregate.py --best 3               the best runs on held-out images
  python aggregate.py --delete status=failed says which runs that would delete; --yes deletes them
  python aggregate.py --serve                the page alive, on http://127.0.0.1:8642
  python aggregate.py --status --watch       how far a sweep is, seen from another terminal
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        description="Make tables, figures and a report from the runs that run.py made.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--version", action="version", version=f"resnests {__version__}")
    words = "directory with the runs (default: runs), and key=value for which of them are meant"
    add("words", nargs="*", metavar="runs | key=value", help=words)
    where = "file, whose ending says the format, or directory, for all of them"
    add("--output", metavar="PATH", help=where)
    add("--format", choices=output.FORMATS, help="format, where the ending does not say it")
    shown = "; ".join(f"{name}: {meaning}" for name, meaning in STATISTICS.items())
    shown = shown.format(cut=", cut at 0 and 100%")
    shown = f"what the cells show. {shown} (default: mean)".replace("%", "%%")
    add("--statistic", choices=STATISTICS, help=shown)
    table = "add a table of differences to standard, paper, or KEY=VALUE (may be given twice)"
    add("--compare", metavar="standard | paper | KEY=VALUE", action="append", help=table)
    best = "best: of the highest accuracy on a held-out split"
    add("--epoch", choices=("last", "best"), default="last", help=best)
    add("--analysis", action="store_true", help="tables of what task=analyze measured instead")
    matrix = "a confusion matrix of each cell instead, of runs with predictions=true"
    add("--confusion", action="store_true", help=matrix)
    one = "with --output DIR: a figure with the curves of all cells that are meant, too"
    add("--together", action="store_true", help=one)
    add("--trials", action="store_true", help="with the trials of searches, which are no results")
    add("--status", action="store_true", help="instead of tables, how far every cell is")
    alive = "instead of tables, serve the page alive on 127.0.0.1, at this port (default: 8642)"
    add("--serve", metavar="PORT", type=int, nargs="?", const=8642, help=alive)
    other = "with --serve: another address of this machine; who knows the printed token may look"
    add("--host", metavar="HOST", help=other)
    paths = "instead of tables, the directories of the runs; with --best, of those"
    add("--list", action="store_true", help=paths)
    whole = "instead of tables, the one run that is meant: values, numbers, the end of its log"
    add("--show", action="store_true", help=whole)
    best = "instead of tables, the N complete runs with the highest accuracy"
    add("--best", metavar="N", type=int, help=best)
    gone = "instead of tables, delete the runs that are meant; without --yes it only says which"
    add("--delete", action="store_true", help=gone)
    add("--yes", action="store_true", help="with --delete: do it")
    metric = "what tables and figures are of (default: accuracy): also loss, f1, ema_accuracy, ..."
    add("--metric", metavar="NAME", default="accuracy", help=metric)
    add("--split", choices=SPLITS, default="test", help="of the test images, or of held-out ones")
    chosen = "of each cell only the value of KEY, such as optimizer.lr, that is best on validation"
    add("--select", metavar="KEY", help=chosen)
    by = "with --best: validation (default), or test, which then decides"
    add("--by", metavar="METRIC", help=f"{by}; with --select: val_accuracy (default), val_f1, ...")
    again = "with --status or --to: again and again, until Ctrl-C; --to ends with the last run"
    add("--watch", action="store_true", help=again)
    sends = "send the finished runs to tensorboard, wandb or mlflow instead (may be given twice)"
    add("--to", metavar="TRACKER", action="append", help=sends)
    return made


def _aggregate() -> None:
    """Do what the command line asks for; raise a UserError where its options exclude each other."""
    arguments = parser().parse_intermixed_args()  # words may stand behind options
    arguments.output = arguments.output and os.path.expanduser(arguments.output)
    root, query = _runs_and_query(arguments.words)
    if arguments.to:
        from resnests.commands.queue import is_queued
        from resnests.commands.track import export

        alone = parser().parse_intermixed_args(arguments.words)
        alone.to, alone.watch = arguments.to, arguments.watch
        if arguments != alone:
            raise UserError("--to goes with no other option but --watch")
        return export(root, arguments.to, arguments.watch, lambda: is_queued(root), query)
    if arguments.watch and not arguments.status:
        raise UserError("--watch goes with --status or --to")
    _require_by(arguments)
    if arguments.yes and not arguments.delete:
        raise UserError("--yes goes with --delete")
    if arguments.status:
        from resnests.commands.status import show

        return show(root, arguments.watch, arguments.trials, query)
    if arguments.host is not None and arguments.serve is None:
        raise UserError("--host goes with --serve")
    if arguments.serve is not None:
        return _serve(root, query, arguments)
    if arguments.confusion and (arguments.analysis or arguments.compare or arguments.select):
        raise UserError("--confusion goes neither with --analysis nor --compare nor --select")
    plan = output.plan(arguments.output, arguments.format, arguments.statistic, arguments.compare)
    if arguments.together and plan.format not in (None, "html"):
        raise UserError("--together goes with --output DIR or a page, as it draws a figure")
    single = arguments.list or arguments.show or arguments.delete or arguments.best is not None
    runs, warnings = read_runs(root, arguments.trials, planned=not single and plan.format != "csv")
    runs = select(runs, query)
    if single:
        return _single_runs(runs, query, arguments)
    what = measured(runs, arguments.metric, arguments.split, arguments.epoch)
    if arguments.select:
        runs, what = choose(runs, arguments.select, arguments.by or "val_accuracy", what)
    if arguments.epoch == "best":
        runs = at_best_epoch(runs)
    if not what.is_accuracy and arguments.compare and "paper" in arguments.compare:
        raise UserError(f"--compare paper: the paper has test accuracies, no {what.words}")
    plan = replace(plan, what=what)
    runs, copies = drop_copies(label_rows(runs))
    kinds = arguments.analysis, arguments.confusion, arguments.together
    result = output.Results(runs, [*warnings, *copies], plan, *kinds)
    output.write(result)
    for line in result.problems:
        print(f"aggregate.py: warning: {line}", file=sys.stderr)


def _serve(root: str, query: list[str], arguments: argparse.Namespace) -> None:
    """Serve the page, which has words of its own; raise a UserError."""
    from resnests.commands.serve import serve

    alone = parser().parse_intermixed_args(arguments.words)
    for name in ("serve", "host", "statistic", "compare", "epoch"):
        setattr(alone, name, getattr(arguments, name))
    if arguments != alone or query:
        allowed = "--host, --statistic, --compare and --epoch"
        raise UserError(f"--serve goes with {allowed}; the page itself chooses runs")
    if not os.path.isdir(root):
        expected = "expected one with runs, which run.py makes (default: runs)"
        raise UserError(f"{root}: no such directory; {expected}")
    plan = output.plan(None, "html", arguments.statistic, arguments.compare)
    plan = replace(plan, what=Measured(epoch=arguments.epoch))
    serve(root, arguments.serve, arguments.host, plan)


def _require_by(arguments: argparse.Namespace) -> None:
    """Raise a UserError where --by fits neither --best nor --select, as the test set decides
    nothing.
    """
    if arguments.by is None:
        return
    if arguments.best is not None:
        require_one_of("--by", arguments.by, ("validation", "test"))
    elif arguments.select is None:
        raise UserError("--by goes with --best or --select")
    elif not arguments.by.startswith("val_"):
        raise UserError(
            f"--by {arguments.by}: expected val_accuracy, or another of held-out images"
        )


def _runs_and_query(words: list[str]) -> tuple[str, list[str]]:
    """Return the directory among `words`, and those that choose runs; raise a UserError."""
    words = [os.path.expanduser(word) for word in words]
    query = [word for word in words if "=" in word and not os.path.isdir(word)]
    roots = [word for word in words if word not in query]
    if len(roots) > 1:
        raise UserError(f"{roots[1]}: expected one directory of runs; {roots[0]} is one already")
    return roots[0] if roots else "runs", query


def _single_runs(runs: pd.DataFrame, query: list[str], arguments: argparse.Namespace) -> None:
    """Print or delete the runs that are meant; exit with status 1 where some could not be."""
    from resnests.commands import runs as commands

    asked = [arguments.show, arguments.delete, arguments.list or arguments.best is not None]
    if sum(asked) > 1 or arguments.output:
        alone = "--show, --delete, and --list or --best go neither together nor with --output"
        raise UserError(alone)
    if arguments.best is not None:
        commands.print_best(
            runs, arguments.best, arguments.by or "validation", paths_only=arguments.list
        )
    elif arguments.list:
        commands.print_paths(runs)
    elif arguments.show:
        commands.print_run(runs)
    elif not query:
        raise UserError("--delete: expected words that say which runs, such as status=failed")
    else:
        sys.exit(commands.delete_runs(runs, arguments.yes))


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
