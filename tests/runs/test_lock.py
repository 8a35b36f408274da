"""Who owns a run directory, what removes it, and what cannot be read of it."""

import errno
import json
import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from helpers import tiny

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.record import BrokenRecord, Provenance, Record, UnreadableRun


def run_in(root: Path, *overrides: str) -> RunDirectory:
    """Write a run with a record."""
    config = tiny(f"runs_dir={root}", *overrides)
    directory = RunDirectory.of(config)
    directory.write_config(config)
    directory.write_record(replace(Record.of(config, Provenance(host="here")), status="failed"))
    return directory


def me() -> str:
    """Return the name of the user who makes files, whatever USER or LOGNAME says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in many containers
        return f"user {os.geteuid()}"


@pytest.fixture
def waiting(tmp_path):
    """Return the directory of a run whose process waits for a device."""
    directory = RunDirectory(tmp_path / "digits" / "tiny" / "standard" / "0123abcd" / "seed=0")
    directory.path.mkdir(parents=True)
    directory.write_progress({"state": "waiting"})
    directory.log_file.write_text("waiting")
    return directory


def test_looking_whether_a_run_is_locked_creates_nothing(waiting):
    before = sorted(waiting.path.iterdir())
    assert not waiting.is_locked()
    assert sorted(waiting.path.iterdir()) == before
    assert not RunDirectory(waiting.path.parent / "seed=1").is_locked()
    assert list(waiting.path.parent.iterdir()) == [waiting.path]


def test_a_lock_of_an_earlier_version_is_seen_and_sees_ours(waiting):
    with FileLock(waiting.lock_file):
        assert waiting.is_locked()
        with pytest.raises(Timeout):
            waiting.lock().acquire(blocking=False)
    with waiting.lock().acquire(), pytest.raises(Timeout):
        FileLock(waiting.lock_file).acquire(blocking=False)


def test_what_a_process_waits_in_is_not_removed(waiting):
    with waiting.lock().acquire() as lock:
        assert not waiting.remove_if_not_begun()
        assert lock.is_held()
        assert waiting.log_file.exists()
    assert waiting.remove_if_not_begun()
    assert not (waiting.path.parents[3]).exists(), "with the folders that are empty now"
    assert waiting.remove_if_not_begun(), "nothing is there any more"


@pytest.mark.parametrize("name", ["record.json", "checkpoint.pt", "model.pt", "mine", "analysis"])
def test_what_holds_more_than_a_log_is_not_removed(waiting, name):
    (waiting.path / name).mkdir() if name == "analysis" else (waiting.path / name).touch()
    assert not waiting.remove_if_not_begun()
    assert {"run.log", "progress.json", name} <= {path.name for path in waiting.path.iterdir()}


def test_who_holds_a_lock_sees_that_its_file_was_removed(waiting):
    lock = waiting.lock().acquire()
    assert lock.is_held()
    waiting.lock_file.unlink()
    assert not lock.is_held()
    waiting.lock_file.touch()
    assert not lock.is_held(), "another file of that name is another lock"
    lock.release()
    assert not lock.is_held()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_again(waiting, monkeypatch):
    """Another process removes the directory between opening and locking."""
    opened = []

    def open_and_lose(path, *args):
        descriptor = real(path, *args)
        if path == str(waiting.lock_file):
            opened.append(path)
            if len(opened) == 1:
                os.unlink(path)
        return descriptor

    real = os.open
    monkeypatch.setattr(os, "open", open_and_lose)
    with waiting.lock().acquire(blocking=False) as lock:
        assert len(opened) == 2
        assert lock.is_held()
        assert waiting.is_locked()


def test_a_heartbeat_without_a_time_is_none(waiting):
    for time in (None, "now"):
        progress = {"state": "training", "host": "elsewhere", "time": time}
        waiting.progress_file.write_text(json.dumps(progress))
        assert not waiting.is_locked()


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_what_cannot_be_read_of_a_run_is_one_line_with_its_owner(tmp_path, monkeypatch, code):
    run, other = run_in(tmp_path), run_in(tmp_path, "seed=1")

    def refusing(real):
        def refuse(path, *args):
            if Path(path).parent == run.path:
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *args)

        return refuse

    monkeypatch.setattr(os, "open", refusing(os.open))
    said = rf"seed=0: cannot be read \({os.strerror(code)}\); it belongs to {me()}$"
    for ask in (run.read_record, run.status, run.is_locked):
        with pytest.raises(UnreadableRun, match=said):
            ask()
    assert issubclass(UnreadableRun, UserError), "one line, exit status 2, where nobody goes on"
    assert issubclass(UnreadableRun, BrokenRecord), "a table goes on without it"
    assert run.record_or_none() is None
    assert [found.status() for found in (other,)] == ["failed"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    run = run_in(tmp_path)
    (tmp_path / "file").touch()
    below = RunDirectory(tmp_path / "file" / run.path.name)
    with pytest.raises(UnreadableRun, match="Not a directory"):
        below.status()
    with pytest.raises(UserError, match=r"cannot be made, as .*file is no directory"):
        below.require_writable()


def test_a_run_of_another_user_cannot_be_written(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    run.require_writable()
    RunDirectory(run.path.parent / "seed=1").require_writable()
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != run.path)
    with pytest.raises(UserError, match=rf"seed=0: cannot be written; .*{me()}$"):
        run.require_writable()


def test_runs_behind_a_link_are_found_once(tmp_path):
    run = run_in(tmp_path / "big")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "digits").symlink_to(tmp_path / "big" / "digits")
    (runs / "again").symlink_to(tmp_path / "big")
    (run.path / "round").symlink_to(runs)  # back to where one came from
    (found,) = find_runs(runs)
    assert found.path.samefile(run.path)
    link = tmp_path / "big" / "link"
    link.symlink_to(tmp_path / "big" / "digits")
    assert [found.path for found in find_runs(tmp_path / "big")] == [run.path], "its own place"


def test_a_stray_record_hides_no_runs_below_it(tmp_path):
    run = run_in(tmp_path)
    (run.path / "analysis").mkdir()
    for folder in (tmp_path, run.path / "analysis"):
        (folder / "record.json").write_bytes(run.record_file.read_bytes())
    assert [found.path for found in find_runs(tmp_path)] == [tmp_path, run.path]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch, caplog):
    run_in(tmp_path, "seed=1")

    def scandir(path):
        if str(path).endswith("seed=1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert list(find_runs(tmp_path)) == list(find_runs(tmp_path)) == []
    assert caplog.text.count("seed=1: cannot be read (Permission denied); it belongs to") == 1


def test_a_file_system_that_only_reads_is_named(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(UserError, match="cannot be written; it belongs to"):
        run.require_writable()
    found = [*os.statvfs(tmp_path)]
    found[8] |= os.ST_RDONLY  # f_flag
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
    with pytest.raises(UserError, match=rf"cannot be written \({os.strerror(errno.EROFS)}\)$"):
        run.require_writable()
