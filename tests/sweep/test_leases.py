import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import until

from resnests.errors import UserError
from resnests.sweep import leases
from resnests.sweep.devices import Allocation
from resnests.sweep.leases import FileLocks, SocketLocks, lease

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(params=[pytest.param(SocketLocks, marks=linux), FileLocks], autouse=True)
def locks(request, monkeypatch):
    """Return each kind of locks, whatever this machine is."""
    monkeypatch.setattr(leases, "machine_locks", request.param)
    return request.param


def cpu(slots: int, take: int) -> Allocation:
    return Allocation("cpu", [f"cpu-{i}" for i in range(slots)], [], take, slots // take, take)


def names_then_released(*arguments, **options) -> list[str]:
    held = lease(*arguments, **options)
    held.release()
    return held.names


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
    assert names_then_released(cpu(3, 1), "third", wait=False) == ["cpu-2"]
    one.release()
    assert names_then_released(cpu(3, 2), "second", wait=False) == ["cpu-0", "cpu-1"]


def test_without_waiting_the_holder_is_named():
    held = lease(cpu(1, 1), f"{'long/' * 40}seed=0")
    mine = rf"process {os.getpid()} on {socket.gethostname()} \(.*long/long/seed=0\)"
    with pytest.raises(UserError, match=rf"devices.wait=false: .* cpu-0 by {mine}"):
        lease(cpu(1, 1), "other", wait=False)
    held.release()
    names_then_released(cpu(1, 1), "other", wait=False)


def test_waiting_ends_when_asked_to_stop():
    held = lease(cpu(1, 1), "first")
    assert lease(cpu(1, 1), "other", should_stop=iter([False, True]).__next__) is None
    held.release()


def test_a_slot_is_free_when_its_holder_was_killed(locks):
    program = f"""
import sys
from resnests.sweep import leases
from resnests.sweep.devices import Allocation
leases.machine_locks = leases.{locks.__name__}
held = leases.lease(Allocation("cpu", ["cpu-0"], [], 1, 1, 1), "doomed")
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
    assert names_then_released(cpu(1, 1), "other", wait=False) == ["cpu-0"]


class Waiter(threading.Thread):
    """Leases slots of `allocation` in a thread, from when it starts."""

    def __init__(self, allocation: Allocation) -> None:
        super().__init__(daemon=True)
        self.allocation, self.held = allocation, None
        self.over, self.looks = threading.Event(), 0
        self.start()
        until(lambda: self.looks > 1)  # it has tried once, and has its place

    def run(self) -> None:
        self.held = lease(self.allocation, "waiter", should_stop=self._is_over)

    def _is_over(self) -> bool:
        self.looks += 1  # before each try
        return self.over.is_set()

    def ended(self) -> bool:
        self.join(60)
        return not self.is_alive()

    def close(self) -> None:
        self.over.set()
        self.join()
        if self.held:
            self.held.release()


def test_who_needs_all_cores_gets_them_before_those_who_came_later():
    """A sweep beside it keeps both slots busy with one run each."""
    running = [lease(cpu(2, 1), "of a sweep") for _ in range(2)]
    whole = Waiter(cpu(2, 2))
    later = []
    for one in running:
        one.release()
        later.append(Waiter(cpu(2, 1)))
    assert whole.ended()
    assert whole.held.names == ["cpu-0", "cpu-1"]
    assert not any(waiter.held for waiter in later)
    whole.close()
    assert all(waiter.ended() for waiter in later)
    for waiter in later:
        waiter.close()


def test_who_waits_is_served_in_order():
    running = lease(cpu(1, 1), "running")
    waiters = [Waiter(cpu(1, 1)) for _ in range(4)]
    running.release()
    for waiter in waiters:
        assert waiter.ended()
        assert sum(w.held is not None for w in waiters) == waiters.index(waiter) + 1
        waiter.close()


def test_who_waits_for_one_device_holds_up_nobody_who_needs_another():
    gpu = Allocation("cuda", ["GPU-a-0"], ["GPU-a"], 1, 1, 1)
    held = [lease(gpu, "running"), lease(cpu(2, 1), "running")]
    waiters = [Waiter(gpu), Waiter(cpu(2, 2))]  # the latter has got cpu-1
    others = Allocation("cpu", ["cpu-2", "cpu-3"], [], 2, 1, 2)
    across = Allocation("cpu", ["cpu-1", "cpu-2", "cpu-3"], [], 2, 1, 2)
    assert names_then_released(others, "a job with other cores") == ["cpu-2", "cpu-3"]
    assert names_then_released(across, "one whose cores overlap") == ["cpu-2", "cpu-3"]
    for one in held:
        one.release()
    for waiter in waiters:
        assert waiter.ended()
        waiter.close()


def in_child_of_another_user(work) -> int:
    """Return the exit status of `work` in a fork of this process, as a user with no rights here."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            os._exit(work())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def _root():
    if os.getuid() != 0:
        pytest.skip("becoming another user takes root")


@linux
@pytest.mark.usefixtures("_root")
def test_users_of_one_machine_share_its_devices(monkeypatch):
    monkeypatch.setattr(leases, "machine_locks", SocketLocks)

    def as_another_user() -> int:
        try:
            lease(cpu(2, 2), "other", wait=False)
        except UserError as error:
            taken = f"cpu-0 by process {os.getppid()}" in str(error)
            return 0 if taken and lease(cpu(2, 1), "other").names == ["cpu-1"] else 1
        return 2

    held = lease(cpu(2, 1), "mine")
    assert in_child_of_another_user(as_another_user) == 0
    held.release()
    assert names_then_released(cpu(2, 2), "mine", wait=False) == ["cpu-0", "cpu-1"]


@linux
def test_links_and_folders_that_another_user_planted_are_not_followed(monkeypatch, tmp_path):
    monkeypatch.setattr(leases, "machine_locks", SocketLocks)
    mine, planted = tmp_path / "mine", tmp_path / "slots"
    mine.write_text("secret")
    mine.chmod(0o600)
    planted.mkdir()
    for name in ("cpu-0.holder", "cpu-0.note", "cpu-0.lock"):
        (planted / name).symlink_to(mine)
    monkeypatch.setenv("RESNESTS_LOCK_DIR", str(planted))
    assert names_then_released(cpu(2, 2), "mine") == ["cpu-0", "cpu-1"]
    assert (mine.read_text(), mine.stat().st_mode & 0o777) == ("secret", 0o600)
    assert len(list(planted.iterdir())) == 3


def test_a_lease_opens_few_files(locks):
    """A process may open 1024, and a machine may have many cores."""
    before = len(os.listdir("/dev/fd"))
    held = lease(cpu(256, 256), "mine")
    assert len(os.listdir("/dev/fd")) - before <= 260
    held.release()
