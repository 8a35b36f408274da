"""A device that fails is set aside, costs no run anything, and is told from a run that fails."""

import errno
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import REPOSITORY, gpu, run_command, tiny, write_run
from helpers import TINY as SMALL

from resnests.config.targets import broken
from resnests.environment import JOB
from resnests.errors import CaptureFailed, UserError
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.record import Provenance, Record
from resnests.search import plan as search_plan
from resnests.sweep import device_errors, drive, process, tryout
from resnests.sweep.aside import Aside, News, NoDevice, Note
from resnests.sweep.device_errors import device_failure
from resnests.sweep.devices import CORES, Allocation
from resnests.sweep.drive import run_single, run_sweep
from resnests.sweep.executors import slurm_job
from resnests.sweep.leases import lease, leased_slots
from resnests.sweep.plan import CONTEXT_GB, Run, known_memory
from resnests.sweep.process import run_on_devices, run_on_host
from resnests.sweep.protocol import DEVICE, ELSEWHERE, NO_GRAPH, UNREADABLE, USER_ERROR
from resnests.sweep.scheduler import SUSPECT
from resnests.sweep.stop import Stop
from resnests.sweep.tryout import set_aside
from resnests.sweep.worker import Worker, exit_status
from resnests.tasks import preflight

LAUNCH = "CUDA error: unspecified launch failure"


def cards(aside, count=4):
    names = [f"GPU-{i}" for i in range(count)]
    return Allocation("cuda", [f"{n}-0" for n in names], names, 1, count, 1, aside=aside.folder)


def test_a_suspected_device_is_avoided_as_long_as_there_is_another(aside):
    aside.add(Note("a", LAUNCH, run="one"))
    assert aside.usable("abc", "one") == aside.usable("abc", "two") == {"b", "c"}
    aside.add(Note("b", LAUNCH, is_broken=True))
    aside.add(Note("c", LAUNCH, run="two"))
    assert aside.usable("abc", "one") == {"c"}, "only other runs failed there"
    assert aside.usable("abc", "two") == {"a"}
    assert aside.usable("abc", "three") == {"a", "c"}


def test_a_lease_leaves_out_what_is_set_aside_while_it_waits(aside):
    allocation = cards(aside, 2)
    first = lease(allocation, "first")
    aside.add(Note("GPU-1", LAUNCH, is_broken=True))
    with pytest.raises(UserError, match=r"devices.wait=false"):
        lease(allocation, "second", wait=False)
    first.release()
    second = lease(allocation, "second", wait=False)
    assert second.names == ["GPU-0-0"]
    second.release()
    aside.add(Note("GPU-0", "GPU is lost", is_broken=True))
    with pytest.raises(NoDevice, match=r"no device is left \(GPU-\d: .*GPU is lost"):
        lease(allocation, "third")


def test_it_is_said_once_and_taken_back(aside):
    aside.add(Note("a", "its trial failed", is_broken=True))
    news = News(aside, "ab")
    assert news.lines() == [], "what was known before"
    aside.add(Note("b", LAUNCH, run="one"))
    aside.add(Note("b", LAUNCH, run="two"))
    assert news.lines() == [f"b is set aside for the rest of the sweep: {LAUNCH}"]
    assert news.lines() == []
    assert not news.is_nothing_left()
    aside.confirm("two")
    assert news.is_nothing_left()
    aside.add(Note("c", LAUNCH, run="one"))
    news.lines()
    aside.withdraw("one")
    assert news.lines() == ["c is used again: what failed there fails elsewhere, too"]


@pytest.mark.parametrize(
    ("message", "is_the_devices"),
    [
        (LAUNCH, True),
        ("CUDA error: uncorrectable ECC error encountered\nmore", True),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("No CUDA GPUs are available", True),
        ("Torch not compiled with CUDA enabled", True),
        ("The NVIDIA driver on your system is too old (found version 11040)", True),
        ("CUDA error: no kernel image is available for execution on the device", True),
        ("CUDA error: device-side assert triggered", False),  # such as of a label out of range
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x3)", False),
    ],
)
def test_a_failure_that_may_be_the_devices_is_told_by_its_words(
    aside, monkeypatch, message, is_the_devices
):
    monkeypatch.setattr(device_errors, "nvml_complaint", lambda uuid: None)
    held = lease(cards(aside), "test")
    try:
        raise ValueError("in a user's own code") from RuntimeError(message)
    except ValueError as error:
        reason = device_failure(error, held, has_begun=True)
    assert reason == (message.splitlines()[0] if is_the_devices else None)
    held.release()


