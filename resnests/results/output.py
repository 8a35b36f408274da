"""Write the formats that aggregate.py is asked for, each to its place. Heavy modules are imported
where they are needed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from resnests.errors import UserError, require
from resnests.results import render
from resnests.results.analyses import Analyses, read_analyses
from resnests.results.analysis import analysis_tables
from resnests.results.axes import against_value
from resnests.results.columns import PLANNED
from resnests.results.measured import ACCURACY, Measured
from resnests.results.stats import against_baseline, against_paper, cell_statistics, with_interval
from resnests.results.tables import (
    Table,
    accuracy_tables,
    axis_table,
    comparison_table,
    paper_table,
)
from resnests.runs.directory import write_atomic
from resnests.runs.files import read_file

if TYPE_CHECKING:
    from resnests.results.style import Drawing

FORMATS = ("markdown", "csv", "latex", "html")
COMPARISONS = ("standard", "paper")
FILES = "files.txt"  # of a folder with everything: digests and names of what is in it
_SIGNATURE = "# aggregate.py wrote these files (SHA-256); its next call replaces or removes them"
_ALWAYS = {"tables.md", "tables.tex", "runs.csv", "report.html"}
_ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html"}


@dataclass
class Plan:
    """Holds what a command line asks for."""

    output: Path | None  # a file, a directory, or None for standard output
    format: str | None  # None where output is a directory, which gets every format
    statistic: str
    compare: list[str]
    asked: bool  # whether the user named what to compare
    what: Measured = ACCURACY


@dataclass
class Results:
    """Makes tables and figures of runs, as a plan wants them."""

    runs: pd.DataFrame  # labelled, without copies
    problems: list[str]  # lines to warn of
    plan: Plan
    analysis_only: bool = False
    confusion: bool = False
    together: bool = False

    def tables(self) -> list[Table]:
        if self.confusion:
            from resnests.results.predictions import confusion_tables

            return confusion_tables(self.runs, self.plan.what.notes)
        if self.analysis_only:
            return analysis_tables(self._require_analyses())
        tables = accuracy_tables(self.runs, self.plan.statistic, self.plan.what)
        if "standard" in self.plan.compare:
            table = comparison_table(self.runs, self.plan.what, by_image=self.plan.asked)
            if table.rows or self.plan.asked:
                tables.append(table)
        if "paper" in self.plan.compare and self.plan.what.is_accuracy:
            table = paper_table(self.runs, self.plan.what)
            if table.rows:
                tables.append(table)
            elif self.plan.asked:
                self.problems.append(
                    "--compare paper: nothing to compare, the paper has none of the cells with "
                    "complete runs"
                )
        for axis in self.plan.compare:
            key, equals, value = axis.partition("=")
            if equals:
                tables.append(axis_table(self.runs, key, value, self.plan.what))
        if self.plan.format in (None, "html") and not self.analyses.empty:
            tables += analysis_tables(self.analyses)
        return tables

    @cached_property
    def analyses(self) -> Analyses:
        analysed = "analysis.status" in self.runs
        return read_analyses(self.runs if analysed else self.runs.iloc[:0])

    def _require_analyses(self) -> Analyses:
        if self.analyses.empty:
            raise UserError(
                "--analysis: no run was analysed; expected the results of the same run.py command "
                "with task=analyze"
            )
        return self.analyses

    def drawings(self) -> Iterator[Drawing]:
        if self.confusion:
            from resnests.results.predictions import confusion_drawings

            yield from confusion_drawings(self.runs)
            return
        from resnests.results import analysis_plots, plots

        if not self.analysis_only:
            yield from plots.drawings(self.runs, self.problems, self.plan.what, self.together)
        yield from analysis_plots.drawings(self.analyses)

    def csv(self) -> str:
        there = self.runs[self.runs["status"] != PLANNED]
        runs = self._require_analyses().solves if self.analysis_only else there
        return runs.to_csv(index=False, lineterminator="\n")


def plan(
    output: str | None,
    form: str | None,
    statistic: str | None,
    compare: list[str] | None,
) -> Plan:
    """Return what a command line asks for; raise a UserError where that contradicts itself."""
    path = Path(output) if output else None
    everything = path is not None and (
        path.is_dir() or str(output).endswith("/") or (not path.suffix and form is None)
    )
    if path is not None and not everything and not path.parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {path.parent}")
    if everything and form is not None:
        raise UserError(
            f"--format {form} with --output {output}: a directory gets every format; "
            "name a file, or no format"
        )
    by_ending = _ENDINGS.get(path.suffix) if path else None
    if form is not None and by_ending not in (None, form):
        raise UserError(f"--format {form} with --output {output}: the ending says {by_ending}")
    if not everything and form is None:
        form = by_ending if path else "markdown"
        if form is None:
            endings = ", ".join(_ENDINGS)
            raise UserError(
                f"--output {output}: no format is known by that ending; "
                f"use {endings}, a directory or --format"
            )
    for one in compare or []:
        ok = one in COMPARISONS or all(one.partition("="))
        expected = "standard, paper, or KEY=VALUE such as arch=resnet18"
        require(ok, "--compare", one, expected)
    wanted = compare
    if wanted is None:
        wanted = list(COMPARISONS) if everything or form == "html" else []
    return Plan(path, form, statistic or "mean", wanted, compare is not None)


def write(results: Results) -> None:
    """Write what the plan says; add a line to the problems of `results` for each that comes up."""
    plan = results.plan
    if plan.output and plan.format is None:
        _write_all(results, plan.output)
        return
    if plan.format == "csv":
        text = results.csv()
    elif plan.format == "html":
        text = _page(results)
    else:
        form = render.markdown if plan.format == "markdown" else render.latex
        text = form(results.tables())
    if plan.output is None:
        sys.stdout.buffer.write(text.encode())  # UTF-8, whatever the terminal's encoding is
    else:
        write_atomic(plan.output, text.encode())
        print(f"wrote {plan.output}")


def _write_all(results: Results, folder: Path) -> None:
    """Write every format and every figure, with the numbers behind tables and figures as CSV.

    What an earlier call wrote there and this one does not, such as a figure of runs that are gone,
    is removed where it is as it was written: files.txt says what is ours.
    """
    from resnests.results import report

    before = _written_before(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    tables, pictures, written = results.tables(), [], {}

    def write(name: str, data: bytes) -> None:
        write_atomic(folder / name, data)
        written[name] = hashlib.sha256(data).hexdigest()

    for drawing in results.drawings():
        png = drawing.render("png")
        write(f"figures/{drawing.key}.png", png)
        write(f"figures/{drawing.key}.pdf", drawing.render("pdf"))
        write(f"figures/{drawing.key}.csv", _csv(drawing.data))
        pictures.append((drawing.title, png))
    page = report.page(results.runs, tables, pictures, results.problems)
    files = {
        "tables.md": render.markdown(tables).encode(),
        "tables.tex": render.latex(tables).encode(),
        "runs.csv": results.csv().encode(),
        **_numbers(results),
        "report.html": page.encode(),
    }
    for name, data in files.items():
        write(name, data)
    listed = [f"{digest}  {name}" for name, digest in written.items()]
    write_atomic(folder / FILES, "\n".join([_SIGNATURE, *listed, ""]).encode())
    for name in before.keys() - written.keys():
        if _digest(folder / name) == before[name]:
            (folder / name).unlink()
    print(f"wrote {', '.join(files)} and {len(pictures)} figures below {folder}")


def _numbers(results: Results) -> dict[str, bytes]:
    """Return what is behind the tables, as CSV under the names of their files."""
    from resnests.results.style import figure_key

    what, runs = results.plan.what, results.runs
    said = {"epoch": what.epoch} | ({} if what == ACCURACY else {"of": what.column})
    frames = {
        "cells.csv": with_interval(cell_statistics(runs, what), what=what)
        .reset_index()
        .assign(**said),
        "differences.csv": against_baseline(runs, what).drop(columns="pairs").assign(**said),
        "analysis.csv": results.analyses.solves,
    }
    for axis in results.plan.compare:
        key, equals, value = axis.partition("=")
        if equals:
            differences, _ = against_value(runs, key, value, what)
            name = f"{figure_key('differences', key, value)}.csv"
            frames[name] = differences.drop(columns="pairs").assign(baseline=value, **said)
    if what.is_accuracy:
        frames["paper.csv"] = against_paper(runs).assign(**said)
    always = ("cells.csv", "differences.csv")
    return {name: _csv(frame) for name, frame in frames.items() if name in always or len(frame)}


def _written_before(folder: Path) -> dict[str, str]:
    """Return the files in `folder` that an earlier call wrote, each with its digest; raise a
    UserError where the list of them is another's.

    Lists of earlier versions have no digests, so nothing of theirs is removed.
    """
    file = folder / FILES
    try:
        first, *lines = read_file(file).decode().splitlines() or [""]
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        first, lines = "", []
    if first != _SIGNATURE and not {first, *lines} >= _ALWAYS:
        mend = "move it, or name another folder"
        raise UserError(f"--output {folder}: {file} is no list that aggregate.py wrote; {mend}")
    found = [re.fullmatch(r"([0-9a-f]{64})  ((?:figures/)?[\w=-][\w.=-]*)", line) for line in lines]
    return {match[2]: match[1] for match in found if match}


def _digest(file: Path) -> str | None:
    """Return the SHA-256 of a file, None where there is none."""
    try:
        return hashlib.sha256(read_file(file)).hexdigest()
    except OSError:
        return None


def _page(results: Results) -> str:
    from resnests.results import report

    tables = results.tables()
    pictures = [(drawing.title, drawing.render("png")) for drawing in results.drawings()]
    return report.page(results.runs, tables, pictures, results.problems)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()
