"""The campaigns of tests/faults.py hurt what they say."""

from types import SimpleNamespace

import faults
import pytest
from sweeps import RAYS, _role


class Idle:
    """Plays a sweep that has ended before anything was there to hurt."""

    cluster = ("cluster=ray",)

    def __init__(self, folder) -> None:
        self.process = SimpleNamespace(poll=lambda: 0)

    def wait(self) -> int:
        return 0


def test_a_fault_that_hurts_nothing_in_two_sweeps_ends_the_campaign(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "Sweep", Idle)
    monkeypatch.setattr(faults.time, "sleep", lambda _: None)
    with pytest.raises(RuntimeError, match="worker killed: two sweeps had nothing that it hurts"):
        faults.hurt_until(tmp_path, ["worker killed"])


def test_a_task_of_ray_is_found_by_the_name_of_its_function():
    process = SimpleNamespace(cmdline=lambda: [RAYS, "", ""])
    assert RAYS == "ray::train"
    assert _role(process) == "worker"
