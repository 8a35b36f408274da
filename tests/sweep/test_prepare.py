"""Test what a sweep does once for all runs before the first."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from data_images import images
from helpers import make_config, until

from resnests.data import splits
from resnests.environment import begin_dry_run
from resnests.errors import UserError
from resnests.sweep import prepare


@pytest.fixture
def asked(monkeypatch):
    """Return what other processes are asked for."""
    calls = []
    monkeypatch.setattr(prepare, "_run_module", lambda *words, **more: calls.append((words, more)))
    return calls


def test_all_weights_are_tried_on_images_of_ones_own_and_each_network_once(tmp_path, asked):
    mine = dataclasses.replace(make_config("arch=resnet8"), dataset=images(tmp_path))
    given = [
        dataclasses.replace(mine, task="evaluate", weights=weights, seed=seed)
        for weights, seed in (("a.pt", 0), ("b.pt", 0), ("official", 0), ("official", 1))
    ]
    prepare.prepare([mine, dataclasses.replace(mine, seed=1), *given])
    names = [words[0] for words, _ in asked]
    assert names == ["resnests.data.splits", "resnests.tasks.preflight"]
    tried = json.loads(asked[1][1]["given"])
    assert [one["weights"] for one in tried] == [None, "a.pt", "b.pt", "official", "official"]


@pytest.mark.parametrize(
    ("words", "is_read"),
    [
        ([], False),
        (["dataset.val_fraction=0.1"], False),
        (["dataset.val_fraction=0.001"], True),
        (["dataset.val_fraction=0.13", "dataset.train_limit=64"], True),
    ],
)
def test_images_are_read_before_the_first_run_where_none_may_be_held_out(asked, words, is_read):
    begin_dry_run()
    prepare.prepare([make_config("dataset=digits", "arch=resnet8", *words)])
    assert len(asked) == is_read
    for (_, *given), _ in asked:
        if "dataset.train_limit=64" in words:  # one class has 8, so that 0.13 is one
            splits.main(*given)
        else:
            with pytest.raises(UserError, match=r"dataset.val_fraction=0.001: expected 0, or at"):
                splits.main(*given)


def test_given_weights_are_tried_before_the_first_run(asked):
    evaluated = dataclasses.replace(make_config("dataset=digits"), task="evaluate", weights="a.pt")
    prepare.prepare([make_config("dataset=digits"), evaluated])
    ((_, more),) = asked
    assert [one["weights"] for one in json.loads(more["given"])] == ["a.pt"]


def test_the_bound_on_memory_is_that_of_the_runs(tmp_path, asked):
    configs = [
        dataclasses.replace(make_config("arch=resnet8", *bound), dataset=images(tmp_path))
        for bound in ([], ["pipeline.memory_gb=2"])
    ]
    prepare.prepare(configs)
    assert [words[2] for words, _ in asked if words[0] == "resnests.data.splits"] == ["null", "2.0"]


def test_progress_of_another_process_is_shown_and_its_errors_are_not(tmp_path, monkeypatch, capfd):
    code = "import os, sys; os.write(int(os.environ['RESNESTS_PROGRESS']), b'half'); sys.exit('no')"
    (tmp_path / "shows.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^no$"):
        prepare._run_module("shows")
    assert capfd.readouterr().err == "half"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["prepare", "drive"])
def test_a_signal_leaves_no_process_behind(tmp_path, place, number):
    (tmp_path / "waits.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    call = {
        "prepare": "prepare._run_module('waits')",
        "drive": "drive._run_with_torch(('waits',), [])",
    }
    code = f"import sys; from resnests.sweep import {place}; {call[place]}"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    above = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    written = tmp_path / "pid"
    until(lambda: written.is_file() and written.read_text())
    above.send_signal(number)
    above.wait(90)
    until(lambda: not psutil.pid_exists(int(written.read_text())))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_fetches_nothing(tmp_path, asked, dry_run):
    if dry_run:
        begin_dry_run()
    parts = {"dataset": make_config("dataset=cifar10", f"dataset.root={tmp_path}").dataset}
    config = dataclasses.replace(make_config("arch=densenest40_12"), **parts)
    prepare.prepare([config])
    assert len(asked) == (0 if dry_run else 2)
