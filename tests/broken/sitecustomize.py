"""Every python with this folder on PYTHONPATH imports this first: see an_error_with_markup of
faults.py. In a folder with a file named boom, a training fails at its next epoch.
"""

import sys
from pathlib import Path

if {"resnests.sweep.worker", "resnests.sweep.forkserver"} & set(sys.orig_argv):
    from resnests.runs.directory import RunDirectory

    write_history = RunDirectory.write_history

    def fail_once(self, rows):
        try:
            Path("boom").unlink()
        except FileNotFoundError:
            return write_history(self, rows)
        raise RuntimeError("[/opt/pytorch/x.cc:3] boom")

    RunDirectory.write_history = fail_once
