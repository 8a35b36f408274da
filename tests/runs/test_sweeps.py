"""What a sweep was asked for: the file beside its runs, and what those see who look."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import trees
from helpers import REPOSITORY, TINY, run_command
from trees import add_run, make_config

from resnests import load_runs
from resnests.commands.status import Status, show
from resnests.errors import UserError
from resnests.results import frame
from resnests.results.cells import label_rows
from resnests.results.frame import Reader, read_runs
from resnests.results.tables import accuracy_tables
from resnests.runs.analysis import Analysis
from resnests.runs.directory import RunDirectory
from resnests.runs.sweeps import (
    find_asked,
    kinds_of,
    read_asked,
    remove_asked,
    remove_done,
    seconds_left,
    write_asked,
    write_search,
)
from resnests.sweep.executors.slurm_commands import Seen
from resnests.sweep.scheduler import State


def grid(root, seeds=3, variants=("standard", "resnest"), **more):
    return [
        make_config(root, variant=variant, seed=seed, **more)
        for variant in variants
        for seed in range(seeds)
    ]


def ask(root, configs, dead=False, replaces=(), **change):
    """Write what a sweep leaves, and change it as if another process had."""
    root.mkdir(exist_ok=True)
    before = {path: path.stat().st_ino for path in find_asked(root)}
    write_asked(configs, "waiting for a device", replaces)
    (file,) = (path for path in find_asked(root) if path.stat().st_ino != before.get(path))
    if dead or change:
        asked = json.loads(file.read_text()) | ({"process_started": 1.0} if dead else {}) | change
        file.write_text(json.dumps(asked))
    return file


def start(folder, *words):
    """Start a sweep as a user does, on devices of its own."""
    environment = os.environ | {"RESNESTS_LOCK_DIR": str(folder / "leases")}
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    with open(folder / "sweep.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def status_lines(folder):
    """Return what aggregate.py --status prints of a folder's runs, as far as there are any."""
    try:
        return lines(folder / "runs")
    except UserError as error:
        return [str(error)]


def lines(root, *query):
    found = [str(part) for part in Status(str(root), query=query).poll().renderables]
    return [line for part in found for line in part.splitlines()]


def test_planned_runs_are_counted_in_status_and_tables_but_are_no_runs(tmp_path):
    root = tmp_path / "runs"
    ask(root, grid(root), dead=True)
    add_run(root, variant="standard", seed=0)
    first, *rest = lines(root)
    assert first == "1 of 6 done, 5 planned; about 2:46 h left, one at a time"  # 2000 s a run
    assert any("5 of 6 runs left, no process of it on this host" in line for line in rest)
    runs, _ = read_runs(root, planned=True)
    (table,) = accuracy_tables(label_rows(runs))
    assert table.rows[0][1:3] == ["90.00% (0.27M) [2 planned]", "— [3 planned]"]
    assert "Planned: seeds 1, 2 of ResNet-20 Standard." in table.notes
    assert len(load_runs(root)) == 1
    assert lines(root, "variant=resnest")[0].startswith("0 of 3 done, 3 planned")


def test_words_choose_the_sweeps_that_have_such_runs_to_do(tmp_path):
    root = tmp_path / "runs"
    for variant in ("standard", "resnest"):
        ask(root, grid(root, variants=(variant,)), command=f"for {variant}", dead=True)
    add_run(root, arch="resnet8")
    write_search(make_config(root), ended=3, pace=None)
    for word, shown in (("variant=resnest", 1), ("seed=1", 2), ("arch=resnet8", 0)):
        found = [line.strip() for line in lines(root, word)]
        assert sum(line.startswith("for ") for line in found) == shown
        assert any("17 of 20 trials" in line for line in found), "which may be of any runs"
    assert "for resnest" in [line.strip() for line in lines(root, "variant=resnest")]


