import errno
import fcntl
import json
import math
import os
import socket
import time
from dataclasses import replace

import psutil
import pytest
from filelock import Timeout
from helpers import make_config, tiny

from resnests.errors import UserError
from resnests.results.columns import decode
from resnests.runs import files
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.files import require_locks
from resnests.runs.record import BrokenRecord, Provenance, Record


@pytest.fixture
def directory(tmp_path):
    config = tiny(f"runs_dir={tmp_path}")
    directory = RunDirectory.of(config)
    directory.write_config(config)
    directory.write_record(Record.of(config, Provenance(host="here")))
    return directory


def test_the_place_of_a_run_follows_from_its_configuration_alone(tmp_path):
    one = RunDirectory.of(make_config(f"runs_dir={tmp_path}", "variant=resnest", "seed=3")).path
    assert one.parts[-5:-2] == ("cifar10", "resnet20", "resnest")
    assert one.name == "seed=3"
    assert (
        one.parent
        == RunDirectory.of(
            make_config(f"runs_dir={tmp_path}", "variant=resnest", "seed=4")
        ).path.parent
    )
    longer = RunDirectory.of(
        make_config(f"runs_dir={tmp_path}", "variant=resnest", "seed=3", "trainer.epochs=201")
    )
    assert longer.path.parent != one.parent


def changed(text, **values):
    return json.dumps(json.loads(text) | values).encode()


def measured(text: bytes, value: bytes) -> bytes:
    """Return a complete record in which everything was measured, as `value`."""
    for name in (b"train_loss", b"train_accuracy", b"test_loss", b"test_accuracy"):
        text = text.replace(b'"%s": null' % name, b'"%s": %s' % (name, value))
    text = text.replace(b'"parameters": null', b'"parameters": 1')
    return text.replace(b'"running"', b'"complete"')


def test_a_complete_record_has_all_that_was_measured(directory):
    text = directory.record_file.read_bytes()
    assert Record.from_json(measured(text, b"1")).status == "complete"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"\xff\xfe\x00",
        lambda text: text.replace(b'"schema": 1', b'"schema": 99'),
        lambda text: text.replace(b'"running"', b'"resting"'),
        lambda text: text.replace(b'"running"', b'"complete"'),
        lambda text: text.replace(b'"seed": 0', b'"seed": "zero"'),
        lambda text: measured(text, b"NaN"),
        lambda text: measured(text, b"true"),
        lambda text: measured(text, b"1e400"),
        lambda text: changed(text, images_per_second=math.nan),
        lambda text: changed(text, metrics={"f1": {"test": math.nan}}),
        lambda text: changed(text, error="\ud800"),
        lambda text: changed(text, seed=True),
        lambda text: changed(text, classes=["cat", 1]),
        lambda text: changed(text, mean=["a"]),
        lambda text: changed(text, images={"test": "a"}),
        lambda text: b"[" * 100_000,
        lambda text: changed(text, seconds=1e300),
        lambda text: changed(text, seconds=-1),
        lambda text: changed(text, parameters=-1),
        lambda text: changed(text, frozen_parameters=10**400),
        lambda text: changed(text, test_accuracy=10**400),
        lambda text: changed(text, metrics={"f1": {"test": "abc"}}),
        lambda text: changed(text, metrics={"f1": {"val": 10**400}}),
        lambda text: changed(text, metrics={"f1": {"test": 1.0, "definition": ["a"]}}),
        lambda text: changed(text, metrics={"f1": [1.0]}),
        lambda text: changed(text, metrics={"accuracy": {"test": 1.0}}),
        lambda text: changed(text, provenance={"started": 1e300}),
        lambda text: changed(text, provenance={"ended": math.nan}),
        lambda text: changed(text, provenance={"process_started": -(10**400)}),
    ],
)
def test_a_broken_record_is_never_taken_for_a_sound_one(directory, damage):
    text = directory.record_file.read_bytes()
    damaged = damage(text)
    assert damaged != text
    with pytest.raises(BrokenRecord):
        Record.from_json(damaged)
    with pytest.raises(BrokenRecord):
        decode(damaged)  # the reader of tables
    directory.record_file.write_bytes(damaged)
    assert directory.status() is None


def test_runs_are_found_wherever_they_lie_below_a_directory(directory, tmp_path):
    assert [run.path for run in find_runs(tmp_path)] == [directory.path]
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_a_running_record_is_believed_as_far_as_its_process_lives(directory):
    record = directory.read_record()
    me = Provenance(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
    )
    assert replace(record, provenance=me).is_alive({})
    given_out_again = replace(me, process_started=1.0)
    assert not replace(record, provenance=given_out_again).is_alive({})
    elsewhere = replace(record, provenance=Provenance(host="elsewhere"))
    assert elsewhere.is_alive({"time": time.time() - 5})
    assert not elsewhere.is_alive({"time": time.time() - 500})
    assert not elsewhere.is_alive({})


def test_a_history_is_read_as_it_was_written(directory):
    rows = [{"epoch": 1, "lr": 0.1, "train_loss": 1 / 3, "train_accuracy": 50.0, "seconds": 1.5}]
    directory.write_history(rows)
    (read,) = directory.history_rows()
    assert {key: value for key, value in read.items() if not math.isnan(value)} == rows[0]
    directory.history_file.write_text("epoch,lr\n1,torn")
    assert directory.history_rows() == []


