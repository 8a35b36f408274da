"""Trackers beside a training: they get what it writes, and cost it nothing, whatever they do."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time

import pytest
import trees
from curves import EPOCHS, Training
from helpers import TINY, make_config, run_command

from resnests.config.recipe import recipe_hash
from resnests.errors import UserError
from resnests.runs.directory import find_runs
from resnests.trackers import follow
from resnests.trackers.echo import Echo, require_installed
from resnests.trackers.export import export

MINE = """
import json

class Notes:
    def __init__(self, file):
        self.file = file

    def note(self, *values):
        with open(self.file, "a") as file:
            print(json.dumps(values), file=file)

    def start(self, run):
        self.note("start", run.id, run.name, run.group, run.sweep)
        return set()

    def epoch(self, epoch, values, time):
        self.note("epoch", epoch, sorted(values))

    def end(self, status, metrics, figures):
        self.note("end", status, metrics.get("test_accuracy"), sorted(figures))

class Down(Notes):
    def start(self, run):
        raise ConnectionError("nobody [there]")
"""


@pytest.mark.slow
def test_ones_own_tracker_gets_the_run_and_one_that_fails_costs_a_warning(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    loggers = [
        "+logger.notes._target_=mine.Notes",
        "+logger.notes.file=notes",
        "+logger.down._target_=mine.Down",
        "+logger.down.file=null",
    ]
    done = run_command(*TINY, *loggers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = find_runs(tmp_path / "runs")
    record = run.read_record()
    assert record.status == "complete"
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    (start,) = [note for note in notes if note[0] == "start"]
    assert start[2:] == [f"{start[3]}/seed=0", f"digits/tiny/standard/{record.recipe}", "runs"]
    assert [note[1] for note in notes if note[0] == "epoch"] == [1, 2]
    assert notes[-1] == ["end", "complete", record.test_accuracy, ["curves"]]
    assert "warning: down has not all of 1 run(s) (ConnectionError: nobody [there])" in done.stderr
    assert "notes has not" not in done.stderr
    assert "logger=down: ConnectionError: nobody [there]" in run.log_file.read_text()
    (tmp_path / "notes").unlink()
    sent = run_command("--to", "notes", cwd=tmp_path, script="aggregate.py")
    assert "notes has 1 runs and 3 figures" in sent.stdout, sent.stderr
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert notes[0] == start, "the same training has the same id"
    assert [note[0] for note in notes] == ["start", "epoch", "epoch", "end", "start", "end"]


def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "GRACE", 0.1)
    followers = follow.Followers(trees.make_config(tmp_path), trees.add_run(tmp_path))
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    followers.processes = [subprocess.Popen(command, stdin=subprocess.PIPE)]
    started = time.monotonic()
    followers.finish()
    assert time.monotonic() - started < 60
    assert followers.processes[0].poll() is not None


def test_only_the_owner_of_a_directory_is_followed(tmp_path):
    run = trees.add_run(tmp_path)
    run.write_progress({"pid": 123})
    config = trees.make_config(tmp_path, logger={"mine": {"_target_": "mine.Notes"}})
    followers = follow.Followers(config, run)
    followers.start(456)
    assert followers.processes == []


def test_an_accuracy_of_nothing_reaches_a_tracker(tmp_path):
    class Last:
        def start(self, run):
            return set()

        def epoch(self, epoch, values, time):
            pass

        def end(self, status, metrics, figures):
            self.metrics = metrics

    training, tracker = Training(tmp_path), Last()
    training.reach(EPOCHS, "complete")
    record = dataclasses.replace(training.run.read_record(), test_accuracy=0.0, train_loss=0.0)
    Echo(training.run, tracker).end(record)
    assert (tracker.metrics["test_accuracy"], tracker.metrics["train_loss"]) == (0.0, 0.0)


def test_trackers_are_no_part_of_a_recipe():
    chosen = make_config("logger=[tensorboard,wandb,mlflow]")
    assert sorted(chosen.logger) == ["mlflow", "tensorboard", "wandb"]
    assert chosen.logger["wandb"]["mode"] == "offline"
    assert recipe_hash(chosen) == recipe_hash(make_config())


def test_what_is_no_tracker_is_named():
    with pytest.raises(UserError, match=r"logger.mine=.*: expected a _target_"):
        make_config("+logger.mine.folder=x")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logger=wandb: not installed: pip install 'resnests\["):
        require_installed("wandb", make_config("logger=wandb").logger["wandb"])


def test_finished_runs_are_exported_once_and_running_ones_are_not(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="needs resnests[tensorboard]")
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        rows = trees.history_rows(90.0, EPOCHS)
        trees.add_run(tmp_path / "runs", seed=seed, history=rows, trainer__epochs=EPOCHS)
    Training(tmp_path / "runs", seed=2).reach(2)
    for _ in range(2):
        export("runs", ["tensorboard"])
    assert "tensorboard has 2 runs and 3 figures, 1 still run" in capsys.readouterr().out
    folders = {path.parent.name for path in (tmp_path / "tensorboard").rglob("events.*")}
    assert folders == {"seed=0", "seed=1", "figures"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (tmp_path / "tensorboard").rglob("seed=1")
    events = EventAccumulator(str(place))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "comet"], "--to comet: expected one of tensorboard, wandb, mlflow"),
        (["--to", "wandb", "--statistic", "median"], "--to sends everything, and goes with no"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, arguments, said):
    trees.add_run(tmp_path / "runs")
    done = run_command(*arguments, cwd=tmp_path, script="aggregate.py")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