def test_what_nvml_says_of_its_card_counts_whatever_failed(aside, driver):
    driver("H100,H100:lost")
    for number, said in ((0, None), (1, "GPU is lost")):
        one = Allocation("cuda", [f"{gpu(number)}-0"], [gpu(number)], 1, 1, 1)
        held = lease(one, "test")
        assert device_failure(RuntimeError("anything"), held, has_begun=True) == said
        held.release()


def test_a_device_that_cannot_be_noted_is_not_blamed(aside, tmp_path):
    """Its run would be tried there again and again, as on a full disk."""
    worker = Worker(tiny(f"runs_dir={tmp_path}"), cards(aside, 1), Stop())
    worker.held = lease(worker.allocation, "test")
    assert worker.blames_device(RuntimeError(LAUNCH))
    shutil.rmtree(aside.folder)
    assert not worker.blames_device(RuntimeError(LAUNCH))
    worker.held.release()


def test_a_card_too_full_to_ask_is_filled_by_others(aside, monkeypatch):
    def full():
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    held = lease(cards(aside, 1), "test")
    error = RuntimeError("CUDA error: out of memory")
    assert device_failure(error, held, has_begun=False) == "other programs fill it"
    held.release()


@pytest.mark.parametrize(
    ("free", "begun", "beside", "blamed"),
    [
        (1e9, False, False, True),
        (60e9, False, False, False),
        (1e9, True, False, False),
        (1e9, False, True, False),
    ],
)
def test_a_card_that_others_fill_is_at_fault_for_what_it_has_no_room_for(
    aside, monkeypatch, free, begun, beside, blamed
):
    """A card is only full where a run made a step already, or another of ours is there."""
    monkeypatch.setattr(device_errors, "nvml_complaint", lambda uuid: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 19e9)
    shared = Allocation("cuda", ["GPU-0-0", "GPU-0-1"], ["GPU-0"] * 2, 1, 2, 1)
    held = [lease(shared, "test"), lease(shared, "test")]
    if not beside:
        held.pop().release()
    reason = device_failure(torch.cuda.OutOfMemoryError("CUDA out of memory"), held[0], begun)
    assert (reason == "other programs hold 60 of its 80 GB") == blamed
    for one in held:
        one.release()