def test_no_record_is_read_where_no_epochs_are_asked_for(directory, monkeypatch):
    monkeypatch.setattr(RunDirectory, "read_record", None)
    assert directory.epochs_not_kept([]) == []
    with pytest.raises(TypeError):
        directory.epochs_not_kept([1])


def test_infinite_numbers_never_reach_a_record(directory):
    record = replace(directory.read_record(), train_loss=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        directory.write_record(record)
    assert json.loads(directory.record_file.read_text())["train_loss"] is None


def test_one_process_owns_a_directory_at_a_time(directory):
    assert not directory.is_locked()
    with directory.lock().acquire(blocking=False):
        assert RunDirectory(directory.path).is_locked()
    assert not directory.is_locked()


@pytest.fixture
def running(directory):
    """Start a run; return how to tell of it what a process on some host would."""

    def tell(host: str, age: float, status: str = "running", **provenance) -> None:
        provenance = Provenance(host=host, **provenance)
        directory.write_record(
            replace(directory.read_record(), status=status, provenance=provenance)
        )
        sign = {"state": "training", "host": host, "time": time.time() - age}
        directory.progress_file.write_text(json.dumps(sign))

    return tell


def is_free(directory) -> bool:
    """Return whether a run is free, for those who look and for those who would take it."""
    try:
        with directory.lock().acquire(blocking=False):
            owned = False
    except Timeout:
        owned = True
    assert directory.is_locked() == owned
    return not owned


def test_a_run_that_shows_life_on_another_host_is_owned_although_locks_do_not_reach_it(
    directory, running
):
    """NFS and Lustre are such where they are mounted with local flock."""
    running("elsewhere", age=5)
    assert not is_free(directory)
    running("elsewhere", age=5, status="interrupted")  # before, and waits for a device by now
    assert not is_free(directory)
    for age in (500, -500):  # the latter with a clock that is wrong
        running("elsewhere", age)
        assert is_free(directory)


def test_a_run_that_ended_on_another_host_is_free_at_once(directory, running):
    running("elsewhere", age=1)
    directory.write_record(replace(directory.read_record(), status="killed"))
    assert is_free(directory)


def test_a_run_is_owned_although_its_lock_file_was_deleted(directory, running):
    training = psutil.Popen(["sleep", "60"])
    started = training.create_time()
    running(socket.gethostname(), 1, pid=training.pid, process_started=started)
    directory.lock_file.unlink(missing_ok=True)
    assert not is_free(directory)
    training.kill()
    training.wait()
    assert is_free(directory)


def test_a_process_is_no_other_to_itself_and_a_dead_one_none(directory, running):
    me = psutil.Process()
    running(socket.gethostname(), 1, pid=me.pid, process_started=me.create_time())
    assert not directory.has_heartbeat()
    dead = psutil.Popen(["true"])
    started = dead.create_time()
    while dead.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    running(socket.gethostname(), 1, pid=dead.pid, process_started=started)
    assert not directory.has_heartbeat()
    dead.wait()


def test_a_sign_of_life_says_where_it_comes_from(directory):
    directory.write_progress({"state": "waiting"})
    assert directory.read_progress()["host"] == socket.gethostname()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """NFS without lockd answers so."""
    require_locks(tmp_path)

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"runs_dir=.*/there: expected a file system with locks"):
        require_locks(tmp_path / "there")


def test_a_file_system_that_makes_no_files_is_named(tmp_path, monkeypatch):
    """A quota answers so, and what was mounted to be read only."""

    def mkdir(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    expected = r"runs_dir=.*/there: expected a directory that can be written \(Read-only"
    with pytest.raises(UserError, match=expected):
        require_locks(tmp_path / "there")


def test_what_is_too_large_or_no_plain_file_is_not_read(directory, monkeypatch):
    directory.write_history([{"epoch": 1}])
    monkeypatch.setattr(files.read_file, "__defaults__", (20,))
    with pytest.raises(BrokenRecord, match=r"cannot be read \(larger than 20 bytes"):
        directory.read_record()
    with pytest.raises(BrokenRecord, match=r"history.csv: larger than 20 bytes"):
        directory.read_history()
    monkeypatch.undo()
    directory.history_file.unlink()
    os.mkfifo(directory.history_file)
    with pytest.raises(BrokenRecord, match=r"history.csv: no plain file"):
        directory.read_history()


def test_a_run_that_starts_afresh_keeps_no_result(directory):
    """Its analysis and its predictions are of weights that are gone."""
    (directory.path / "analysis").mkdir(parents=True)
    names = ["run.log", "run.lock", "record.json", "history.csv", "checkpoint.pt", "model.pt"]
    names += ["checkpoint.previous.pt", "model_ema.pt", "model_epoch_1.pt", "predictions.npz"]
    names += ["predictions_new.csv", "analysis/record.json", "analysis/analysis.json"]
    for name in names:
        (directory.path / name).touch()
    directory.clear()
    left = {path.name for path in directory.path.rglob("*") if path.is_file()}
    assert left == {"run.log", "run.lock", "config.yaml"}
