"""Searches on Optuna's own storage, with a training of milliseconds in place of ours."""

import json
import math
import os
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from helpers import until
from spaces import LR, make_space

pytest.importorskip("optuna", reason="needs resnests[tune]")

import optuna
from hydra.errors import MissingConfigException
from optuna.trial import TrialState

from resnests.errors import UserError
from resnests.results.frame import read_runs
from resnests.runs.directory import find_runs
from resnests.runs.record import Provenance, Record
from resnests.runs.sweeps import find_asked
from resnests.search import drive
from resnests.search.plan import run_search
from resnests.search.results import winner_line
from resnests.search.study import Study, _compare, ended_trials
from resnests.sweep import process
from resnests.sweep.aside import Aside, Note
from resnests.sweep.devices import allocate
from resnests.sweep.executors import local
from resnests.sweep.protocol import DEVICE, INTERRUPTED, NO_GRAPH

EPOCHS = 4
BASE = (f"trainer.epochs={EPOCHS}", "tune.trials=5", "devices.slots=2", "devices.fork=false", LR)


class Trainings:
    """Stands for run_process. The accuracy of a rate is best at 0.03, and of epoch 3."""

    def __init__(self):
        self.begun, self.resumed = 0, 0
        self.goes_on = lambda config, epoch: True  # or waits in an epoch until it is to stop
        self.at_once, self.most_at_once = 0, 0
        self.end = lambda config: ("complete", None)

    def accuracy(self, config, epoch):
        lr = config.optimizer.lr
        return 90 - 20 * abs(math.log10(lr / 0.03)) - 2 * abs(epoch - 3) + config.seed

    def __call__(self, run, allocation, stop):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.train(run, stop)
        finally:
            self.at_once -= 1

    def train(self, run, stop):
        self.begun += 1
        directory, config = run.directory, run.config
        rows = directory.history_rows()
        self.resumed += bool(rows)
        directory.write_config(config)
        record = Record.of(config, Provenance(pid=os.getpid()))
        record.status, record.error = self.end(config)
        for epoch in range(len(rows) + 1, EPOCHS + 1):
            if stop.requested():
                record.status, record.error = "interrupted", None
                break
            value = self.accuracy(config, epoch)
            rows.append({"epoch": epoch, "lr": 0.1, "val_accuracy": value, "seconds": 1})
            rows[-1] |= {"train_loss": 1.0, "test_accuracy": 9.0}
            directory.write_history(rows)
            record.epochs = epoch
            until(lambda epoch=epoch: self.goes_on(config, epoch) or stop.requested())
        if record.status == "complete":
            record = replace(record, train_loss=1, train_accuracy=9, test_loss=1)
            record = replace(record, test_accuracy=9, parameters=1)
        directory.write_record(record)
        return INTERRUPTED if record.status == "interrupted" else 0


