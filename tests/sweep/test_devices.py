import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import joblib
import pytest
from helpers import make_config

from resnests.errors import UserError
from resnests.sweep import devices
from resnests.sweep.devices import Allocation, allocate, lease, select_visible

GPUS = ["GPU-aaa1", "GPU-aaa2", "GPU-bbb3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, GPUS),
        ("0,2", [GPUS[0], GPUS[2]]),
        ("2,0", [GPUS[2], GPUS[0]]),
        ("GPU-bbb", [GPUS[2]]),
        ("GPU-aaa", []),  # ambiguous, as CUDA takes it
        ("1,7,0", [GPUS[1]]),  # CUDA stops at the first that does not exist
        ("MIG-1234", ["MIG-1234"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_respected(visible, expected):
    assert select_visible(GPUS, visible) == expected


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", lambda: GPUS)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", list)


@pytest.mark.usefixtures("three_gpus")
def test_gpu_slots_fill_every_gpu_before_any_gets_a_second_run():
    allocation = allocate(make_config("devices.runs_per_gpu=2"), runs=20)
    assert allocation.gpus == GPUS * 2
    assert len(set(allocation.slots)) == 6
    assert (allocation.concurrent, allocation.take) == (6, 1)
    assert allocate(make_config(), runs=2).concurrent == 2
    assert allocate(make_config("devices.slots=4"), runs=20).gpus == [*GPUS, GPUS[0]]
    assert allocate(make_config("trainer.device=cuda:1"), runs=20).gpus == [GPUS[1]]
    held = lease(allocate(make_config("trainer.device=cuda:2"), runs=1), "test")
    assert held.environment()["CUDA_VISIBLE_DEVICES"] == GPUS[2]
    held.release()


@pytest.mark.usefixtures("no_gpu")
def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    single, pair, many = (allocate(make_config("trainer.device=auto"), runs=n) for n in (1, 2, 100))
    assert (single.concurrent, single.threads) == (1, 8)
    assert (pair.concurrent, pair.threads) == (2, 4)
    assert (many.concurrent, many.threads) == (8, 1)
    limited = allocate(make_config("devices.cpu_slots=2"), runs=100)
    assert (limited.concurrent, limited.threads) == (2, 4)
    forced = allocate(make_config("devices.slots=16"), runs=100)
    assert (forced.concurrent, forced.threads, len(forced.slots)) == (16, 1, 16)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_jobs_that_may_use_different_cores_do_not_wait_for_each_other():
    """As a batch system shares out a node."""
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(cores)})
        assert allocate(make_config(), runs=4).slots == [f"cpu-{max(cores)}"]
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_named(device):
    with pytest.raises(UserError, match=rf"trainer.device={device}: expected auto or cpu"):
        allocate(make_config(f"trainer.device='{device}'"), runs=1)


@pytest.mark.usefixtures("three_gpus")
def test_a_gpu_index_out_of_range_is_named_with_those_there():
    with pytest.raises(UserError, match=r"trainer.device=cuda:5: expected cuda:0 to cuda:2"):
        allocate(make_config("trainer.device='cuda:5'"), runs=1)


@pytest.mark.usefixtures("no_gpu")
def test_a_cuda_graph_needs_cuda():
    with pytest.raises(
        UserError, match=r"trainer.cuda_graph=True: expected null or false on device cpu"
    ):
        allocate(make_config("trainer.cuda_graph=true", "trainer.device=cpu"), runs=1)


def test_tf32_needs_cuda():
    with pytest.raises(UserError, match=r"trainer.precision=tf32: expected fp32 or bf16"):
        allocate(make_config("trainer.precision=tf32"), runs=1)


def cpu(slots: int, take: int) -> Allocation:
    return Allocation("cpu", [f"cpu-{i}" for i in range(slots)], [], take, slots // take, take)


def test_no_slot_is_leased_twice():
    allocation, held, overlaps = cpu(3, 1), set(), []

    def use(_):
        mine = lease(allocation, "test")
        overlaps.extend(held & set(mine.names))
        held.update(mine.names)
        time.sleep(0.01)
        held.difference_update(mine.names)
        mine.release()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(use, range(24)))
    assert not overlaps


def test_a_lease_is_all_or_nothing():
    one = lease(cpu(3, 2), "first")
    assert one.names == ["cpu-0", "cpu-1"]
    with pytest.raises(UserError):
        lease(cpu(3, 2), "second", wait=False)
    small = lease(cpu(3, 1), "third", wait=False)
    assert small.names == ["cpu-2"]
    one.release()
    assert lease(cpu(3, 2), "second", wait=False).names == ["cpu-0", "cpu-1"]


def test_without_waiting_the_holder_is_named():
    held = lease(cpu(1, 1), "runs/digits")
    with pytest.raises(
        UserError, match=r"devices.wait=false: .* cpu-0 by process \d+ .*runs/digits"
    ):
        lease(cpu(1, 1), "other", wait=False)
    held.release()


def test_waiting_ends_when_asked_to_stop():
    held = lease(cpu(1, 1), "first")
    assert lease(cpu(1, 1), "other", should_stop=iter([False, True]).__next__) is None
    held.release()


def test_a_slot_is_free_when_its_holder_was_killed():
    program = """
import sys
from resnests.sweep.devices import Allocation, lease
held = lease(Allocation("cpu", ["cpu-0"], [], 1, 1, 1), "doomed")
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"process {holder.pid}"):
        lease(cpu(1, 1), "other", wait=False)
    holder.kill()
    holder.communicate()
    assert lease(cpu(1, 1), "other", wait=False) is not None
