"""A mistake is one line, whatever is in it."""

import os
import pickle
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from resnests.errors import UserError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.B\nrm -rf\r\n  and more \n", "a.B rm -rf and more"),
        ("root=/data/two  spaces", "root=/data/two  spaces"),
        ("no \x1b[31mred, no \udcff\u2028", "no \\x1b[31mred, no \\udcff"),
        ("größer als <b> at 0x10", "größer als <b> at 0x10"),
        (
            "not <function net at 0x7f3a2b>, <a.B object at 0xFF>",
            "not <function net>, <a.B object>",
        ),
    ],
)
def test_an_error_is_one_line_that_can_be_printed(text, line):
    assert str(UserError(text)) == line
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_on_a_full_disk_is_one_line(unbuffered):
    program = "from resnests.errors import run_command_line as run; run(lambda: print(1))"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(REPOSITORY)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_noise_where_hydra_logs(tmp_path):
    command = f"{sys.executable} {REPOSITORY / 'run.py'} --info all | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Hydra")
    assert done.stderr == ""