def test_the_check_before_the_first_run_is_made_on_the_cpu_where_its_device_fails(monkeypatch):
    """A broken card must not look like a fault of what the user brought."""
    tried, said = [], [broken("arch=mine: a batch fails", RuntimeError(LAUNCH))]

    def check(config, splits, device, sizes):
        tried.append(device.type)
        if device.type == "cuda":
            raise said[0] from RuntimeError(said[0])

    monkeypatch.setattr(preflight, "check", check)
    monkeypatch.setattr(preflight, "device_of", lambda config: torch.device("cuda"))
    preflight._check_on_device(tiny(), None, is_tried=True)
    assert tried == ["cuda", "cpu"]
    said[0] = broken("arch=mine: a batch fails", RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(UserError, match="cannot be multiplied"):
        preflight._check_on_device(tiny(), None, is_tried=True)


def test_what_runs_of_a_cell_took_is_known_to_the_next_ones(tmp_path):
    """What is known decides how many of them a card has room for."""
    options = ("devices.runs_per_gpu=8", f"runs_dir={tmp_path}")
    configs = [tiny(*options, f"seed={seed}") for seed in range(3)]
    runs = [Run(config, RunDirectory.of(config)) for config in configs]
    assert known_memory(runs[2:]) is None
    write_run(configs[0], "complete", peak_device_memory_bytes=3_000_000_000)
    write_run(configs[1], "interrupted", peak_device_memory_bytes=5_000_000_000)
    assert known_memory(runs[2:]) == 5 + CONTEXT_GB
    alone = tiny(f"runs_dir={tmp_path}", "seed=2")
    assert known_memory([Run(alone, RunDirectory.of(alone))]) is None, "nothing shares a card"


def test_what_a_run_is_known_to_take_decides_how_many_share_a_card_wherever_it_is_trained(
    tmp_path, monkeypatch
):
    """It does on this machine, in a search, and in a job of a cluster of either kind."""
    options = ("devices.runs_per_gpu=8", f"runs_dir={tmp_path}")
    done, config = tiny(*options, "seed=1"), tiny(*options)
    write_run(done, "complete", peak_device_memory_bytes=30_000_000_000)
    given = []

    def refuse(config, count, needs_gb=None):
        given.append(needs_gb)
        raise UserError("no device here")

    monkeypatch.setattr(
        drive, "plan_runs", lambda configs: [Run(c, RunDirectory.of(c)) for c in configs]
    )
    monkeypatch.setattr(
        search_plan, "plan_runs", lambda configs: [Run(config, RunDirectory.of(config))]
    )
    for module in (drive, search_plan, process, slurm_job):
        monkeypatch.setattr(module, "allocate", refuse)
    monkeypatch.setattr(slurm_job, "run_job", lambda *_: None)
    with pytest.raises(UserError):
        run_sweep([config], lambda *_: None)
    with pytest.raises(UserError):
        search_plan.run_search(
            SimpleNamespace(first=tiny(*options, "dataset.val_fraction=0.1")), []
        )
    assert run_on_host(Run(config, RunDirectory.of(config)), None, 1, Stop()) == "refused"
    slurm_job._train([Run(config, RunDirectory.of(config))])
    assert given == [30 + CONTEXT_GB] * 4


@pytest.fixture
def run(tmp_path) -> Run:
    config = tiny(f"runs_dir={tmp_path / 'runs'}")
    return Run(config, RunDirectory.of(config))


def test_a_worker_notes_the_device_that_failed_under_it(run, aside, monkeypatch):
    def fails(*_):
        raise RuntimeError(LAUNCH)

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", fails)
    two = Allocation("cpu", ["cpu-a", "cpu-b"], [], 1, 2, 1, aside=aside.folder)
    tried = []
    for code in (DEVICE, DEVICE):
        worker = Worker(run.config, two, Stop())
        assert exit_status(worker) == code
        tried += worker.held.names
        worker.held.release()
        worker.lock.release()
    assert tried == ["cpu-a", "cpu-b"]
    name = str(run.directory.path)
    assert aside.suspicions(name) == [Note(d, LAUNCH, name) for d in ("cpu-a", "cpu-b")]
    assert exit_status(Worker(run.config, two, Stop())) == DEVICE, "no device is left to try"


@pytest.mark.parametrize(
    ("card", "number", "code"),
    [
        ("H100:lost", signal.SIGSEGV, DEVICE),
        ("H100", signal.SIGSEGV, -signal.SIGSEGV),
        ("H100:lost", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_process_that_a_lost_card_ends_is_no_failure_of_its_run(
    run, aside, driver, monkeypatch, card, number, code
):
    driver(card)
    own = Allocation("cuda", [f"{gpu(0)}-0"], [gpu(0)], 1, 1, 1, aside=aside.folder)

    def start(output):
        died = subprocess.Popen(
            [sys.executable, "-c", f"import os; input(); os.kill(os.getpid(), {int(number)})"],
            stdin=subprocess.PIPE,
        )
        own_record = Record.of(run.config, Provenance(host=socket.gethostname(), pid=died.pid))
        run.directory.write_record(own_record)
        run.directory.write_progress({"pid": died.pid, "device": own.slots[0]})
        return died

    monkeypatch.setattr(process, "fork", lambda *_: None)
    monkeypatch.setattr(process, "_start", start)
    with Stop() as stop:
        assert process.run_process(run, own, stop) == code
    noted = [Note(gpu(0), "GPU is lost", str(run.directory.path))] if code == DEVICE else []
    assert aside.notes() == noted
    assert run.status() == "killed"
    process._record_interrupted(run)
    assert run.status() == "interrupted"


def caused(error: Exception, said: str) -> Exception:
    error.__cause__ = RuntimeError(said)
    return error


CAPTURING = "CUDA error: operation not permitted when stream is capturing"
CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (caused(UserError("trainer.cuda_graph=true: expected null"), LAUNCH), DEVICE),
        (caused(UserError("trainer.cuda_graph=true: expected null"), CAPTURING), USER_ERROR),
        (caused(UserError("pipeline.augment of x fails"), CUBLAS), DEVICE),
        (caused(UserError("pipeline.augment of x fails"), "shapes differ"), USER_ERROR),
        (caused(CaptureFailed("trainer.cuda_graph=false"), LAUNCH), DEVICE),
        (caused(CaptureFailed("trainer.cuda_graph=false"), CAPTURING), NO_GRAPH),
        (caused(CaptureFailed("trainer.cuda_graph=false"), CUBLAS), NO_GRAPH),
    ],
)
def test_a_device_that_fails_in_a_capture_or_code_of_a_users_is_noted(
    run, aside, monkeypatch, error, code
):
    def fails(*_):
        raise error

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", fails)
    one = Allocation("cpu", ["cpu-a"], [], 1, 1, 1, aside=aside.folder)
    worker = Worker(run.config, one, Stop())
    assert exit_status(worker) == code
    noted = [note.reason for note in aside.notes()]
    assert noted == ([str(error.__cause__)] if code == DEVICE else [])
    worker.held.release()
    worker.lock.release()


MISSING = UserError("dataset.root=/data: expected a folder")
EIO = OSError(errno.EIO, "Input/output error")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("job", "state", "error", "code", "outcome"),
    [
        ("17_1", "loading", MISSING, UNREADABLE, "unreadable"),
        ("17_1", "loading", EIO, UNREADABLE, "unreadable"),
        ("17_1", "train", EIO, UNREADABLE, "unreadable"),  # images that are read as it goes
        ("17_1", "train", MISSING, USER_ERROR, "failed"),
        ("17_1", "train", FULL, 1, "failed"),
        (None, "loading", MISSING, USER_ERROR, "failed"),
        (None, "loading", EIO, 1, "failed"),
    ],
)
def test_a_node_of_a_cluster_that_cannot_read_the_data_is_told_from_a_run_that_fails(
    run, aside, monkeypatch, job, state, error, code, outcome
):
    """Else each run that its queue sends there fails."""

    def fails(config, device, should_stop, report, clear):
        run.directory.write_record(Record.of(config, Provenance(host="n2")))
        report({"state": state})
        raise error

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", fails)
    monkeypatch.setenv(JOB, job) if job else monkeypatch.delenv(JOB, raising=False)
    one = Allocation("cpu", ["cpu-a"], [], 1, 1, 1, aside=aside.folder)
    worker = Worker(run.config, one, Stop())
    assert exit_status(worker) == code
    worker.held.release()
    worker.lock.release()
    process.record_exit(run, code)
    assert run.status() == "failed"
    monkeypatch.setattr(process, "allocate", lambda *_: one)
    monkeypatch.setattr(process, "run_process", lambda *_: code)
    assert run_on_host(run, None, 1, Stop()) == outcome


def trained(monkeypatch, run, aside, bad, trial_fails=(), own_fault=False, count=2, **place):
    """Return the exit status of `run` on so many cards, of which those in `bad` fail every run."""

    tried = []

    def train(run, allocation, stop):
        name = str(run.directory.path)
        usable = sorted(aside.usable(allocation.devices, name))
        if not usable:
            return DEVICE
        if usable[0] in bad or own_fault:
            aside.add(Note(usable[0], LAUNCH, name))
            tried.append(usable[0])
            return DEVICE
        return 0

    monkeypatch.setattr(process, "run_with_fallback", train)
    monkeypatch.setattr(process, "start_trials", dict.fromkeys)
    monkeypatch.setattr(
        process, "verdicts", lambda trials: {d: "no good" * (d in trial_fails) for d in trials}
    )
    run.directory.path.mkdir(parents=True, exist_ok=True)
    code = run_on_devices(run, cards(aside, count), Stop(), **place)
    assert len(tried) <= 3
    return code


def test_a_run_goes_on_elsewhere_and_where_it_ends_well_the_device_was_broken(
    run, aside, monkeypatch
):
    assert trained(monkeypatch, run, aside, bad=["GPU-0"]) == 0
    assert aside.broken() == {"GPU-0"}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_run_that_fails_so_on_every_device_is_at_fault_itself(run, aside, monkeypatch, count):
    assert trained(monkeypatch, run, aside, bad=[], own_fault=True, count=count) == 1
    assert aside.notes() == []
    assert run.status() == "failed"


@pytest.mark.parametrize(("count", "code"), [(1, ELSEWHERE), (2, 1)])
def test_a_job_of_a_cluster_leaves_to_another_node_what_its_only_device_failed(
    run, aside, monkeypatch, count, code
):
    """Two devices of a job tell whose fault it is by themselves."""
    place = {"own_fault": True, "count": count, "is_of_cluster": True}
    assert trained(monkeypatch, run, aside, bad=[], **place) == code
    assert [note.device for note in aside.notes()] == (["GPU-0"] if count == 1 else [])
    monkeypatch.setattr(process, "allocate", lambda *_: cards(aside, 1))
    monkeypatch.setattr(process, "run_on_devices", lambda *_, **__: ELSEWHERE)
    assert run_on_host(run, None, 1, Stop()) == SUSPECT


def test_runs_of_a_job_share_what_they_note_of_its_devices(run, aside, monkeypatch):
    """Else each run would meet the broken card anew."""
    folders = []
    monkeypatch.setattr(process, "allocate", lambda *_: cards(aside, 1))
    monkeypatch.setattr(
        process, "run_on_devices", lambda run, given, stop, **_: folders.append(given.aside) or 0
    )
    monkeypatch.setattr(slurm_job, "allocate", lambda *_: cards(aside, 1))
    monkeypatch.setattr(
        slurm_job,
        "run_job",
        lambda number, *given: run_on_host(run, None, given[0], Stop(), given[1]),
    )
    slurm_job._train([run, replace(run, index=1)])
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert not Path(folders[0]).exists()


def test_where_no_device_passes_its_trial_the_run_is_not_to_blame(run, aside, monkeypatch):
    both = ["GPU-0", "GPU-1"]
    assert trained(monkeypatch, run, aside, bad=both, trial_fails=both) == DEVICE
    assert aside.broken() == set(both)
    assert run.status() is None
    assert "no device is left (GPU-0: no good; GPU-1: no good)" in (
        run.directory.log_file.read_text()
    )
    monkeypatch.setattr(process, "run_on_devices", lambda *_: DEVICE)
    assert run_on_host(run, vars(cards(aside, 2)), 1, Stop()) == "refused"


@pytest.mark.slow
def test_a_trial_finds_what_torch_can_use():
    found = tryout.verdicts(tryout.start_trials(["cpu-3", gpu(0)]))
    reason = found.pop(gpu(0))
    assert found == {"cpu-3": ""}
    assert reason.partition(":")[0] in ("RuntimeError", "AssertionError", "AcceleratorError")


@pytest.fixture
def occupied(nvml_folder, driver, monkeypatch):
    """Return what sets the kind of a card on which another program is, as a trial sees it."""
    said = "CUDA error: all CUDA-capable devices are busy or unavailable"
    script = f"import resnests.sweep.tryout as t; t.try_device = lambda _: {said!r}; t.main()"
    program = Path(os.environ["RESNESTS_LOCK_DIR"]) / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(script)} "$3"\n')
    program.chmod(0o755)
    monkeypatch.setattr(tryout.sys, "executable", str(program))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_folder))
    return driver


