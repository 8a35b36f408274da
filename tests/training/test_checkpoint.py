import logging
import os
import subprocess
import sys

import pytest
import torch

from resnests.models.weights import UnsoundFile, read_torch, save_weights
from resnests.runs.directory import RunDirectory, write_atomic
from resnests.training import checkpoint
from resnests.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    save_checkpoint,
)

IDENTITY = {"recipe": "abc", "seed": 1}


def state(value: float) -> dict:
    return {"identity": IDENTITY, "model": {"w": torch.full((1000,), value)}}


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path)


def load(directory):
    return load_checkpoint(directory, IDENTITY)


def test_the_latest_checkpoint_is_loaded(directory):
    assert load(directory) is None
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(directory, state(value))
    assert load(directory)["model"]["w"][0] == 3


def damage_cut(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


def damage_flip(content: bytearray) -> bytes:
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip, lambda content: b"", lambda content: b"something else entirely"],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(directory, damage, caplog):
    save_checkpoint(directory, state(1.0))
    save_checkpoint(directory, state(2.0))
    path = directory.checkpoint_file
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with caplog.at_level(logging.WARNING):
        assert load(directory)["model"]["w"][0] == 1
    assert f"{path} is not used" in caplog.text


def test_a_checkpoint_of_another_run_is_named_and_not_used(directory, caplog):
    save_checkpoint(directory, state(1.0) | {"identity": {"recipe": "other", "seed": 1}})
    with caplog.at_level(logging.WARNING):
        assert load(directory) is None
    assert "belongs to another run" in caplog.text


def test_every_single_flipped_bit_of_the_weights_is_noticed(directory):
    path = directory.weights_file
    save_weights(path, torch.nn.Linear(20, 20))
    sound = path.read_bytes()
    reference = read_torch(path)
    for position in range(0, len(sound), 97):
        torn = bytearray(sound)
        torn[position] ^= 4
        path.write_bytes(bytes(torn))
        try:
            weights = read_torch(path)
        except UnsoundFile:
            continue
        assert all(torch.equal(weights[name], value) for name, value in reference.items())


def test_a_pickle_that_runs_code_is_refused(directory):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {directory.path / 'owned'}",)

    torch.save(Hostile(), directory.weights_file)
    with pytest.raises(UnsoundFile):
        read_torch(directory.weights_file)
    assert not (directory.path / "owned").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_take_no_more_than_their_share_of_the_time(directory, monkeypatch):
    """Writing takes 0.5 s here, an epoch 10: every third epoch is at most a fiftieth."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])

    def write(*_):
        now[0] += 0.5

    monkeypatch.setattr(checkpoint, "save_checkpoint", write)
    for every, expected in ((None, [1, 4, 7]), (2, [2, 4, 6, 8])):
        checkpoints, written = Checkpoints(directory, every), []
        for epoch in range(1, 9):
            now[0] += 10
            if checkpoints.is_due(epoch):
                checkpoints.save({})
                written.append(epoch)
        assert written == expected


def test_adamw_counts_its_steps_on_the_cpu_after_a_resume_on_another_device(directory):
    """Read from a device, the count would make every step wait for it."""
    weight = torch.nn.Parameter(torch.ones(3))
    trained = torch.optim.AdamW([weight])
    weight.sum().backward()
    trained.step()
    save_checkpoint(directory, state(1.0) | {"optimizer": trained.state_dict()})
    elsewhere = torch.nn.Parameter(torch.ones(3, device="meta"))
    resumed = torch.optim.AdamW([elsewhere])
    resumed.load_state_dict(load_checkpoint(directory, IDENTITY)["optimizer"])
    devices = {name: value.device.type for name, value in resumed.state[elsewhere].items()}
    assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


@pytest.mark.slow
def test_a_kill_between_any_two_steps_of_saving_leaves_a_sound_checkpoint(directory):
    """The process dies at its n-th rename, for every n that there is."""
    save_checkpoint(directory, state(1.0))
    save_checkpoint(directory, state(2.0))
    program = """
import os, sys
from pathlib import Path
import torch
from resnests.training.checkpoint import save_checkpoint
from resnests.runs.directory import RunDirectory
count, real = int(sys.argv[2]), os.replace
def replace(*arguments):
    global count
    if count == 0:
        os.kill(os.getpid(), 9)
    count -= 1
    real(*arguments)
os.replace = replace
identity = {"recipe": "abc", "seed": 1}
save_checkpoint(RunDirectory(sys.argv[1]), {"identity": identity, "model": {"w": torch.zeros(9)}})
"""
    for renames in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, str(directory.path), str(renames)], check=False
        )
        assert done.returncode == -9
        assert load(directory) is not None
        directory.remove_temporaries()
        left = {path.name for path in directory.path.iterdir()}
        assert left <= {"checkpoint.pt", "checkpoint.previous.pt"}
