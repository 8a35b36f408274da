"""Every python with this folder on PYTHONPATH imports this first: see an_error_with_markup and
a_dying_device of faults.py. In a folder with a file named boom, a training fails at its next epoch;
with a file named dying, all on the devices that it names.
"""

import sys
from pathlib import Path

if {"resnests.sweep.worker", "resnests.sweep.forkserver"} & set(sys.orig_argv):
    from resnests.runs.directory import RunDirectory
    from resnests.sweep.leases import Lease

    write_history, environment = RunDirectory.write_history, Lease.environment
    mine = []  # the devices of this training

    def note_devices(self):
        mine[:] = self.devices
        return environment(self)

    def may_fail(self, rows):
        dying = Path("dying")
        if dying.exists() and set(mine) & set(dying.read_text().split()):
            raise RuntimeError("CUDA error: unspecified launch failure")
        try:
            Path("boom").unlink()
        except FileNotFoundError:
            return write_history(self, rows)
        raise RuntimeError("[/opt/pytorch/x.cc:3] boom")

    RunDirectory.write_history, Lease.environment = may_fail, note_devices