@pytest.mark.parametrize("word", ["H100:excl", "H100"])
def test_a_trial_is_no_verdict_on_a_card_that_a_run_of_ours_is_on(occupied, word):
    """It takes the slot of a card that one process has alone, and none of another card's."""
    occupied(word)
    training = lease(Allocation("cuda", [f"{gpu(0)}-0"], [gpu(0)], 1, 1, 1), "test")
    found = tryout.verdicts(tryout.start_trials([gpu(0)]))
    assert found == ({} if word == "H100:excl" else {gpu(0): ""})
    training.release()
    with tryout.trying([gpu(0)]) as trials:  # another program has it
        assert "busy or unavailable" in tryout.verdicts(trials)[gpu(0)]
        assert not leased_slots(gpu(0)), "although the sweep has not begun"


def test_a_run_is_not_at_fault_where_its_card_was_not_tried_as_another_run_took_it(
    run, aside, occupied, monkeypatch
):
    """The trial waits for that run."""
    occupied("H100:excl")
    alone = Allocation("cuda", [f"{gpu(0)}-0"], [gpu(0)], 1, 1, 1, aside=aside.folder)
    name = str(run.directory.path)
    aside.add(Note(gpu(0), LAUNCH, name))
    other, waited = lease(replace(alone, aside=""), "another sweep"), []
    monkeypatch.setattr(process.time, "sleep", lambda _: waited.append(other.release()))
    assert not process._is_at_fault(aside, name, alone, Stop())
    assert aside.broken() == {gpu(0)}
    assert waited


