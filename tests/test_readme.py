"""What the README says can be typed can be typed."""

import re
import shlex
import subprocess

import pytest
from helpers import REPOSITORY, run_command

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
RUNS = sorted({line for line in LINES if line.startswith("python run.py")})


@pytest.mark.slow
def test_every_block_is_valid_shell():
    for block in BLOCKS:
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_the_readme_has_the_two_commands_that_set_everything_up():
    assert len([line for line in LINES if line.startswith("python3 -m venv ")]) == 2
    assert len(RUNS) > 5


@pytest.mark.slow
@pytest.mark.parametrize("line", RUNS)
def test_every_run_of_the_readme_is_understood(line, tmp_path):
    """Composed and checked as a grid, up to what this machine has no GPUs, images or weights
    for.
    """
    arguments = [
        word
        for word in shlex.split(line)[2:]
        if not word.startswith(("trainer.device=", "weights="))
    ]
    if "--help" in arguments:
        return
    arguments = [
        re.sub("^task=(evaluate|export|analyze)$", "task=train", word) for word in arguments
    ]
    arguments = [word for word in arguments if "tf32" not in word]
    done = run_command(*arguments, "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " to run, " in done.stdout