def test_planned_runs_of_another_recipe_are_a_row_of_their_own(tmp_path):
    root = tmp_path / "runs"
    add_run(root)
    ask(root, grid(root, variants=("standard",), trainer__epochs=5, trainer__batch_size=64))
    runs = label_rows(read_runs(root, planned=True)[0])
    (table,) = accuracy_tables(runs)
    second, first = (row[:2] for row in table.rows)
    assert first == ["ResNet-20, trainer.batch_size=128, trainer.epochs=200", "90.00% (0.27M)"]
    assert "trainer.batch_size=64" in second[0]
    assert second[1] == "— [3 planned]"
    begun = add_run(root, variant="standard", trainer__epochs=5, trainer__batch_size=64)
    after = label_rows(read_runs(root, planned=True)[0])
    mine = after[after["recipe"] == begun.read_record().recipe]
    assert set(mine["row"]) == {second[0].removeprefix("ResNet-20, ")}
    assert sorted(mine["status"]) == ["complete", "planned", "planned"]


def test_while_the_sweep_lives_its_runs_wait_and_say_for_what(tmp_path):
    root = tmp_path / "runs"
    file = ask(root, grid(root))
    assert lines(root)[0] == "0 of 6 done, 6 queued (waiting for a device)"
    assert "at work on" in "".join(lines(root))
    ask(root, grid(root), dead=True)
    first, *rest = lines(root)
    assert first == "0 of 6 done, 6 planned"
    assert any("no process of it on this host; this goes on with it:" in line for line in rest)
    assert any(f"rm {file}" in line for line in rest)


def test_a_command_is_one_line_on_a_narrow_terminal_and_all_else_fits(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "dumb")  # without colours
    monkeypatch.setenv("COLUMNS", "80")
    root = tmp_path / "runs"
    command = f"python run.py -m {' '.join(f'trainer.key_{i}=value' for i in range(20))}"
    ask(root, grid(root), command=command, dead=True)
    add_run(root, status="failed", record={"error": "ValueError: " + "long words " * 20})
    show(str(root))
    printed = capsys.readouterr().out.splitlines()
    wide = [line for line in printed if len(line) > 80]
    assert sum(line.endswith(command) for line in wide) == 1
    assert all(line.endswith(command) or str(tmp_path) in line for line in wide)
    assert any("1 failed" in line for line in printed)


def test_a_copy_is_finished_where_it_is(tmp_path):
    root, copy = tmp_path / "runs", tmp_path / "my copy"
    ask(root, grid(root), dead=True)
    assert not any("runs_dir=" in line for line in lines(root))
    root.rename(copy)
    found = lines(copy)
    (command,) = [line for line in found if "runs_dir=" in line]
    assert command.endswith(f" 'runs_dir={copy}'")
    assert any("as given it was to train elsewhere" in line for line in found)
    (file,) = find_asked(copy)
    assert any(line.endswith(f"rm '{file}')") for line in found), "it can be pasted, too"


def test_a_study_that_was_moved_goes_on_where_it_is(tmp_path):
    (root := tmp_path / "runs").mkdir()
    write_search(make_config(root), ended=3, pace=None)
    assert not any("runs_dir=" in line for line in lines(root))
    root.rename(tmp_path / "moved")
    found = lines(tmp_path / "moved")
    assert any(line.endswith(f" runs_dir={tmp_path / 'moved'}") for line in found)


@pytest.mark.parametrize("word", ["sed=0", "nosuch=1", "variant=nosuch"])
def test_a_wrong_word_is_refused_also_where_all_runs_are_planned(tmp_path, word):
    root = tmp_path / "runs"
    ask(root, grid(root), dead=True)
    with pytest.raises(UserError, match=rf"^{word}: "):
        lines(root, word)


