import os
from types import SimpleNamespace

import joblib
import pynvml
import pytest
from helpers import make_config

from resnests.errors import UserError
from resnests.sweep import devices
from resnests.sweep.devices import allocate, select_visible, visible_gpus
from resnests.sweep.leases import lease

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
    assert select_visible(dict.fromkeys(GPUS, "H100"), visible, None) == expected


def test_an_index_into_different_gpus_must_say_in_which_order():
    """CUDA's own order is the fastest first, which NVML cannot tell."""
    mixed = dict(zip(GPUS, ("T4", "H100", "T4"), strict=True))
    assert select_visible(mixed, "1", "PCI_BUS_ID") == [GPUS[1]]
    assert select_visible(mixed, "GPU-bbb", None) == [GPUS[2]]
    assert select_visible(mixed, None, None) == GPUS
    for order in (None, "FASTEST_FIRST"):
        with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=1: .*DEVICE_ORDER=PCI_BUS_ID"):
            select_visible(mixed, "1", order)


@pytest.fixture
def nvml(monkeypatch):
    """A driver of three GPUs, of which tests break something."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices._warn.cache_clear()
    order = [2, 0, 1]  # on the bus
    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(GPUS),
        "nvmlDeviceGetHandleByIndex": order.index,
        "nvmlDeviceGetPciInfo": lambda i: SimpleNamespace(busId=f"00000000:{i}5:00.0"),
        "nvmlDeviceGetUUID": GPUS.__getitem__,
        "nvmlDeviceGetName": lambda _: "H100",
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    return lambda name, function: monkeypatch.setattr(pynvml, name, function)


def fails(number):
    def call(*_):
        raise pynvml.NVMLError(number)

    return call


def test_gpus_come_in_the_order_of_their_bus(nvml, capsys):
    assert visible_gpus() == GPUS
    assert capsys.readouterr().err == ""


def test_a_gpu_that_cannot_be_opened_hides_no_other(nvml, capsys):
    lost = fails(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml("nvmlDeviceGetUUID", lambda i: lost() if i == 1 else GPUS[i])
    assert allocate(make_config(), runs=5).gpus == [GPUS[0], GPUS[2]]
    allocate(make_config(), runs=5)
    line = "warning: NVIDIA GPU 0 is not used: it cannot be opened (GPU is lost)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("broken", "number", "said"),
    [
        ("nvmlInit", "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "its driver does not answer (RM has"),
        ("nvmlDeviceGetHandleByIndex", "NVML_ERROR_NO_PERMISSION", "there is a driver (0 usable"),
    ],
)
def test_a_driver_without_a_usable_gpu_is_said_before_hours_on_the_cpu(
    nvml, capsys, broken, number, said
):
    nvml(broken, fails(getattr(pynvml, number)))
    assert allocate(make_config("trainer.device=auto"), runs=1).kind != "cuda"
    assert "warning: no NVIDIA GPU is used, a" in (err := capsys.readouterr().err)
    assert said in err


def test_a_machine_without_a_driver_or_whose_gpus_are_not_wanted_is_no_reason_to_warn(
    nvml, capsys, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    nvml("nvmlInit", fails(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert visible_gpus() == []
    assert capsys.readouterr().err == ""


def test_amd_gpus_are_not_used_and_this_is_said(nvml, capsys, monkeypatch):
    nvml("nvmlInit", fails(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    monkeypatch.setattr(devices.Path, "exists", lambda path: str(path) == "/dev/kfd")
    assert visible_gpus() == []
    assert "warning: AMD GPUs are not used" in capsys.readouterr().err


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
    assert allocate(make_config("trainer.device=cuda:1"), runs=20).gpus == [GPUS[1]]
    held = lease(allocate(make_config("trainer.device=cuda:2"), runs=1), "test")
    assert held.environment()["CUDA_VISIBLE_DEVICES"] == GPUS[2]
    assert held.environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    held.release()


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(("slots", "concurrent"), [(2, 2), (4, 3)])
def test_slots_are_a_cap_that_puts_no_second_run_on_a_gpu(slots, concurrent):
    allocation = allocate(make_config(f"devices.slots={slots}"), runs=20)
    assert allocation.concurrent == concurrent
    assert allocation.gpus == GPUS  # any of them, whichever is free


@pytest.mark.usefixtures("no_gpu")
def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    single, pair, many = (allocate(make_config("trainer.device=auto"), runs=n) for n in (1, 2, 100))
    assert (single.concurrent, single.threads) == (1, 8)
    assert (pair.concurrent, pair.threads) == (2, 4)
    assert (many.concurrent, many.threads) == (8, 1)
    limited = allocate(make_config("devices.cpu_slots=2"), runs=100)
    assert (limited.concurrent, limited.threads) == (2, 4)
    forced = allocate(make_config("devices.cpu_slots=16"), runs=100)
    assert (forced.concurrent, forced.threads, len(forced.slots)) == (16, 1, 16)
    capped = allocate(make_config("devices.cpu_slots=16", "devices.slots=4"), runs=100)
    assert (capped.concurrent, capped.threads) == (4, 2)
    assert allocate(make_config("devices.slots=16"), runs=100).concurrent == 8


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


def test_a_job_takes_as_many_cores_as_its_batch_system_gave_it_of_any_there_are(monkeypatch):
    """Two of one core each run at once on a node that confines neither."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert allocate(make_config("trainer.device=cpu"), 1).threads == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    allocation = allocate(make_config("trainer.device=cpu"), 2)
    assert (allocation.concurrent, allocation.take, allocation.threads) == (1, 1, 1)
    one, other = lease(allocation, "a job"), lease(allocation, "another")
    assert one.names != other.names
    for held in (one, other):
        held.release()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert allocate(make_config("trainer.device=cpu"), 1).threads == 4


def test_runs_of_a_job_share_the_memory_that_slurm_gave_it(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    config = make_config("trainer.device=cpu", "devices.cpu_slots=4")
    assert allocate(config, 4).memory is None
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8192")  # MiB
    allocation = allocate(config, 4)
    assert (allocation.concurrent, allocation.memory) == (4, 8192 * 2**20 / 1e9 / 4)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    allocation = allocate(config, 4)
    assert (allocation.concurrent, allocation.threads) == (2, 2), "four would be killed"
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert allocate(config, 4).memory is None
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "500")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert allocate(config, 4).memory == pytest.approx(1.0486, abs=1e-4)
