"""Make tables, figures and a report from finished runs. Imports no torch."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from resnests.commands.options import TABLES, mode_of, parser, require_in_csv
from resnests.errors import USER_ERROR, UserError, run_command_line
from resnests.results import output
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.measured import ACCURACY, Measured, choose, measured
from resnests.results.notes import UNFINISHED
from resnests.results.select import select
from resnests.results.stats import at_best_epoch


def _aggregate() -> None:
    """Do what the command line asks for; raise a UserError where its options exclude each other."""
    arguments = parser().parse_intermixed_args()  # words may stand behind options
    arguments.output = arguments.output and os.path.expanduser(arguments.output)
    mode = mode_of(arguments)
    root, query = _runs_and_query(arguments.words)
    if mode == "to":
        from resnests.commands.queue import is_queued
        from resnests.commands.track import export

        export(root, arguments.to, arguments.watch, lambda: is_queued(root, query), query)
    elif mode == "status":
        from resnests.commands.status import show

        show(root, arguments.watch, arguments.trials, query)
    elif mode == "serve":
        _serve(root, query, arguments)
    elif mode in (TABLES, "analysis", "confusion"):
        _write(root, query, arguments)
    else:
        _single_runs(mode, root, query, arguments)


def _write(root: str, query: list[str], arguments: argparse.Namespace) -> None:
    """Write tables and what goes with them; raise a UserError."""
    plan = output.plan(arguments.output, arguments.format, arguments.statistic, arguments.compare)
    if plan.format == "csv":
        require_in_csv(arguments)
    if arguments.together and plan.format not in (None, "html"):
        raise UserError("--together goes with --output DIR or a page, as it draws a figure")
    runs, warnings = read_runs(root, arguments.trials, planned=plan.format != "csv")
    runs = select(runs, query)
    epoch = arguments.epoch or "last"
    what = measured(runs, arguments.metric or "accuracy", arguments.split or "test", epoch)
    by = arguments.by or "val_accuracy"
    if epoch == "best":
        runs = at_best_epoch(runs, what.column, by)
    if arguments.select:
        runs, what = choose(runs, arguments.select, by, what)
    if not what.is_accuracy and arguments.compare and "paper" in arguments.compare:
        raise UserError(f"--compare paper: the paper has test accuracies, no {what.words}")
    runs, copies = drop_copies(label_rows(runs))
    kinds = arguments.analysis, arguments.confusion, arguments.together
    result = output.Results(runs, [*warnings, *copies], replace(plan, what=what), *kinds)
    output.write(result)
    for line in result.problems:
        print(f"aggregate.py: warning: {line}", file=sys.stderr)
    if plan.format == "csv":  # which has no place for notes
        print(*what.notes, sep="\n", end="\n" * bool(what.notes), file=sys.stderr)


def _serve(root: str, query: list[str], arguments: argparse.Namespace) -> None:
    """Serve the page, which has words of its own; raise a UserError."""
    from resnests.commands.serve import serve

    if query:
        raise UserError(f"{query[0]}: does not go with --serve; the page itself chooses runs")
    if not os.path.isdir(root):
        expected = "expected one with runs, which run.py makes (default: runs)"
        raise UserError(f"{root}: no such directory; {expected}")
    plan = output.plan(None, "html", arguments.statistic, arguments.compare)
    plan = replace(plan, what=Measured(epoch=arguments.epoch or "last"))
    serve(root, arguments.serve, arguments.host, plan)


def _single_runs(mode: str, root: str, query: list[str], arguments: argparse.Namespace) -> None:
    """Print or delete the runs that are meant; exit with status 1 where some could not be."""
    from resnests.commands import runs as commands

    statuses = ("complete", *UNFINISHED) if mode in ("list", "delete") else ()
    runs = select(read_runs(root, arguments.trials)[0], query, statuses)
    if runs.empty:
        print(f"aggregate.py: no run has {' '.join(query)}", file=sys.stderr)
    elif mode == "best":
        by, metric = arguments.by or "validation", arguments.metric or "accuracy"
        commands.print_best(runs, arguments.best, by, arguments.list, metric)
    elif mode == "list":
        if arguments.select:
            runs, chosen = choose(runs, arguments.select, arguments.by or "val_accuracy", ACCURACY)
            print(*chosen.notes, sep="\n", file=sys.stderr)
        commands.print_paths(runs)
    elif mode == "show":
        commands.print_run(runs)
    elif not query:
        raise UserError("--delete: expected words that say which runs, such as status=failed")
    else:
        sys.exit(commands.delete_runs(runs, arguments.yes))


def _runs_and_query(words: list[str]) -> tuple[str, list[str]]:
    """Return the directory among `words`, and those that choose runs; raise a UserError."""
    words = [os.path.expanduser(word) for word in words]
    query = [word for word in words if "=" in word and not os.path.isdir(word)]
    roots = [word for word in words if word not in query]
    if "" in roots:  # as of a variable of the shell that is not set
        raise UserError("'': expected a directory of runs; . is the folder of the command")
    if len(roots) > 1:
        raise UserError(f"{roots[1]}: expected one directory of runs; {roots[0]} is one already")
    return roots[0] if roots else "runs", query


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