def test_the_file_goes_when_all_is_done_and_not_before(tmp_path):
    root = tmp_path / "runs"
    configs = grid(root, seeds=1)
    file = ask(root, configs)
    add_run(root, variant="standard")
    now = {"ended": time.time()}
    add_run(root, variant="resnest", status="failed", record={"error": "no"}, provenance=now)
    remove_done(str(root))
    assert file.exists()
    assert lines(root)[0] == "1 of 2 done, 1 failed"
    add_run(root, variant="resnest", status="diverged", record={"error": "nan"})
    assert not any("sweep since" in line for line in lines(root))  # before it is removed, too
    remove_done(str(root))
    assert not file.exists()


def test_a_sweep_that_lives_keeps_its_file_though_all_runs_ended_once(tmp_path):
    """It may be about to start them afresh."""
    root = tmp_path / "runs"
    file = ask(root, grid(root, 1, ("standard",)), pid=os.getppid())
    parent = json.loads(file.read_text())
    import psutil

    parent["process_started"] = psutil.Process(os.getppid()).create_time()
    file.write_text(json.dumps(parent))
    add_run(root)
    remove_done(str(root))
    assert file.exists()


def test_overlapping_sweeps_are_counted_once_and_each_has_its_command(tmp_path):
    root = tmp_path / "runs"
    one, other = ask(root, grid(root, 2), dead=True), ask(root, grid(root, 3), dead=True)
    assert one != other
    assert lines(root)[0] == "0 of 6 done, 6 planned"
    assert sum("sweep since" in line for line in lines(root)) == 2
    assert ask(root, grid(root, 3), dead=True) == other  # the same command: the same file
    for config in grid(root, 2):
        add_run(root, variant=config.variant.name, seed=config.seed)
    remove_done(str(root))
    assert find_asked(root) == [other]


def test_a_sweep_that_is_gone_is_not_at_work_because_another_trains_its_runs(tmp_path):
    root = tmp_path / "runs"
    me = {"pid": os.getpid(), "process_started": psutil.Process().create_time()}
    ask(root, grid(root, 1), dead=True)
    add_run(root, status="running", provenance=me | {"host": socket.gethostname()})
    assert "1 running, 1 queued" in lines(root)[0], "of the same command, started twice"
    ask(root, grid(root, 2, ("standard",)))
    first, *rest = lines(root)
    assert first == "0 of 4 done, 1 running, 1 queued (waiting for a device), 1 planned, 1 missing"
    assert sum("no process of it on this host" in line for line in rest) == 1


@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "other weights"])
def test_runs_that_are_made_again_are_not_done_until_they_are(tmp_path, overwrite):
    root = tmp_path / "runs"
    runs = [add_run(root, seed=seed) for seed in range(4)]
    configs = grid(root, 4, ("standard",), trainer__overwrite=overwrite)
    file = ask(root, configs, replaces=[run.record_digest() for run in runs])
    left = "; about 2:13 h left" if overwrite else "; about 40.0 s left"
    queued = "0 of 4 done, 4 queued (waiting for a device)"
    assert lines(root)[0] == f"{queued}{left}, one at a time"
    assert "4 of 4 runs left, at work on" in "".join(lines(root))
    remove_done(str(root))
    assert file.exists()
    now = {"started": time.time(), "ended": time.time()}
    add_run(root, seed=0, provenance=now, record={"seconds": 4000.0})
    add_run(root, seed=1, status="running", provenance=now | {"host": "another"})
    runs[1].progress_file.write_text(json.dumps({"time": time.time(), "state": "starting"}))
    first = lines(root)[0]
    assert first.startswith("1 of 4 done, 1 running, 2 queued (waiting for a device); about ")
    for seed in range(4):
        add_run(root, seed=seed, provenance=now)
    remove_done(str(root))
    assert not file.exists()


