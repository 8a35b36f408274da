"""A precision that the machine only emulates is said before hours are spent on it."""

import sys

import pynvml
import pytest
import torch
from helpers import tiny

from resnests.sweep import drive, precision
from resnests.sweep.devices import Allocation
from resnests.sweep.drive import run_single
from resnests.sweep.precision import emulation, used
from resnests.sweep.stop import Stop
from resnests.sweep.worker import Worker
from resnests.tasks import experiment

OLD_XEON = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\n"
WARNED = "is emulated on this CPU, which lacks avx512_bf16 and amx_bf16: expect 0.4x the speed"


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Return what makes this a machine whose /proc/cpuinfo is given."""

    def pretend(machine, cpuinfo):
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr("resnests.cpuinfo.CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)
        monkeypatch.setattr(precision.platform, "system", lambda: "Linux")

    return pretend


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "warns"),
    [
        ("x86_64", OLD_XEON, True),
        ("x86_64", OLD_XEON.replace("vnni", "bf16"), False),
        ("x86_64", "flags : avx2 amx_tile amx_bf16\n", False),
        ("aarch64", "Features\t: fp asimd sve\n", True),
        ("aarch64", "Features\t: fp asimd sve bf16\n", False),
        ("x86_64", "", False),  # a system that says nothing
        ("ppc64le", "cpu\t\t: POWER10\nflags : none\n", False),  # a kind we know nothing of
    ],
)
def test_a_cpu_that_lacks_bf16_is_told_by_its_flags(cpu, machine, cpuinfo, warns):
    cpu(machine, cpuinfo)
    assert bool(emulation("bf16", "cpu", [])) == warns
    assert emulation("fp32", "cpu", []) is None


@pytest.fixture
def cards(monkeypatch):
    """Have NVML show a T4 and an H100."""
    capabilities = {"GPU-a": ("Tesla T4", [7, 5]), "GPU-b": ("NVIDIA H100", [9, 0])}
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", capabilities.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda card: card[0])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda card: card[1])


@pytest.mark.usefixtures("cards")
def test_a_gpu_that_lacks_a_precision_is_named():
    both = ["GPU-a", "GPU-b", "GPU-a"]
    said = "trainer.precision=bf16 is emulated on Tesla T4: expect less than the speed of fp32"
    assert emulation("bf16", "cuda", both).startswith(said)
    assert "is fp32 on Tesla T4, and as slow" in emulation("tf32", "cuda", both)
    assert [emulation(name, "cuda", ["GPU-b"]) for name in ("bf16", "tf32")] == [None, None]
    assert [emulation(name, "cuda", both) for name in ("fp32", "official")] == [None, None]


def test_a_gpu_that_nvml_does_not_tell_of_is_no_reason_to_warn(cards, monkeypatch):
    def fails(uuid):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", fails)
    assert emulation("bf16", "cuda", ["MIG-1"]) is None


def test_a_plan_says_it_once_and_only_of_runs_that_are_to_be_made(cpu, capsys, tmp_path):
    cpu("x86_64", OLD_XEON)
    options = ("trainer.device=cpu", "sweep.dry_run=true", f"runs_dir={tmp_path}")
    assert run_single(tiny("trainer.precision=bf16", *options)) == 0
    error = capsys.readouterr().err
    assert error.count("warning: ") == 1
    assert f"warning: trainer.precision=bf16 {WARNED}" in error
    assert run_single(tiny(*options)) == 0
    assert "warning" not in capsys.readouterr().err


def test_an_analysis_is_in_fp32_and_warns_only_where_it_trains_first():
    analyses = tiny("task=analyze", "trainer.precision=bf16")
    assert used(analyses) == "fp32"
    analyses.analysis.train = True
    assert used(analyses) == used(tiny("trainer.precision=bf16")) == "bf16"
    assert used(tiny("task=analyze", "trainer.precision=tf32")) == "tf32"


def test_a_sweep_says_it_before_it_starts(cpu, capsys, tmp_path, monkeypatch):
    cpu("aarch64", "Features : fp asimd\n")
    monkeypatch.setattr(drive, "prepare", lambda runs: sys.exit("it starts"))
    with pytest.raises(SystemExit):
        run_single(tiny("trainer.device=cpu", "trainer.precision=bf16", f"runs_dir={tmp_path}"))
    said = "warning: trainer.precision=bf16 is emulated on this CPU, which lacks bf16: expect"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("cards")
def test_a_run_says_of_its_own_gpu_what_a_login_node_could_not_see(monkeypatch, tmp_path, caplog):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that what a worker sets is undone
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(experiment, "run_experiment", lambda *_: "complete")
    config = tiny("trainer.precision=bf16", f"runs_dir={tmp_path}")
    for gpu, warned in (("GPU-b", False), ("GPU-a", True)):
        caplog.clear()
        both = Allocation("cuda", [f"{gpu}-0", "other-0"], [gpu, "GPU-a"], 1, 2, 1)
        worker = Worker(config, both, Stop())
        assert worker.work() == 0
        worker.held.release()
        worker.lock.release()
        assert ("is emulated on Tesla T4" in caplog.text) == warned
