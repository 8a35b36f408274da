"""Show what a study found: its best trials, trials.csv, figures, and what trains the winner."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from resnests.environment import shell_line
from resnests.results.render import markdown
from resnests.results.tables import NONE, Table
from resnests.runs.directory import RunDirectory, write_atomic
from resnests.search.figures import drawings
from resnests.search.study import Study
from resnests.text import short

BEST = 10  # rows of the table
SEEDS = "seed=range(7)"  # of the winner, as in the paper
_ORDER = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
# What the winner is not trained with: it is no search any more.
_DROPPED = ("task", "seed", "tune", "sweep")


def show_results(study: Study, words: list[str]) -> None:
    """Write files into the folder of the study, and print the rest.

    `words` are the overrides of the command line.
    """
    table, frame = best_table(study), trials_frame(study)
    if not table.rows:
        print("no trial has ended yet; the same command goes on")
        return
    files = {"trials.csv": frame.to_csv(index=False, lineterminator="\n").encode()}
    for drawing in drawings(study, frame):
        files |= {f"{drawing.key}.{form}": drawing.render(form) for form in ("png", "pdf")}
    for name, data in files.items():
        write_atomic(study.folder / name, data)
    print(f"\n{markdown([table])}")
    print(f"wrote {', '.join(files)} in {study.folder}")
    if study.trials(TrialState.COMPLETE):
        print(f"the winner, with seven seeds: {winner_line(study.optuna.best_params, words)}")
        print(
            "beside it, dataset.val_fraction=0 trains on the held-out images too; its test "
            "accuracy was no part of the search"
        )


def trials_frame(study: Study) -> pd.DataFrame:
    """Return a row for each trial: its state, accuracies, values, and the work of all its runs."""
    return pd.DataFrame([_row(study, trial) for trial in study.trials()])


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    # The study may have been moved since: what stays are the last five parts of a path.
    places = [Path(path).parts[-5:] for path in trial.user_attrs.get("runs", [])]
    runs = [RunDirectory(study.folder.joinpath(*place)) for place in places]
    records = [record for run in runs if (record := run.record_or_none())]
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "val_accuracy": trial.value,  # of a pruned one in its last epoch
        **{f"val_accuracy_{i}": v for i, v in enumerate(trial.user_attrs.get("accuracies", []))},
        **{key: trial.params.get(key) for key in study.distributions},
        "epochs": sum(record.epochs for record in records),
        "seconds": sum(record.seconds for record in records),
        "reason": trial.user_attrs.get("reason"),
        "runs": ";".join(str(run.path) for run in runs),
    }


def best_table(study: Study) -> Table:
    """Return the best complete trials, or of none the pruned ones that came farthest."""
    ended = [trial for trial in study.trials() if trial.state in _ORDER]
    ended.sort(key=lambda t: (_ORDER[t.state], -(t.last_step or 0), -(t.value or 0)))
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: -(trial.value or 0))
    best = (complete or ended)[:BEST]
    rows = [
        [str(t.number), _accuracy(t), *(short(t.params.get(key)) for key in study.distributions)]
        for t in best
    ]
    tune = study.tune
    caption = f"Validation accuracy of the {tune.objective} epoch"
    caption += f", mean ± standard deviation of {tune.seeds} seeds" if tune.seeds > 1 else ""
    counts = {
        f"{len(complete)} complete": len(complete),
        f"{len(ended) - len(complete)} pruned or diverged": len(ended) - len(complete),
        f"{(n := len(study.failed()))} failed": n,
        f"{(n := len(study.trials(TrialState.RUNNING)))} not ended": n,
    }
    caption += f". Trials: {', '.join(text for text, n in counts.items() if n) or 'none'}."
    title = f"The {len(best)} best trials of {study.folder}"
    header = ["Trial", "Validation accuracy", *study.distributions]
    return Table("trials", title, caption, header, rows)


def winner_line(params: dict[str, Any], words: list[str]) -> str:
    """Return the command that trains at `params` what `words` searched."""

    def stays(word: str) -> bool:
        key = word.partition("=")[0]
        return key not in params and key.lstrip("+~").partition(".")[0] not in _DROPPED

    said = (*words, "-m", "--multirun")
    options = [word for word in sys.argv[1:] if word not in said]
    chosen = [f"{key}={value}" for key, value in params.items()]
    given = {word.partition("=")[0]: word for word in filter(stays, words)}  # the last of each
    return shell_line([*options, "-m", *given.values(), "task=train", *chosen, SEEDS])


def _accuracy(trial: FrozenTrial) -> str:
    if trial.value is None:
        return NONE
    values = trial.user_attrs.get("accuracies", [])
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{trial.value:.2f}%{spread}"