def test_a_run_and_its_analysis_may_both_be_made_again(tmp_path):
    root = tmp_path / "runs"
    run = add_run(root)
    run.analysis.path.mkdir()
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64))
    run.analysis.write_record(replace(run.read_record(), task="analyze"))
    for task, directory in (("train", run), ("analyze", run.analysis)):
        again = make_config(root, task=task, trainer__overwrite=True)
        ask(root, [again], replaces=[directory.record_digest()])
    said = [line.split(": ")[1] for line in lines(root) if line.startswith("sweep since")]
    left = sorted(line.partition(", at work on")[0] for line in said)
    assert left == ["1 of 1 runs left", "1 of 1 runs to analyse left"]


def test_the_command_of_a_sweep_that_is_gone_leaves_finished_runs_as_they_are(
    tmp_path, monkeypatch
):
    root = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "seed=0,1", "++trainer.overwrite=true"])
    digests = [add_run(root, seed=seed).record_digest() for seed in range(2)]
    configs = grid(root, 2, ("standard",), trainer__overwrite=True)
    file = ask(root, configs, replaces=digests)
    assert lines(root)[-1].endswith("run.py -m seed=0,1")
    ask(root, configs, replaces=digests, dead=True)
    assert lines(root)[0] == "2 of 2 done"
    assert not any("sweep since" in line for line in lines(root))
    remove_asked(configs)  # as that command does, which has nothing to do
    assert not file.exists()


@pytest.mark.parametrize("change", [{"host": "another"}, {"config": {"cluster.name": "slurm"}}])
def test_what_jobs_or_another_host_may_make_again_keeps_its_file(tmp_path, change):
    root = tmp_path / "runs"
    digests = [add_run(root, seed=seed).record_digest() for seed in range(2)]
    configs = grid(root, 2, ("standard",), trainer__overwrite=True)
    file = ask(root, configs, replaces=digests, dead=True, **change)
    remove_asked(configs)
    assert file.exists()
    now = {"started": time.time(), "ended": time.time()}
    for seed in range(2):
        add_run(root, seed=seed, provenance=now, record={"seconds": 1.0})
    remove_done(str(root))
    assert not file.exists()


def test_runs_that_go_on_wait_like_those_that_begin(tmp_path):
    root = tmp_path / "runs"
    before = {"ended": time.time() - 60}
    for seed in range(3):
        add_run(root, seed=seed, status="interrupted", provenance=before)
    ask(root, grid(root, 4, ("standard",)))
    assert lines(root)[0] == "0 of 4 done, 4 queued (waiting for a device)"
    assert not any(line.startswith("interrupted: ") for line in lines(root))
    add_run(root, seed=0, status="failed", provenance={"ended": time.time()})
    assert lines(root)[0] == "0 of 4 done, 1 failed, 3 queued (waiting for a device)"


def test_the_time_left_is_of_runs_of_its_kind_on_its_devices(tmp_path):
    root = tmp_path / "runs"
    started = time.time()
    for seed in range(3):
        add_run(root, seed=seed, record={"seconds": 300.0}, trainer__epochs=10)
    for seed in range(28):
        weights = {"weights": f"w{seed}.pt", "weights_sha256": f"{seed}", "task": "evaluate"}
        weights |= {"seconds": 2.0, "epochs": 0}
        add_run(root, seed=seed, record=weights, trainer__epochs=10, trainer__ema=0.9)
    mine = {"trainer__epochs": 10, "trainer__batch_size": 64}
    ask(root, grid(root, 3, ("standard",), **mine), started=started)
    assert lines(root)[0].endswith("about 15:00 min left, one at a time")
    add_run(root, seed=0, record={"seconds": 100.0}, **mine)
    assert lines(root)[0].endswith("about 3:20 min left, one at a time")
    on_the_device_of_now = {"started": started + 1}
    add_run(root, seed=1, record={"seconds": 10.0}, provenance=on_the_device_of_now, **mine)
    assert lines(root)[0].endswith("about 10.0 s left, one at a time")