@pytest.mark.parametrize(("uuid", "is_it"), [(gpu(0)[4:], True), (gpu(1)[4:], False)])
def test_a_trial_compares_the_card_with_nvmls(monkeypatch, uuid, is_it):
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda count, device: ones(count))
    found = SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert tryout.try_device(gpu(0)) == (
        None if is_it else f"NVML calls it {gpu(0)}, and torch {gpu(1)}"
    )


def test_devices_that_fail_their_trial_are_left_out_and_all_of_them_end_a_sweep(
    aside, monkeypatch, capsys
):
    monkeypatch.setattr(tryout, "verdicts", lambda trials: trials)
    set_aside(aside, cards(aside, 2), {"GPU-0": "", "GPU-1": "no driver"}, "auto")
    assert aside.usable(["GPU-0", "GPU-1"], "") == {"GPU-0"}
    said = "warning: GPU-1 is not used: torch cannot compute on it (no driver)\n"
    assert capsys.readouterr().err == said
    with pytest.raises(UserError, match=r"trainer.device=auto: expected .* that torch can use"):
        set_aside(aside, cards(aside, 2), {"GPU-0": "old", "GPU-1": "old"}, "auto")


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "status"), [(0, 2), (1, 1)])
def test_one_run_alone_whose_only_device_is_broken_is_a_mistake_unless_it_trained(
    run, monkeypatch, capsys, epochs, status
):
    def breaks(run, allocation, stop):
        if epochs:
            write_run(run.config, "interrupted", epochs=epochs)
        for device in allocation.devices:
            Aside(allocation.aside).add(Note(device, "GPU is lost", is_broken=True))
        return DEVICE

    monkeypatch.setattr(process, "run_process", breaks)
    assert run_single(run.config) == status
    assert capsys.readouterr().err.count("no device is left (cpu-") == 1


