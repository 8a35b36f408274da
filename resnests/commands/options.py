"""Define the options of aggregate.py, and which of them each of its modes takes."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from resnests import __version__
from resnests.errors import USER_ERROR, UserError, require_one_of
from resnests.results.measured import SPLITS
from resnests.results.output import FORMATS
from resnests.results.tables import STATISTICS

EXAMPLES = """examples:
  python aggregate.py                        the tables of runs/, as markdown
  python aggregate.py --statistic median     medians with minimum and maximum
  python aggregate.py --compare standard     differences to Standard, paired by seed
  python aggregate.py --compare arch=resnet18    to a value of an axis, all else the same
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
_SHOWN = "; ".join(f"{name}: {meaning}" for name, meaning in STATISTICS.items())
_SHOWN = _SHOWN.format(cut=", cut at 0 and 100%").replace("%", "%%")
_FLAG = {"action": "store_true"}

# What argparse is given of each. Without it a value is None or False, which says that it was not
# given; what it is then stands where it is used.
OPTIONS: dict[str, dict[str, Any]] = {
    "output": {
        "metavar": "PATH",
        "help": "file, whose ending says the format, or directory, for all of them",
    },
    "format": {"choices": FORMATS, "help": "format, where the ending does not say it"},
    "statistic": {
        "choices": STATISTICS,
        "help": f"what the cells show. {_SHOWN} (default: mean)",
    },
    "compare": {
        "metavar": "standard | paper | KEY=VALUE",
        "action": "append",
        "help": "add a table of differences to standard, paper, or KEY=VALUE (may be given twice)",
    },
    "epoch": {
        "choices": ("last", "best"),
        "help": "last (default), or best: of the highest accuracy on a held-out split",
    },
    "together": _FLAG | {
        "help": "with --output DIR: a figure with the curves of all cells that are meant, too"
    },
    "metric": {
        "metavar": "NAME",
        "help": "what tables and figures, or --best, are of (default: accuracy): also loss, f1, "
        "ema_accuracy, ...",
    },
    "split": {"choices": SPLITS, "help": "of the test images (default), or of held-out ones"},
    "select": {
        "metavar": "KEY",
        "help": "of each cell only the value of KEY, such as optimizer.lr, that is best on "
        "validation",
    },
    "by": {
        "metavar": "METRIC",
        "help": "with --best: validation (default), or test, which then decides; with --select: "
        "val_accuracy (default), val_f1, ...",
    },
    "trials": _FLAG | {"help": "with the trials of searches, which are no results"},
    "analysis": _FLAG | {"help": "tables of what task=analyze measured instead"},
    "confusion": _FLAG | {
        "help": "a confusion matrix of each cell instead, of runs with predictions=true"
    },
    "list": _FLAG | {
        "help": "instead of tables, the directories of the runs; with --best or --select, of those"
    },
    "best": {
        "metavar": "N",
        "type": int,
        "help": "instead of tables, the N complete runs with the highest accuracy, or the best of "
        "--metric",
    },
    "show": _FLAG | {
        "help": "instead of tables, the one run that is meant: values, numbers, the end of its log"
    },
    "delete": _FLAG | {
        "help": "instead of tables, delete the runs that are meant; without --yes it only says "
        "which"
    },
    "yes": _FLAG | {"help": "with --delete: do it"},
    "status": _FLAG | {"help": "instead of tables, how far every cell is"},
    "watch": _FLAG | {
        "help": "with --status or --to: again and again, until Ctrl-C; --to ends with the last run"
    },
    "serve": {
        "metavar": "PORT",
        "type": int,
        "nargs": "?",
        "const": 8642,
        "help": "instead of tables, serve the page alive on 127.0.0.1, at this port (default: "
        "8642)",
    },
    "host": {
        "metavar": "HOST",
        "help": "with --serve: another address of this machine; who knows the printed token may "
        "look",
    },
    "to": {
        "metavar": "TRACKER",
        "action": "append",
        "help": "send the finished runs to tensorboard, wandb or mlflow instead (may be given "
        "twice)",
    },
}  # fmt: skip

TABLES = "tables"  # the mode where no option says another
# mode -> what else it takes. The first whose option was given is meant.
MODES: dict[str, tuple[str, ...]] = {
    "to": ("watch",),
    "status": ("watch", "trials"),
    "serve": ("host", "statistic", "compare", "epoch"),
    "delete": ("yes", "trials"),
    "show": ("trials",),
    "best": ("list", "metric", "by", "trials"),
    "list": ("select", "by", "trials"),
    "analysis": ("output", "format", "trials"),
    "confusion": ("select", "by", "output", "format", "trials"),
    TABLES: (
        "statistic", "compare", "epoch", "together", "metric", "split", "select", "by",
        "output", "format", "trials",
    ),
}  # fmt: skip
# Of the tables' options those that have no place in a CSV file, which holds a row a run.
_NOT_IN_CSV = ("statistic", "compare", "together", "metric", "split")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; --help has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}\n")


class _Once(argparse.Action):
    """Keeps a value, and refuses a second one, before which the first would be ignored."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"--{self.dest} was given twice; expected it once")
        setattr(namespace, self.dest, values)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _Parser(
        description="Make tables, figures and a report from the runs that run.py made.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"resnests {__version__}")
    words = "directory with the runs (default: runs), and key=value for which of them are meant"
    made.add_argument("words", nargs="*", metavar="runs | key=value", help=words)
    for name, keywords in OPTIONS.items():
        made.add_argument(f"--{name}", **{"action": _Once} | keywords)
    return made


def mode_of(arguments: argparse.Namespace) -> str:
    """Return the mode that is asked for; raise a UserError for an option that it does not take."""
    values = {name: getattr(arguments, name) for name in OPTIONS}
    given = [name for name, value in values.items() if value is not None and value is not False]
    mode = next((name for name in MODES if name in given), TABLES)
    for name in given:
        if name in (mode, *MODES[mode]):
            continue
        if mode == TABLES:
            others = _listed([f"--{other}" for other in MODES if name in MODES[other]], "or")
            raise UserError(f"--{name} goes with {others}")
        taken = _listed([f"--{one}" for one in MODES[mode]], "and")
        raise UserError(f"--{name} does not go with --{mode}, which takes {taken}")
    _require_by(arguments, mode)
    return mode


def require_in_csv(arguments: argparse.Namespace) -> None:
    """Raise a UserError for an option that a CSV file, with a row a run, would ignore."""
    if arguments.confusion:
        mend = "expected --output DIR, which has a CSV file for each matrix"
        raise UserError(f"--confusion as csv: {mend}")
    for name in _NOT_IN_CSV:
        if getattr(arguments, name):
            raise UserError(f"--format csv holds one row a run, so --{name} has no place in it")


def _require_by(arguments: argparse.Namespace, mode: str) -> None:
    """Raise a UserError where --by fits neither --best nor --select, as the test set decides
    nothing.
    """
    if arguments.by is None:
        return
    if mode == "best":
        require_one_of("--by", arguments.by, ("validation", "test"))
    elif arguments.select is None:
        raise UserError("--by goes with --best or --select")
    elif not arguments.by.startswith("val_"):
        raise UserError(
            f"--by {arguments.by}: expected val_accuracy, or another of held-out images"
        )


def _listed(names: list[str], last: str) -> str:
    """Return such as "--a, --b and --c"."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