def test_an_analysis_that_waits_in_a_queue_is_at_work(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    configs = [replace(config, task="analyze") for config in grid(root, 2, ("standard",))]
    add_run(root)
    ask(root, configs, dead=True, waits_for=None)
    waits = Seen("17_0", State.QUEUED, "", "Resources")
    queue = {str(RunDirectory.of(config).path): waits for config in configs}
    monkeypatch.setattr("resnests.commands.status.queued_runs", lambda root: queue)
    first, *rest = lines(root)
    assert first.startswith("1 of 2 done, 1 queued (Resources)")
    assert any("2 of 2 runs to analyse left, at work on" in line for line in rest)
    assert not any("rm " in line for line in rest)


def test_words_choose_among_the_jobs_that_wait(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    configs = grid(root, 1)
    ask(root, configs, dead=True)
    paths = [str(RunDirectory.of(config).path) for config in configs]
    waits = Seen("17_0", State.QUEUED, "", "Resources")
    queue = dict.fromkeys([*paths, f"{paths[0]}/analysis", f"{root}/unplanned"], waits)
    monkeypatch.setattr("resnests.commands.status.queued_runs", lambda root: queue)
    found = lines(root, "variant=standard")
    assert "3 queued (3 Resources)" in found
    assert not any(line.startswith(f"queued: {paths[1]},") for line in found)
    assert any(line.startswith(f"queued: {paths[1]},") for line in lines(root))


def test_two_users_have_a_file_each_and_one_that_is_closed_is_named(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    mine = ask(root, grid(root), dead=True)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    theirs = ask(root, grid(root), dead=True)
    assert mine != theirs
    assert lines(root)[0] == "0 of 6 done, 6 planned"

    def read(path):
        if path == theirs:  # as its mode would have it for anybody but root
            raise PermissionError(13, "Permission denied")
        return read_asked(path)

    monkeypatch.setattr(frame, "read_asked", read)
    first, *rest = lines(root)
    assert first.startswith("0 of 6 done, 6 planned")
    assert f"{theirs}: passed over, [Errno 13] Permission denied" in rest
    assert not [line for line in rest if f"{mine}: passed over" in line]


def test_deleted_runs_are_planned_again_and_removed_files_forget_them(tmp_path):
    root = tmp_path / "runs"
    file = ask(root, grid(root, 1), dead=True)
    run = add_run(root)
    assert lines(root)[0].startswith("1 of 2 done, 1 planned")
    for path in sorted(run.path.rglob("*")):
        path.unlink()
    run.path.rmdir()
    assert lines(root)[0] == "0 of 2 done, 2 planned"
    file.unlink()
    with pytest.raises(UserError, match="no run in it"):
        lines(root)


A, B, C = (kinds_of("train", "cifar10", arch) for arch in ("a", "b", "c"))
HOSTILE = [
    "", "{", "[]", "null", "[" * 100_000, '{"schema": 2}', '{"schema": 1}',
    {"started": 1e300}, {"started": -1}, {"process_started": 1e12}, {"pace": 1e308},
    {"trials": -1}, {"trials": 10**400}, {"ended": 10**400},
    {"schema": 9}, {"cells": 3}, {"pid": "x"},
    {"cells": [{"place": "../../etc/passwd/00000000", "seeds": [0]}]},
    {"cells": [{"place": "/a/b/c/00000000", "seeds": [0]}]},
    {"cells": [{"place": "a/b/c/00000000", "seeds": [10**30]}]},
    {"cells": [{"place": "a/b/c/00000000", "seeds": ["x"]}]},
    {"cells": [{"place": "a/b/c/00000000", "seeds": [0], "config": {"a.b": {}}}]},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_file_that_is_no_sweeps_is_passed_over_with_one_line(tmp_path, content):
    root = tmp_path / "runs"
    add_run(root)
    file = ask(root, grid(root, 1, ("resnest",)))
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_text(content)
    first, *rest = lines(root)
    assert first == "1 of 1 done"
    (line,) = [line for line in rest if "passed over" in line]
    assert line.startswith(f"{file}: passed over, ")
    remove_done(str(root))
    assert file.exists()


def test_what_is_no_file_is_not_opened(tmp_path):
    add_run(tmp_path)
    os.mkfifo(tmp_path / ".grid-a.json")
    (tmp_path / ".grid-b.json").mkdir()
    (tmp_path / ".grid-c.json").symlink_to("/dev/zero")
    assert sum("passed over, no file" in line for line in lines(tmp_path)) == 3


def test_keys_and_commands_that_somebody_made_up_do_no_harm(tmp_path):
    root = tmp_path / "runs"
    add_run(root)
    ask(
        root,
        grid(root, 1, ("resnest",)),
        command="python run.py \x1b[2J; rm -rf /",
        config={"path": "x", "status": "complete", "provenance.host": "x", "analysis.status": "x",
                "dataset.name": "y", "trainer.epochs": 5},
    )  # fmt: skip
    text = "\n".join(lines(root))
    assert "1 of 2 done" in text
    assert "\x1b" not in text


def test_trees_side_by_side_and_parts_of_one_know_their_sweeps(tmp_path):
    for name in ("alice", "bob"):
        root = tmp_path / name
        ask(root, grid(root, 2, ("standard", "resnest")), dead=True)
        add_run(root, variant="standard" if name == "alice" else "resnest")
    assert lines(tmp_path)[0].startswith("2 of 4 done, 2 planned")
    assert not [line for line in lines(tmp_path) if "left out" in line and "seed=1" in line]
    add_run(tmp_path / "alice", dataset="cifar100")
    assert lines(tmp_path / "alice" / "cifar10")[0].startswith("1 of 4 done, 3 planned")
    assert lines(tmp_path / "alice" / "cifar100")[0] == "1 of 1 done"


def test_a_folder_that_nobody_may_write_to_is_looked_at_and_left_alone(tmp_path):
    root = tmp_path / "runs"
    file = ask(root, grid(root, 1), dead=True)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    root.chmod(0o555)
    try:
        assert lines(root)[0] == "0 of 2 done, 2 planned"
    finally:
        root.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert file.exists()


def test_that_it_cannot_be_written_is_a_warning(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnests.runs.sweeps.write_atomic", full)
    write_asked(grid(tmp_path))
    assert "warning: " in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_an_analysis_is_known_by_its_own_directory(tmp_path):
    root = tmp_path / "runs"
    configs = [replace(config, task="analyze") for config in grid(root, 2, ("standard",))]
    run = add_run(root)
    add_run(root, seed=1)
    ask(root, configs, dead=True)
    assert "2 of 2 runs to analyse left" in "\n".join(lines(root))
    for directory in (run, RunDirectory(run.path.parent / "seed=1")):
        directory.analysis.path.mkdir()
        record = replace(directory.read_record(), task="analyze")
        directory.analysis.write_record(record)
    remove_done(str(root))
    assert not find_asked(root)


def test_a_search_says_how_many_trials_are_left(tmp_path):
    config = make_config(tmp_path)
    write_search(config, ended=3, pace=60.0)
    text = "\n".join(lines(tmp_path))  # with no run at all
    assert "17 of 20 trials of study-tune, about 17:00 min left, at work on" in text
    add_run(tmp_path)
    assert "17 of 20 trials" in "\n".join(lines(tmp_path))
    write_search(config, ended=20, pace=60.0)
    assert not find_asked(tmp_path)


def test_a_study_that_has_ended_says_how(tmp_path):
    table = tmp_path / "study-tune" / "trials.csv"
    table.parent.mkdir()
    table.write_text('trial,state,reason\n0,complete,\n1,complete,\n2,pruned,"a\nb"\n')
    ended = f"trials of study-tune: 2 complete, 1 pruned; see {table}"
    assert lines(tmp_path) == [ended]  # with no run beside it
    add_run(tmp_path)
    assert lines(tmp_path)[-1] == ended
    assert ended not in lines(tmp_path, "seed=0")
    (table.parent.parent / "study-other").mkdir()
    (table.parent.parent / "study-other" / table.name).write_bytes(b"state\n\xff")
    assert lines(tmp_path)[-1] == ended, "what is no table is passed over"
    write_search(make_config(tmp_path), ended=3, pace=60.0)  # more trials are asked for
    assert not any("trials.csv" in line for line in lines(tmp_path))


def test_the_last_of_a_study_s_users_forgets_it_for_all(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    longer = replace(config, tune=replace(config.tune, trials=30))
    write_search(config, ended=3, pace=60.0)
    for user in (4711, 4712):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        write_search(longer if user == 4711 else config, ended=4, pace=60.0)
    assert len(find_asked(tmp_path)) == 3
    write_search(config, ended=20, pace=60.0)
    (left,) = find_asked(tmp_path)
    assert read_asked(left).trials == 30


def test_ten_thousand_runs_are_a_small_file(tmp_path):
    config = make_config(tmp_path)
    write_asked([replace(config, seed=seed) for seed in range(1000)])
    (file,) = find_asked(tmp_path)
    assert file.stat().st_size < 10_000
    assert read_asked(file).count() == 1000


def test_a_look_at_nothing_new_reads_no_file_again(tmp_path, monkeypatch):
    add_run(tmp_path)
    ask(tmp_path, grid(tmp_path), dead=True)
    reader = Reader(tmp_path, planned=True)
    frame, _ = reader.read()
    monkeypatch.setattr("resnests.results.frame.read_asked", None)
    assert reader.read()[0] is frame


@pytest.mark.parametrize(
    ("known", "running", "waiting", "left"),
    [
        ([], [], {}, 0),
        ([], [], {A: 3}, None),
        ([(A, 2.0)], [], {A: 3}, 6),
        ([(A, 2.0), (A, 4.0)], [], {A: 3}, 9),
        ([(A, 2.0)], [], {B: 3}, None),
        ([(A, 2.0), (B, 50.0)], [], {A: 3, B: 1}, 56),
        ([(A, 2.0), (B, 50.0)], [], {A: 3, C: 2}, None),
        ([(A, 2.0)], [], {kinds_of("evaluate", "cifar10", "a"): 3}, None),
        ([(A, 2.0)], [10.0, 20.0], {A: 5}, 20),
    ],
)
def test_the_time_left_is_from_what_was_measured(known, running, waiting, left):
    assert seconds_left(known, running, waiting) == left


@pytest.mark.slow
def test_a_sweep_leaves_its_file_until_it_is_done_and_a_dry_run_none(tmp_path):
    grid = ("-m", *TINY, "seed=0,1", "trainer.device=cpu")
    assert run_command(*grid, "sweep.dry_run=true", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "runs").exists()
    words = (*grid, "trainer.epochs=2000")
    process = start(tmp_path, *words)
    while " running" not in status_lines(tmp_path)[0]:
        assert process.poll() is None
        time.sleep(0.3)
    assert any("at work on" in line for line in status_lines(tmp_path))
    process.kill()
    process.wait()
    while "at work on" in "".join(left := status_lines(tmp_path)):
        time.sleep(0.3)  # its training sees that it is gone
    assert any("no process of it" in line for line in left)
    (line,) = [line for line in left if " && python " in line]
    assert line.strip().startswith(f"cd {tmp_path} && python ")
    assert shlex.split(line)[-len(words) :] == list(words)


def test_the_tables_of_a_tree_with_a_finished_sweep_are_as_they_were(tmp_path):
    trees.add_run(tmp_path)
    write_asked([make_config(tmp_path)])
    planned, plain = read_runs(tmp_path, planned=True)[0], read_runs(tmp_path)[0]
    assert planned.equals(plain)