@pytest.fixture
def trainings(monkeypatch):
    made = Trainings()
    monkeypatch.setattr(process, "run_process", made)
    monkeypatch.setattr(drive, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    return made


# Half a second to two each, of which Optuna's tables and the figures take most.
def study_of(folder, name="tune"):
    storage = f"sqlite:///{folder}/study-{name}/study.db"
    return optuna.load_study(study_name=name, storage=storage)


def states(folder):
    return [t.state.name for t in study_of(folder).get_trials()]


@pytest.mark.slow
def test_a_trial_whose_step_makes_no_cuda_graph_goes_on_without(tmp_path, trainings, monkeypatch):
    asked = []

    def trained(run, allocation, stop):
        asked.append(run.config.trainer.cuda_graph)
        return NO_GRAPH if asked[-1] is None else trainings(run, allocation, stop)

    monkeypatch.setattr(process, "run_process", trained)
    words = (*BASE, "tune.trials=1")
    assert run_search(make_space(tmp_path, *words), [*words]) == 0
    assert asked == [None, False]
    assert states(tmp_path) == ["COMPLETE"]


@pytest.mark.parametrize(("objective", "less"), [("best", 0), ("last", 2)])
def test_a_study_is_finished_once_and_shown(tmp_path, trainings, capsys, objective, less):
    words = (*BASE, "tune.seeds=2", f"tune.objective={objective}")
    assert run_search(make_space(tmp_path, *words), [*words]) == 0
    study, shown = study_of(tmp_path), capsys.readouterr().out
    assert trainings.begun == 10
    for ended in study.trials:
        best = 90 - 20 * abs(math.log10(ended.params["optimizer.lr"] / 0.03)) + 0.5
        assert ended.value == pytest.approx(best - less), "the mean over seeds 0 and 1"
        assert list(ended.intermediate_values) == [1, 2, 3, 4]
    assert f"{study.best_value:.2f}% ± 0.71" in shown
    assert f"optimizer.lr={study.best_params['optimizer.lr']} 'seed=range(7)'" in shown
    folder = tmp_path / "study-tune"
    table = (folder / "trials.csv").read_text().splitlines()
    assert len(table) == 6
    assert table[0].startswith("trial,state,val_accuracy,val_accuracy_0,val_accuracy_1,optimizer")
    assert (folder / "history.png").stat().st_size > 5000
    assert run_search(make_space(tmp_path, *words), [*words]) == 0
    assert trainings.begun == 10, "nothing is trained again"
    assert ended_trials(make_space(tmp_path, *words)) == 5
    assert run_search(make_space(tmp_path, *words, "tune.trials=6"), [*words]) == 0
    assert trainings.begun == 12
    (moved := tmp_path / "moved").mkdir()
    folder.rename(moved / folder.name)
    assert run_search(make_space(moved, *words), [*words]) == 0
    rows = pd.read_csv(moved / folder.name / "trials.csv")
    assert (rows["epochs"] > 0).all()
    assert rows["runs"].str.startswith(str(moved)).all()


@pytest.mark.slow
def test_a_pruned_run_is_on_record_and_resumes_when_asked_for_again(tmp_path, trainings, capsys):
    trainings.goes_on = lambda config, epoch: epoch != 2
    pruner = "+tune.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 200}"
    words = (*BASE, "tune.trials=1", pruner)
    assert run_search(make_space(tmp_path, *words, "tune.warmup=0.25"), []) == 0
    (run,) = find_runs(tmp_path / "study-tune")
    assert states(tmp_path) == ["PRUNED"]
    assert run.status() == "interrupted"
    assert run.read_record().error == "pruned in epoch 2, trial 0 of study-tune"
    assert "pruned in epoch 2: trial 0" in capsys.readouterr().out
    assert run.read_record().epochs < EPOCHS
    space = make_space(tmp_path, *BASE, "tune.trials=2")
    study = Study(space)
    study.optuna.enqueue_trial(study.trials()[0].params)
    os.close(study.locks)
    assert run_search(space, []) == 0
    assert states(tmp_path) == ["PRUNED", "COMPLETE"]
    assert trainings.resumed == 1
    assert run.status() == "complete"


@pytest.mark.slow
def test_the_trials_of_a_dead_process_are_taken_up_again(tmp_path, trainings):
    space = make_space(tmp_path, *BASE)
    dead = Study(space)
    taken = dead.take()
    taken.report(50.0, 1)
    number, params = taken.number, taken.params
    died_asking = dead.optuna.ask()  # before it had its values
    os.close(dead.locks)  # what the operating system does
    assert run_search(space, []) == 0
    ended = study_of(tmp_path).trials
    assert ended[number].state == TrialState.COMPLETE
    assert ended[number].params == params
    assert ended[number].intermediate_values[1] == 50.0
    assert ended[died_asking.number].state == TrialState.FAIL
    assert sum(t.state == TrialState.COMPLETE for t in ended) == 5
    assert trainings.begun == 5


@pytest.mark.slow
def test_a_process_leaves_the_trials_of_another_alone(tmp_path):
    """Locks belong to processes, so that a fork stands for the other one."""
    space = make_space(tmp_path, *BASE, "tune.trials=2")
    one = Study(space)
    first = one.take()
    child = os.fork()
    if child == 0:
        other = Study(space)
        found = [other.take(), other.take()]
        os._exit(0 if [t and t.number for t in found] == [1, None] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert first.number == 0
    assert one.take().number == 1, "whose process is gone"
    assert one.take() is None


@pytest.mark.slow
def test_a_trial_that_ends_while_another_process_looks_is_not_taken_again(tmp_path):
    study = Study(make_space(tmp_path, *BASE))
    trial = study.take()
    seen = study.trials(TrialState.RUNNING)  # what the other process read, before
    study.tell(trial, TrialState.COMPLETE, 50.0)
    real = study.trials
    study.trials = lambda *states: seen if states == (TrialState.RUNNING,) else real(*states)
    assert study.take().number == 1
    assert study.held == {1}
    assert real()[0].value == 50.0


@pytest.mark.slow
def test_every_device_has_a_run_and_none_has_two(tmp_path, trainings):
    trainings.goes_on = lambda *_: time.sleep(0.1) or trainings.most_at_once >= 3
    words = (*BASE, "devices.slots=3", "devices.cpu_slots=3", "tune.seeds=2", "tune.trials=3")
    assert run_search(make_space(tmp_path, *words), []) == 0
    assert trainings.most_at_once == 3
    assert trainings.begun == 6


@pytest.mark.slow
@pytest.mark.parametrize("fail_fast", ["true", "false"])
def test_a_seed_that_fails_stops_the_others_of_its_trial(tmp_path, trainings, capsys, fail_fast):
    trainings.end = lambda config: ("failed", "no luck") if config.seed else ("complete", None)
    trainings.goes_on = lambda config, epoch: config.seed == 1
    words = (*BASE, "devices.cpu_slots=2", "tune.seeds=2", "tune.trials=1")
    words += (f"sweep.fail_fast={fail_fast}",)
    assert run_search(make_space(tmp_path, *words), []) == 1
    assert states(tmp_path) == ["FAIL"]
    ends = {run.read_config().seed: run.status() for run in find_runs(tmp_path / "study-tune")}
    assert ends == {0: "interrupted", 1: "failed"}
    assert "failed: no luck; see " in capsys.readouterr().out


@pytest.mark.slow
def test_where_no_device_is_left_no_trial_is_told_and_the_same_command_goes_on(
    tmp_path, trainings, monkeypatch, capsys
):
    def breaks(run, allocation, stop):
        for device in allocation.devices:
            Aside(allocation.aside).add(Note(device, "GPU is lost", is_broken=True))
        return DEVICE

    space = make_space(tmp_path, *BASE, "tune.trials=2")
    with monkeypatch.context() as broken:
        broken.setattr(process, "run_process", breaks)
        assert run_search(space, []) == 1
    said = capsys.readouterr()
    assert said.err.count("no device is left (cpu-") == 1
    assert set(states(tmp_path)) == {"RUNNING"}
    assert run_search(space, []) == 0
    assert states(tmp_path) == ["COMPLETE"] * 2


@pytest.mark.slow
def test_fail_fast_ends_the_search_and_a_retry_saves_the_trial(tmp_path, trainings):
    trainings.end = lambda config: (
        ("failed", "no luck") if trainings.begun < 2 else ("complete", None)
    )
    words = (*BASE, "devices.slots=1", "tune.trials=2")
    assert run_search(make_space(tmp_path, *words, "sweep.fail_fast=true"), []) == 1
    assert states(tmp_path) == ["FAIL"]
    trainings.begun = 0
    words = (*words, "tune.study=other", "sweep.retries=1")
    assert run_search(make_space(tmp_path, *words), []) == 0
    assert {trial.state.name for trial in study_of(tmp_path, "other").trials} == {"COMPLETE"}


@pytest.mark.slow
def test_a_second_signal_reaches_the_trainings(tmp_path, trainings):
    space = make_space(tmp_path, *BASE)
    search = drive.Search(Study(space), allocate(space.first, 2), lambda runs: None)
    seen = []

    def train(run, stop):
        search.stop.signals = 2  # as two of them do
        until(lambda: stop.signals > 1)
        seen.append(stop.signals)
        return INTERRUPTED

    trainings.train = train
    search.run()
    assert set(seen) == {2}
    assert set(states(tmp_path)) == {"RUNNING"}, "the same command goes on"


@pytest.mark.slow
def test_a_broken_store_in_the_thread_of_a_trial_ends_the_search(tmp_path, trainings, monkeypatch):
    def fail(*_):
        raise optuna.exceptions.StorageInternalError("the disk is full")

    monkeypatch.setattr(Study, "tell", fail)
    with pytest.raises(UserError, match=r"study\.db: the disk is full"):
        run_search(make_space(tmp_path, *BASE), [])


@pytest.mark.slow
def test_trials_are_sent_to_trackers(tmp_path, trainings, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class Notes:\n"
        "    def start(self, run):\n"
        "        self.name = run.name\n"
        "        return set()\n"
        "    def epoch(self, *values):\n"
        "        pass\n"
        "    def end(self, status, *values):\n"
        "        print(self.name, status, file=open('notes', 'a'))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (*BASE, "tune.trials=2", "+logger.notes._target_=mine.Notes")
    assert run_search(make_space(tmp_path, *words), []) == 0
    notes = (tmp_path / "notes").read_text().splitlines()
    assert len(notes) == 2
    assert {line.rpartition(" ")[2] for line in notes} == {"complete"}


@pytest.mark.slow
def test_what_diverges_is_never_the_best_and_what_fails_is_tried_again(tmp_path, trainings, capsys):
    def end(config):
        if config.optimizer.lr > 0.1:
            return "diverged", "train loss is nan in epoch 2"
        return ("failed", "out of luck") if trainings.begun < 4 else ("complete", None)

    trainings.end = end
    words = (*BASE, "+tune.sampler={_target_: optuna.samplers.RandomSampler, seed: 1}")
    space = make_space(tmp_path, *words)
    assert run_search(space, []) == 1
    shown = capsys.readouterr().out
    assert "failed: out of luck; see " in shown
    failed = [t for t in study_of(tmp_path).trials if t.state == TrialState.FAIL]
    assert failed
    assert run_search(space, []) == 0
    ended = study_of(tmp_path).trials
    again = [t for t in ended if "again" in t.user_attrs]
    assert [t.params for t in again] == [t.params for t in failed]
    assert all(t.state != TrialState.FAIL for t in again)
    diverged = [t for t in ended if t.params["optimizer.lr"] > 0.1]
    assert diverged
    assert {t.state for t in diverged} == {TrialState.PRUNED}
    assert "diverged: train loss is nan in epoch 2" in shown
    assert len(ended) - len(again) == 5


@pytest.mark.slow
def test_a_study_of_another_setting_is_refused(tmp_path, trainings):
    assert run_search(make_space(tmp_path, *BASE, "tune.trials=1"), []) == 0
    for other, said in (
        ("trainer.epochs=5", "expected trainer.epochs=4, as its trials so far have, not 5"),
        ("trainer.epochs=1", "expected trainer.epochs=4, as its trials so far have, not 1"),
        ("optimizer.lr=interval(0.1,1)", "expected optimizer.lr=tag(log, interval(0.001, 1.0)), "),
        ("optimizer.lr=0.1", "expected something to search"),
        ("tune.seeds=3", "expected tune.seeds=1, as its trials so far have, not 3"),
        ("tune.objective=last", "expected tune.objective=best"),
        ("tune.pruner._target_=optuna.pruners.No", "tune.pruner._target_=optuna.pruners.No: "),
        ("+tune.sampler.sead=1", "tune.sampler._target_=optuna.samplers.TPESampler: TypeError"),
    ):
        with pytest.raises(UserError) as caught:
            run_search(make_space(tmp_path, *BASE, other), [])
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    words = (*BASE, "trainer.epochs=5", "tune.study=other", "tune.trials=1")
    assert run_search(make_space(tmp_path, *words), []) == 0


@pytest.mark.slow
def test_a_broken_study_is_one_line(tmp_path, trainings):
    (tmp_path / "study-tune").mkdir()
    (tmp_path / "study-tune" / "study.db").write_text("no database" * 1000)
    with pytest.raises(UserError, match=r"study\.db: file is not a database"):
        run_search(make_space(tmp_path, *BASE), [])


def test_a_study_whose_last_trial_makes_no_configuration_is_over_for_those_who_look(
    tmp_path, trainings, monkeypatch
):
    runs, taken = drive.trial_runs, []

    def trial_runs(config):
        taken.append(config)  # the first is none of a trial
        if len(taken) == 2:
            raise UserError("these values exclude each other")
        return runs(config)

    monkeypatch.setattr(drive, "trial_runs", trial_runs)
    space = make_space(tmp_path, *BASE, "tune.trials=1")
    run_search(space, [])
    assert len(taken) == 2
    assert not find_asked(tmp_path)


def test_a_configuration_that_is_gone_fails_its_trial_which_is_done_again_once_it_is_back(
    tmp_path, trainings, monkeypatch
):
    space = make_space(tmp_path, *BASE, "tune.trials=1")
    with monkeypatch.context() as patch:
        gone = MissingConfigException("Could not load 'arch/mine'.")
        patch.setattr(space.grid, "config", Mock(side_effect=gone))
        assert run_search(space, []) == 1
    assert states(tmp_path) == ["FAIL"]
    assert run_search(make_space(tmp_path, *BASE, "tune.trials=1"), []) == 0
    assert states(tmp_path) == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_trials_are_no_results_unless_asked_for(tmp_path, trainings):
    assert run_search(make_space(tmp_path, *BASE, "tune.trials=2"), []) == 0
    with pytest.raises(UserError, match=r"only trials of a search in it, which aggregate\.py --t"):
        read_runs(tmp_path)
    assert len(read_runs(tmp_path, trials=True)[0]) == 2
    assert len(read_runs(tmp_path / "study-tune")[0]) == 2
    (run, _) = find_runs(tmp_path / "study-tune")
    place = tmp_path.joinpath(*run.path.parts[-5:])
    place.parent.mkdir(parents=True)
    run.path.rename(place)
    assert [found.path for found in find_runs(tmp_path)] == [place]


@pytest.mark.slow
def test_the_line_of_the_winner(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--config-dir", "conf", "-m", "experiment=tune"])
    words = ["experiment=tune", "arch=resnet20", "optimizer=sgd,adamw", "optimizer.clip_norm=1"]
    words += ["tune.trials=3", "sweep.retries=1", "task=tune", "trainer.batch_size=16,32"]
    line = winner_line({"optimizer": "sgd", "trainer.batch_size": 32}, words)
    assert line == (
        "python run.py --config-dir conf -m experiment=tune arch=resnet20 optimizer.clip_norm=1 "
        "task=train optimizer=sgd trainer.batch_size=32 'seed=range(7)'"
    )


@pytest.mark.slow
def test_settings_survive_json(tmp_path):
    setting = make_space(tmp_path, LR).setting()
    assert json.loads(json.dumps(setting)) == setting


@pytest.mark.slow
def test_the_source_of_every_choice_is_part_of_the_setting(tmp_path, monkeypatch):
    """Not of the first choice alone: trials of an edited loss were compared with earlier ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known: dict = {}
    study: Any = SimpleNamespace(user_attrs={"setting": known})

    def edit(name, text):
        (tmp_path / f"{name}.py").write_text(f"loss = {text}")

    def space():
        return make_space(
            tmp_path, "tune.study=x", "+loss._target_=first_loss.loss,other_loss.loss"
        )

    edit("first_loss", "abs")
    edit("other_loss", "abs")
    known |= space().setting()
    _compare(tmp_path, study, space())
    edit("other_loss", "max")
    said = r"expected loss.code of \+loss._target_=other_loss.loss=.*, as its trials so far have"
    with pytest.raises(UserError, match=said):
        _compare(tmp_path, study, space())
    for key in [key for key in known if " of " in key]:  # as in a study of an earlier version
        del known[key]
    _compare(tmp_path, study, space())
    edit("first_loss", "max")
    with pytest.raises(UserError, match=r"expected loss\.code="):
        _compare(tmp_path, study, space())
