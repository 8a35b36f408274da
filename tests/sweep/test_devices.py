import os

import joblib
import pytest
from helpers import gpu, make_config, mig

from resnests.errors import UserError
from resnests.sweep import cards, devices
from resnests.sweep.cards import Card, select_visible, visible_cards
from resnests.sweep.devices import allocate
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
        ("MIG-1234", ["MIG-1234-1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_respected(visible, expected):
    models = {GPUS[0]: "H100", "MIG-1234-1": "H100 MIG", GPUS[1]: "H100", GPUS[2]: "H100"}
    assert select_visible(models, visible, None) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,0", "each GPU once"),
        ("1,GPU-aaa2", "each GPU once"),
        ("MIG-nonsense", r"one of the MIG slices there are \(none\)"),
        ("0,MIG-1", "one of the MIG slices"),
    ],
)
def test_what_cuda_would_make_nothing_of_is_refused(visible, expected):
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES={visible}: expected {expected}"):
        select_visible(dict.fromkeys(GPUS, "H100"), visible, None)


def test_an_index_into_different_gpus_must_say_in_which_order():
    """CUDA's own order is the fastest first, which NVML cannot tell."""
    mixed = dict(zip(GPUS, ("T4", "H100", "T4"), strict=True))
    assert select_visible(mixed, "1", "PCI_BUS_ID") == [GPUS[1]]
    assert select_visible(mixed, "GPU-bbb", None) == [GPUS[2]]
    assert select_visible(mixed, None, None) == GPUS
    for order in (None, "FASTEST_FIRST"):
        with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=1: .*DEVICE_ORDER=PCI_BUS_ID"):
            select_visible(mixed, "1", order)


def uuids(min_free_gb=0.0):
    return [card.uuid for card in visible_cards(min_free_gb)]


def test_gpus_come_in_the_order_of_their_bus(driver, capsys):
    driver("H100,H100,H100")
    assert uuids() == [gpu(2), gpu(1), gpu(0)]
    assert capsys.readouterr().err == ""


def test_a_gpu_that_cannot_be_opened_hides_no_other(driver, capsys):
    driver("H100,H100:lost,H100")
    assert allocate(make_config(), runs=5).gpus == [gpu(2), gpu(0)]
    allocate(make_config(), runs=5)
    line = "warning: NVIDIA GPU 1 is not used: it cannot be opened (GPU is lost)\n"
    assert capsys.readouterr().err == line


