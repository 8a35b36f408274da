"""Trackers beside a sweep: they get what it writes, and cost it nothing, whatever they do."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import trees
from curves import EPOCHS, Training
from helpers import REPOSITORY, TINY, make_config, run_command, until

from resnests.commands import track as export_module
from resnests.commands.track import export
from resnests.config.recipe import recipe_hash
from resnests.errors import UserError
from resnests.runs.directory import find_runs
from resnests.trackers import sync as sync_module
from resnests.trackers.run_sync import RunSync
from resnests.trackers.sync import TrackerThread, syncing
from resnests.trackers.tracker import (
    drawings,
    figures_of,
    final_metrics,
    first_epoch_id,
    require_installed,
)

MINE = """
import json
import os
import time

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

class Slow(Notes):
    def start(self, run):
        super().start(run)
        time.sleep(600)

class Deadly(Notes):
    def start(self, run):
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module of the user's; return what gives the settings of a tracker in it."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return lambda name: {"_target_": f"mine.{name}", "file": str(tmp_path / name)}


def notes(file: Path) -> list[list]:
    """Return what a tracker of `mine` was told."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


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
    told = notes(tmp_path / "notes")
    (start,) = [note for note in told if note[0] == "start"]
    assert start[2:] == [f"{start[3]}/seed=0", f"digits/tiny/standard/{record.recipe}", "runs"]
    assert [note[1] for note in told if note[0] == "epoch"] == [1, 2]
    assert told[-1] == ["end", "complete", record.test_accuracy, ["curves"]]
    assert "warning: down has not all of 1 run(s) (ConnectionError: nobody [there])" in done.stderr
    assert "notes has not" not in done.stderr
    assert "logger=down: ConnectionError: nobody [there]" in run.log_file.read_text()
    (tmp_path / "notes").unlink()
    sent = run_command("--to", "notes", cwd=tmp_path, script="aggregate.py")
    assert "notes has 1 runs and 3 figures" in sent.stdout, sent.stderr
    told = notes(tmp_path / "notes")
    assert told[0] == start, "the same training has the same id"
    assert [note[0] for note in told] == ["start", "epoch", "epoch", "end", "start", "end"]


def test_a_tracker_that_hangs_costs_a_sweep_a_bounded_time(tmp_path, mine, monkeypatch, capsys):
    monkeypatch.setattr(sync_module, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sync_module, "KILL_SECONDS", 1.0)
    config = trees.make_config(tmp_path / "runs", logger={"slow": mine("Slow")})
    run = trees.add_run(tmp_path / "runs", logger=config.logger)
    started = time.monotonic()
    with syncing(config, [run]):
        pass
    assert time.monotonic() - started < 30
    assert run.unsent("slow").exists()
    assert "waiting for slow: 60 seconds at most, or until Ctrl-C" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tracker_that_ends_its_process_is_on_record_for_all_runs(tmp_path, mine):
    config = trees.make_config(tmp_path / "runs", logger={"deadly": mine("Deadly")})
    with syncing(config) as add:
        runs = [trees.add_run(tmp_path / "runs", seed=s, logger=config.logger) for s in (0, 1)]
        add(runs)
        until(lambda: runs[0].unsent("deadly").exists())
    assert [run.unsent("deadly").read_text() for run in runs] == [
        "it was given up",
        "their process was killed",
    ]


@pytest.mark.slow
def test_runs_are_sent_as_they_go_and_one_process_serves_a_sweep(tmp_path, mine):
    trainings = [Training(tmp_path / "runs", "n", mine("Notes"), seed=seed) for seed in (0, 1)]
    config = trainings[0].run.read_record().config
    children = set(psutil.Process().children())
    with syncing(trees.make_config(tmp_path / "runs", logger=config["logger"])) as add:
        assert len(set(psutil.Process().children()) - children) == 1
        add(training.run for training in trainings)
        for epoch in range(1, EPOCHS + 1):
            for training in trainings:
                training.reach(epoch)
            sent = 2 + 2 * epoch
            until(lambda sent=sent: len(notes(tmp_path / "Notes")) == sent)
        for training in trainings:
            training.reach(EPOCHS, "complete")
    told = notes(tmp_path / "Notes")
    assert sorted(note[0] for note in told) == ["end"] * 2 + ["epoch"] * 8 + ["start"] * 2
    assert not any(training.run.unsent("n").exists() for training in trainings)


@pytest.mark.slow
def test_what_outlives_its_sweep_sends_the_end_of_trainings_that_do_too(tmp_path, mine):
    training = Training(tmp_path / "runs", "n", mine("Notes"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        record = training.run.read_record()
        record.provenance.host = os.uname().nodename
        record.provenance.pid = process.pid
        record.provenance.process_started = psutil.Process(process.pid).create_time()
        training.run.write_record(record)
        training.reach(2)
        (tmp_path / "list").write_text(f"{training.run.path}\n")
        follower = subprocess.Popen(
            [sys.executable, "-m", "resnests.trackers.sync", "list", "n"],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        follower.stdin.close()  # the sweep was killed
        until(lambda: len(notes(tmp_path / "Notes")) == 3)
        training.reach(3)
        process.kill()
    assert follower.wait(60) == 0
    told = notes(tmp_path / "Notes")
    assert [note[1] for note in told if note[0] == "epoch"] == [1, 2, 3]
    assert told[-1] == ["end", "killed", None, []]


def test_no_tracker_waits_for_another(tmp_path, mine):
    loggers = {"slow": mine("Slow"), "n": mine("Notes")}
    run = trees.add_run(tmp_path / "runs", history=trees.history_rows(90.0, 2), logger=loggers)
    closing = threading.Event()
    slow, quick = (TrackerThread(name, closing) for name in loggers)
    closing.set()
    for thread in (slow, quick):
        thread.add([run])
        thread.start()
    quick.join(60)
    until(lambda: notes(tmp_path / "Slow"))
    assert [note[0] for note in notes(tmp_path / "Notes")] == ["start", "epoch", "epoch", "end"]
    for thread in (slow, quick):
        thread.give_up()
    assert slow.is_alive()
    assert run.unsent("slow").exists()
    assert not run.unsent("n").exists()


def test_two_processes_never_send_an_epoch_twice(tmp_path, mine):
    training = Training(tmp_path / "runs", "n", mine("Notes"))
    one, other = RunSync(training.run, "n"), RunSync(training.run, "n")
    training.reach(1)
    one.sync()
    other.sync()
    assert other.is_elsewhere
    assert [note[0] for note in notes(tmp_path / "Notes")] == ["start", "epoch"]
    one.release()
    other.sync()
    assert not other.is_elsewhere, "nothing has changed but that it is free"


def test_a_run_that_was_interrupted_in_its_first_epoch_keeps_its_id(tmp_path, mine):
    training = Training(tmp_path / "runs", "n", mine("Notes"))
    training.sync(0, end="interrupted")
    training.sync(0, end="failed")
    training.sync(1, 2, end="interrupted")
    training.sync(2, EPOCHS, end="complete")
    assert len({note[1] for note in notes(tmp_path / "Notes") if note[0] == "start"}) == 1
    training.start_afresh()
    training.sync(0, end="interrupted")
    training.sync(1, end="interrupted")
    assert len({note[1] for note in notes(tmp_path / "Notes") if note[0] == "start"}) == 2


def test_a_run_that_starts_afresh_while_it_is_open_is_another(tmp_path, mine):
    training = Training(tmp_path / "runs", "n", mine("Notes"))
    sync = RunSync(training.run, "n")
    for epoch in (1, 2):
        training.reach(epoch)
        sync.sync()
    training.start_afresh()
    training.reach(1)
    sync.sync()
    told = notes(tmp_path / "Notes")
    assert [note[:2] for note in told if note[0] == "epoch"] == [["epoch", n] for n in (1, 2, 1)]
    assert len({note[1] for note in told if note[0] == "start"}) == 2


def test_ids_are_those_of_earlier_versions(tmp_path):
    rows = trees.history_rows(90.0, EPOCHS)
    images = {"dataset__mean": [0.5] * 3, "dataset__std": [0.25] * 3}
    run = trees.add_run(tmp_path, history=rows, trainer__epochs=EPOCHS, **images)
    record = run.read_record()
    assert first_epoch_id(record, run.history_rows()) == "72dfbded35b1f8a9"
    assert first_epoch_id(record, []) == "faee65cdeb73eb09"
    given = {"task": "evaluate", "weights": "x.pt", "record": {"weights_sha256": "ab"}}
    given |= images
    assert first_epoch_id(trees.add_run(tmp_path, **given).read_record(), []) == "794a1a4a3942e806"


def test_an_accuracy_of_nothing_was_measured(tmp_path):
    record = trees.add_run(tmp_path, record={"test_accuracy": 0.0, "train_loss": 0.0}).read_record()
    assert final_metrics(record)["test_accuracy"] == 0.0
    assert final_metrics(record)["train_loss"] == 0.0
    assert "peak_memory_bytes" not in final_metrics(record)
    given = trees.add_run(tmp_path, task="evaluate", weights="x.pt").read_record()
    assert "epochs" not in final_metrics(given)


def test_runs_of_somebody_else_are_sent_although_nothing_can_be_written(tmp_path, mine):
    training = Training(tmp_path / "runs", "n", mine("Notes"))
    training.reach(2, "complete")
    real = os.open

    def refuse(path, *arguments, **kwargs):
        if str(path).endswith("sync.n"):
            raise PermissionError(13, "no permission")
        return real(path, *arguments, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        sync = RunSync(training.run, "n")
        sync.sync(closing=True)
    assert sync.is_done, sync.error
    assert [note[0] for note in notes(tmp_path / "Notes")] == [
        "start",
        "epoch",
        "epoch",
        "end",
    ]


@pytest.mark.slow
def test_a_watch_sends_what_is_trained_until_all_is_over(tmp_path, mine, monkeypatch, capsys):
    monkeypatch.setattr(export_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(export_module, "BUSY_SHARE", 1.0)  # or a busy machine waits for minutes
    monkeypatch.setattr(RunSync, "_figures", lambda self: {})
    alive = {"host": os.uname().nodename, "pid": os.getpid()}
    alive["process_started"] = psutil.Process().create_time()
    training = Training(tmp_path / "runs", "n", mine("Notes"), provenance=alive)
    training.reach(1)
    queue = ["one more"]
    watch = threading.Thread(target=export, args=("runs", ["n"], True, lambda: bool(queue)))
    watch.start()
    until(lambda: len(notes(tmp_path / "Notes")) == 2)
    training.reach(EPOCHS, "complete")
    until(lambda: len(notes(tmp_path / "Notes")) == 6)
    trees.add_run(tmp_path / "runs", seed=1, logger={"n": mine("Notes")})
    queue.clear()
    watch.join(200)
    told = [note[0] for note in notes(tmp_path / "Notes")]
    assert told == ["start", *["epoch"] * 4, "end", "start", "end", "start", "end"]
    shown = capsys.readouterr().out
    assert shown.startswith("n has 0 runs, 1 still run\nn has 1 runs")
    assert "n has 2 runs and 5 figures" in shown


def test_ctrl_c_ends_a_watch_with_what_is_there(tmp_path, mine, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    trees.add_run(tmp_path / "runs", logger={"n": mine("Notes")})
    export("runs", ["n"], True, lambda: True)
    assert "n has 1 runs and 2 figures" in capsys.readouterr().out


def test_figures_of_chosen_runs_are_theirs_and_beside_those_of_all(tmp_path):
    root = tmp_path / "runs"
    for arch in ("resnet20", "resnet8"):
        trees.add_run(root, arch=arch, history=trees.history_rows(90, 3), trainer__epochs=3)
    keys = {q: {d.key for d in drawings(root, q)} for q in [(), ("arch=resnet20",)]}
    assert {key for key in keys[()] if "resnet8" in key}
    assert not {key for key in keys[("arch=resnet20",)] if "resnet8" in key}
    every, some = figures_of(root), figures_of(root, ["arch=resnet*", "weights=../x"])
    assert (every.name, some.name) == ("figures", "figures_arch=resnet__weights=.._x")
    assert every.id != some.id


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
    alive = {"host": os.uname().nodename, "pid": os.getpid()}
    alive["process_started"] = psutil.Process().create_time()
    settings = {"_target_": "resnests.trackers.tensorboard.TensorBoard", "folder": "tensorboard"}
    training = Training(tmp_path / "runs", "tensorboard", settings, seed=2, provenance=alive)
    training.reach(2)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "comet"], "--to comet: expected one of tensorboard, wandb, mlflow"),
        (["--to", "wandb", "--statistic", "median"], "--statistic does not go with --to"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, arguments, said):
    trees.add_run(tmp_path / "runs")
    done = run_command(*arguments, cwd=tmp_path, script="aggregate.py")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
