"""What aggregate.py --status says of jobs in the queue of Slurm."""

from dataclasses import replace

import pytest
import trees
from cluster.queues import StandIn
from helpers import TINY, run_command, tiny

from resnests.commands.queue import is_queued, queue_lines, queued_runs
from resnests.commands.status import Status
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.sweeps import find_asked, read_asked, write_asked
from resnests.sweep.drive import run_sweep
from resnests.sweep.executors.submission import Submission, find_submissions
from resnests.sweep.plan import Run


def test_jobs_and_why_they_wait_are_listed_before_any_run_is_on_record(tmp_path, monkeypatch):
    for name in ("RESNESTS_SWEEP", "RESNESTS_COMMAND", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    root = tmp_path / "runs"
    root.mkdir()
    with pytest.raises(UserError, match="no run in it"):
        Status(str(root)).poll()
    config = tiny(f"runs_dir={root}")
    configs = [replace(config, seed=seed) for seed in range(25)]
    runs = [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]
    submission = Submission.write([[run] for run in runs])
    first = f"{submission.name}|17|0|RUNNING|n1|None"
    slurm.show(first, *(f"{submission.name}|17|{i}|PENDING||Resources" for i in range(1, 25)))
    lines = queue_lines(queued_runs(str(root)))
    assert lines[0] == "24 queued (24 Resources)"
    assert lines[1] == f"queued: {root}/{submission.batches[1][0]}, job 17_1 (Resources)"
    assert lines[21:] == [
        "and 4 more",
        f"not yet on record: {root}/{submission.batches[0][0]}, job 17_0 on n1",
    ]
    assert [str(part) for part in Status(str(root)).poll().renderables] == [
        *lines,
        f"no run in {root} yet",
    ]
    assert is_queued(str(root), ["seed=1"]), "as nobody planned it, it may be any run"
    write_asked(configs)
    assert is_queued(f"{root}/", ["seed=24"])
    slurm.show(first, f"{submission.name}|17|1|PENDING||Resources")
    assert is_queued(str(root), ["seed=1"])
    assert not is_queued(str(root), ["seed=24"])
    slurm.show(first, *(f"{submission.name}|17|{i}|PENDING||Resources" for i in range(1, 25)))
    runs[0].directory.path.mkdir(parents=True)
    runs[0].directory.record_file.touch()
    assert queue_lines(queued_runs(str(root))) == lines[:-1]


@pytest.mark.parametrize("task", ["train", "analyze"])
def test_what_waits_is_known_by_words_from_within_the_folder_too(tmp_path, monkeypatch, task):
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    words = (f"task={task}", *["analysis.train=true"] * (task == "analyze"))
    configs = [tiny(f"runs_dir={tmp_path}", f"seed={seed}", *words) for seed in range(2)]
    runs = [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]
    submission = Submission.write([[run] for run in runs])
    slurm.show(f"{submission.name}|17|1|PENDING||Resources")
    write_asked(configs)
    monkeypatch.chdir(tmp_path)
    for root in (str(tmp_path), "."):
        assert is_queued(root, ["seed=1"])
        assert not is_queued(root, ["seed=0"])


def test_the_status_of_the_folder_one_is_in_is_that_of_its_name(tmp_path, monkeypatch):
    write_asked([trees.make_config(tmp_path, seed=seed) for seed in range(4)], "a device")
    for seed in range(3):
        trees.add_run(tmp_path, seed=seed)
    monkeypatch.chdir(tmp_path)
    for root in (str(tmp_path), "."):
        first, _, sweep, *_ = map(str, Status(root).poll().renderables)
        assert first.startswith("3 of 4 done, 1 queued (a device)")
        assert "1 of 4 runs left" in sweep


@pytest.mark.parametrize("detach", ["true", "false"])
def test_what_the_queue_refuses_is_planned_nowhere(tmp_path, monkeypatch, detach):
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    monkeypatch.setattr("resnests.sweep.drive.prepare", lambda runs: None)
    root = tmp_path / "runs"
    words = [f"runs_dir={root}", "cluster=slurm", f"cluster.detach={detach}"]
    configs = [tiny(*words, f"seed={seed}") for seed in (0, 1)]
    (slurm.folder / "room").write_text("0")
    with pytest.raises(UserError, match="QOSMaxSubmit"):
        run_sweep(configs, lambda *_: None)
    assert not find_asked(root) + find_submissions(root)
    (slurm.folder / "room").write_text("9")
    if detach == "true":
        assert run_sweep(configs, lambda *_: None) == 0
        assert (len(find_asked(root)), len(find_submissions(root))) == (1, 1)


@pytest.mark.slow
def test_after_a_detached_submission_the_whole_grid_is_known_at_once(tmp_path, monkeypatch):
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    words = ("-m", *TINY, "seed=0,1,2", "cluster=slurm", "cluster.detach=true")
    done = run_command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs"
    (submission,) = find_submissions(root)
    assert set(read_asked(*find_asked(root)).cells[0].seeds) == {0, 1, 2}
    slurm.show(*(f"{submission.name}|17|{i}|PENDING||Resources" for i in range(3)))
    first, _, *rest = map(str, Status(str(root)).poll().renderables)
    assert first == "0 of 3 done, 3 queued (Resources)"
    assert any("3 of 3 runs left, at work on" in line for line in rest)
    slurm.show()  # all of them were cancelled
    first, _, *rest = map(str, Status(str(root)).poll().renderables)
    assert first == "0 of 3 done, 3 planned"
    assert any("no process of it on this host" in line for line in rest)