def test_the_slices_of_a_divided_gpu_are_its_devices(driver, capsys, monkeypatch):
    driver("H100,H100:mig2,H100:mig0")
    slices = [mig(1, 0), mig(1, 1)]
    assert uuids() == [*slices, gpu(0)]
    assert "MIG), but has no slices" in capsys.readouterr().err
    assert allocate(make_config("devices.runs_per_gpu=2"), 9).gpus == [*slices, gpu(0)] * 2
    for visible, expected in (("1", slices), (mig(1, 1), slices[1:]), (f"2,{slices[0]}", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert uuids() == (expected or [gpu(0), slices[0]])


def test_a_compute_mode_decides_how_many_runs_a_gpu_gets(driver, capsys, monkeypatch, tmp_path):
    driver("H100,H100:excl,H100:proh")
    config = make_config("devices.runs_per_gpu=2")
    assert allocate(config, 9).gpus == [gpu(1), gpu(0), gpu(0)]
    error = capsys.readouterr().err
    assert f"{gpu(2)} is not used: its compute mode is prohibited" in error
    assert f"{gpu(1)} gets one run at a time: its compute mode is exclusive" in error
    (tmp_path / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert allocate(config, 9).gpus == [gpu(1), gpu(0)] * 2, "under MPS one process has the card"


def test_memory_that_others_hold_is_seen(driver, capsys):
    driver("H100,H100:used78,H100:used79")
    assert uuids(1.0) == [gpu(2), gpu(1), gpu(0)]
    assert allocate(make_config("devices.min_free_gb=4"), 9).gpus == [gpu(0)]
    error = capsys.readouterr().err
    assert (
        f"{gpu(1)} is not used: other programs leave 2.0 GB of it (devices.min_free_gb=4)" in error
    )


def test_memory_that_our_own_runs_hold_is_not_that_of_others(driver, monkeypatch):
    driver("H100:used79")
    allocation = allocate(make_config("devices.min_free_gb=0"), 1)
    held = lease(allocation, "a run")
    monkeypatch.setattr(cards, "_is_foreign", lambda pid: False)
    assert uuids(40.0) == [gpu(0)]
    held.release()
    assert uuids(40.0) == []


def test_runs_share_a_gpu_as_far_as_its_memory_goes(driver, capsys):
    driver("H100:used50,H100")
    config = make_config("devices.runs_per_gpu=4")
    assert allocate(config, 9).gpus == [gpu(1), gpu(0)] * 4
    assert allocate(config, 9, needs_gb=12.5).gpus == [gpu(1), gpu(0)] * 2 + [gpu(1)] * 2
    said = f"{gpu(0)} gets 2 run(s) at a time, as 30 GB are free and such a run takes 12.5"
    assert said in capsys.readouterr().err
    assert allocate(config, 9, needs_gb=99.0).gpus == [gpu(1), gpu(0)], "one is always tried"


@pytest.mark.parametrize(
    ("words", "init", "said"),
    [
        ("H100", "18", "its driver does not answer"),
        ("H100:noperm", "0", "there is a driver (0 GPU(s), CUDA_VISIBLE_DEVICES=None)"),
        ("H100:proh", "0", "there is a driver (1 GPU(s)"),
    ],
)
def test_a_driver_without_a_usable_gpu_is_said_before_hours_on_the_cpu(
    driver, capsys, monkeypatch, words, init, said
):
    driver(words)
    monkeypatch.setenv("FAKE_NVML_INIT", init)
    assert allocate(make_config("trainer.device=auto"), runs=1).kind != "cuda"
    assert "warning: no NVIDIA GPU is used, a" in (err := capsys.readouterr().err)
    assert said in err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", "7"),
        ("CUDA_VISIBLE_DEVICES", "GPU-nonsense"),
        ("SLURM_JOB_GPUS", "0"),
        ("SLURM_GPUS_ON_NODE", "2"),
    ],
)
def test_who_was_promised_a_gpu_is_not_trained_on_the_cpu(driver, monkeypatch, name, value):
    driver("H100:lost")
    monkeypatch.setenv(name, value)
    expected = rf"trainer.device=auto: expected a GPU, as {name}={value}; trainer.device=cpu trains"
    with pytest.raises(UserError, match=expected):
        allocate(make_config(), 1)
    assert allocate(make_config("trainer.device=cpu"), 1).kind == "cpu"


@pytest.mark.parametrize(
    ("name", "value"), [("CUDA_VISIBLE_DEVICES", "NoDevFiles"), ("SLURM_GPUS_ON_NODE", "0")]
)
def test_a_job_that_asked_for_no_gpu_was_promised_none(driver, monkeypatch, name, value):
    driver("")
    monkeypatch.setenv(name, value)
    assert allocate(make_config(), 1).kind != "cuda"


def test_a_machine_without_a_driver_or_whose_gpus_are_not_wanted_is_no_reason_to_warn(
    driver, capsys, monkeypatch, tmp_path
):
    driver("H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert uuids() == []
    monkeypatch.setenv("FAKE_NVML_INIT", "12")  # the library is not found
    for name in ("DRIVER", "AMD"):  # of this machine
        monkeypatch.setattr(cards, name, tmp_path / "none")
    assert uuids() == []
    assert capsys.readouterr().err == ""


def test_a_driver_whose_library_a_container_lacks_is_said(driver, capsys, monkeypatch, tmp_path):
    driver("")
    monkeypatch.setenv("FAKE_NVML_INIT", "12")
    monkeypatch.setattr(cards, "DRIVER", tmp_path)
    assert uuids() == []
    assert "libnvidia-ml.so.1 is not found (in a container NVIDIA_DRIVER_CAP" in (
        capsys.readouterr().err
    )


def test_amd_gpus_are_not_used_and_this_is_said(driver, capsys, monkeypatch, tmp_path):
    driver("")
    monkeypatch.setenv("FAKE_NVML_INIT", "12")
    monkeypatch.setattr(cards, "AMD", tmp_path)
    assert uuids() == []
    assert "warning: AMD GPUs are not used" in capsys.readouterr().err


@pytest.fixture
def three_gpus(monkeypatch):
    found = [Card(uuid, "H100") for uuid in GPUS]
    monkeypatch.setattr(devices, "visible_cards", lambda min_free_gb: found)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "visible_cards", lambda min_free_gb: [])


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
    """A batch system shares out a node so, with other cores for each job."""
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


@pytest.mark.usefixtures("no_gpu")
def test_tf32_needs_cuda():
    with pytest.raises(UserError, match=r"trainer.precision=tf32: expected fp32 or bf16"):
        allocate(make_config("trainer.precision=tf32"), runs=1)


def test_a_job_takes_as_many_cores_as_its_batch_system_gave_it_of_any_there_are(monkeypatch):
    """Two jobs of one core each run at once on a node that confines neither."""
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