def test_a_sweep_in_which_an_evaluation_ended_well_before_its_last_device_broke_says_so(
    tmp_path, monkeypatch, capsys
):
    """An evaluation has no epochs."""
    one, two = (tiny(f"runs_dir={tmp_path}", f"seed={seed}") for seed in range(2))
    runs = [Run(config, RunDirectory.of(config)) for config in (one, two)]

    def rounds(*_):
        write_run(one, "complete", epochs=0)
        yield

    told = SimpleNamespace(
        is_nothing_left=lambda: True, lines=list, aside=SimpleNamespace(summary=lambda: "none left")
    )
    monkeypatch.setattr(drive, "News", lambda *_: told)
    monkeypatch.setattr(drive, "_rounds", rounds)
    executor = SimpleNamespace(folder=SimpleNamespace(path=tmp_path), report=print)
    for expected, lines in ((1, 1), (2, 0)):
        assert drive._train_here(runs, runs, executor, cards(Aside(""), 1), 0) == expected
        assert capsys.readouterr().err.count("none left") == lines


@pytest.mark.slow
def test_cards_that_nvml_sees_and_torch_cannot_use_end_a_sweep_before_its_first_run(
    nvml_folder, tmp_path
):
    """Its MPS daemon, of the stand-in beside this file, ends with it."""
    driver = {"LD_LIBRARY_PATH": str(nvml_folder), "FAKE_NVML": "H100,H100:lost,H100"}
    driver |= {"FAKE_MPS": str(tmp_path), "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "none")}
    driver["PATH"] = f"{Path(__file__).parent}:{os.environ['PATH']}"
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    words = ["seed=0,1,2", "devices.runs_per_gpu=2", "devices.mps=true"]
    done = run_command("-m", *SMALL, *words, cwd=tmp_path, env=shown | driver)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.count("torch cannot compute on it") for line in lines] == [0, 1, 1, 0]
    assert lines[-1].startswith("error: trainer.device=auto: expected")
    assert not list(find_runs(tmp_path / "runs"))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("-d /tmp/resnests-mps-")
    assert calls[0].endswith(f" {gpu(2)},{gpu(0)}")
    assert calls[-1] == "quit"


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
def test_a_broken_device_costs_a_sweep_nothing(tmp_path):
    """Slots of a CPU stand for cards, one for each run however many cores there are: every run on
    one of them fails at its first epoch.
    """
    dying = f"cpu-{min(os.sched_getaffinity(0))}"
    (tmp_path / "dying").write_text(dying)
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *SMALL, "seed=range(4)"]
    path = {"PYTHONPATH": str(REPOSITORY / "tests" / "broken"), "CUDA_VISIBLE_DEVICES": ""}
    path |= {CORES: "2"}
    options = ["trainer.device=cpu", "devices.cpu_slots=2"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=os.environ | path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = f"{dying} is set aside for the rest of the sweep: {LAUNCH}"
    assert done.stdout.count("is set aside") == done.stdout.count(said) == 1
    logs = [run.log_file.read_text() for run in find_runs(tmp_path / "runs")]
    assert len(logs) == 4
    assert sum(log.count(f"RuntimeError: {LAUNCH}") for log in logs) == 1
