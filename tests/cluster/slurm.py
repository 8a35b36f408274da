"""Start a Slurm of one's own on this machine, for as long as a command or a test takes.

    python tests/cluster/slurm.py sinfo                  # a command in it
    python tests/cluster/slurm.py --hosts bash           # with host names of their own for nodes
    python tests/cluster/slurm.py --accounting sacct     # takes slurmdbd and mariadb-server

It takes root and Debian's packages slurm-wlm and munge, writes everything into a temporary folder,
and stops what it started. Its nodes are slurmds of this machine, each with one core. With --hosts
each of them is a host as far as its name goes (a UTS namespace).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

ACCOUNTANTS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
{accounting}
MpiDefault=none
MinJobAge={min_job_age}
KillWait=10
SlurmdTimeout=20
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=0
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
{more}
"""
NO_ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none"""
ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.sock"""
SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000"


def missing(*more: str) -> str:
    """Return why there can be no Slurm here, with these programs as well; "" where there can."""
    lacking = [name for name in (*PROGRAMS, *more) if not _which(name)]
    if lacking:
        packages = "slurm-wlm and munge; slurmdbd and mariadb-server for accounting"
        return f"needs {', '.join(lacking)} (Debian's {packages})"
    return "" if os.getuid() == 0 else "needs root"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


MARKS = [  # of the tests that start one
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(1000),  # with the machine busy
]


class Slurm:
    """Holds such a Slurm as a context, in which SLURM_CONF is set for all its commands."""

    def __init__(
        self,
        nodes: int = 2,
        hosts: bool = False,
        more: str = "",
        gpu: str | None = None,
        accounting: bool = False,
        login_only: Path | None = None,
        min_job_age: int = 300,
    ) -> None:
        """Note how it is to be: `gpu` is a device file that stands for a GPU of each node,
        `accounting` takes ACCOUNTANTS, `login_only` is a folder that is empty on all nodes.
        """
        self.login_only, self.min_job_age = login_only, min_job_age
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.hosts, self.more, self.gpu, self.accounting = hosts, more, gpu, accounting
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Slurm:
        # Short, as the path of a socket has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)  # for users who are not root
        self.stack = ExitStack()
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        (folder / "state").mkdir()
        ports = _free_ports(len(self.nodes) + 3)
        nodes = "\n".join(
            NODE.format(name=name, host=name if self.hosts else host, port=port)
            + (" Gres=gpu:1" if self.gpu else "")
            for name, port in zip(self.nodes, ports, strict=False)
        )
        if self.gpu:
            self.more += "\nGresTypes=gpu"
            (folder / "gres.conf").write_text(f"Name=gpu File={self.gpu}\n")
        self.conf = folder / "slurm.conf"
        values = {"host": host, "port": ports[-1], "folder": folder, "more": self.more}
        accounting = ACCOUNTING if self.accounting else NO_ACCOUNTING
        values["min_job_age"] = self.min_job_age
        values["accounting"] = accounting.format(folder=folder, port=ports[-2])
        self.conf.write_text(CONF.format(nodes=nodes, **values))
        self.stack.enter_context(patch.dict(os.environ, SLURM_CONF=str(self.conf)))
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
        self.start("munged", "--foreground", "--force", *files, f"--log-file={folder}/munged.log")
        _until(lambda: (folder / "munge.sock").exists(), "munged")
        if self.accounting:
            self._start_accounting(*ports[-3:-1])
        self.start("slurmctld", "-D", "-i")
        for name in self.nodes:
            self.start_node(name)
        _until(lambda: self.ask("sinfo", "-h", "-o", "%T").split() == ["idle"], "the nodes")

    def _start_accounting(self, database: int, port: int) -> None:
        data, conf = self.folder / "data", self.folder / "slurmdbd.conf"
        where = ("--no-defaults", f"--datadir={data}", "--user=root")
        self.ask("mariadb-install-db", *where, "--auth-root-authentication-method=normal")
        own = (f"--socket={self.folder}/db.sock", f"--pid-file={self.folder}/db.pid")
        network = ("--bind-address=127.0.0.1", f"--port={database}", "--skip-grant-tables")
        self.start("mariadbd", *where, *own, *network)
        _until(lambda: (self.folder / "db.sock").exists(), "mariadbd")
        conf.write_text(SLURMDBD.format(folder=self.folder, port=port, database=database))
        conf.chmod(0o600)
        self.start("slurmdbd", "-D")
        _until(lambda: "test" in self.ask("sacctmgr", "-i", "add", "cluster", "test"), "slurmdbd")

    def start(self, name: str, *options: str, key: str = "", prefix: tuple[str, ...] = ()) -> None:
        with open(self.folder / f"{key or name}.out", "ab") as log:
            self.daemons[key or name] = subprocess.Popen(
                [*prefix, str(_which(name)), *options], stdout=log, stderr=log, cwd=self.folder
            )

    def start_node(self, name: str) -> None:
        own = f"hostname {name} && " if self.hosts else ""
        if self.login_only:
            own += f"mount -t tmpfs none {self.login_only} && "
        prefix = ("unshare", "--uts", "--mount", "sh", "-c", f'{own}exec "$0" "$@"')
        self.start("slurmd", "-D", "-N", name, key=name, prefix=prefix if own else ())

    def lose_state(self) -> None:
        """Kill the controller, and start one that knows of no job."""
        self.stop("slurmctld", kill=True)
        shutil.rmtree(self.folder / "state")
        (self.folder / "state").mkdir()
        self.start("slurmctld", "-D", "-i")
        _until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "the nodes")

    def stop(self, key: str, kill: bool = False) -> None:
        daemon = self.daemons.pop(key)
        daemon.kill() if kill else daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    @staticmethod
    def ask(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()

    def queue(self) -> list[str]:
        """Return a line for each job that is not over: its number and its state."""
        return self.ask("squeue", "--all", "--noheader", "--array", "-o", "%F_%K %T").splitlines()

    def accounted(self, fields: str) -> set[str]:
        """Return a line for each job that slurmdbd knows; it hears of an end after squeue does."""
        options = ("--noheader", "--parsable2", "--allocations", "--format")
        return set(self.ask("sacct", *options, fields).splitlines())

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:
            for user in set(self.ask("squeue", "--all", "--noheader", "-o", "%u").split()):
                self.ask("scancel", "--full", "--signal=KILL", f"--user={user}")
            end = time.monotonic() + 15
            while self.queue() and time.monotonic() < end:
                time.sleep(0.2)
        for key in reversed(list(self.daemons)):
            self.stop(key)
        self.stack.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until(is_so, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--accounting", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if reason := missing(*ACCOUNTANTS if options.accounting else ()):
        print(reason, file=sys.stderr)
        return 2
    with Slurm(options.nodes, options.hosts, accounting=options.accounting):
        return subprocess.run(options.command or ["bash"]).returncode


if __name__ == "__main__":
    sys.exit(main())
