import os
import signal
from unittest.mock import patch

import pytest
import torch

OF_A_JOB = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")  # which may have started the tests
OF_A_JOB += ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU")


def pytest_configure(config):
    """Run the tests on a machine with a GPU as on one without; -m gpu asks for those of a GPU.
    Trainings that share the cores would take four times as long if their threads spun while they
    wait. What the tests start can be interrupted although nohup or a shell's & started the tests.
    What is printed, and how much a run gets, is as without a terminal and outside of a job; servers
    of the tests are asked without a proxy.
    """
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in ("FORCE_COLOR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", *OF_A_JOB):
        os.environ.pop(name, None)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):  # which promise a GPU
            os.environ.pop(name, None)


def pytest_collection_modifyitems(config, items):
    """Skip what takes minutes, or a machine to itself, unless it is asked for."""
    for name in {"long", "cluster"} - set(config.option.markexpr.split()):
        for item in items:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"runs with pytest -m {name}"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Use one thread: small networks are fastest on one core, and sums come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_slots(tmp_path_factory, monkeypatch):
    """Keep the tests and other trainings on the machine from waiting for each other; and what a
    sweep in this process tells its children is over with the test.
    """
    with patch.dict(os.environ):
        monkeypatch.setenv("RESNESTS_LOCK_DIR", str(tmp_path_factory.mktemp("slots")))
        yield
