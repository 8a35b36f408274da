"""Make users who are not root, and a Python that they can run: for tests as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clusters import STARTED
from helpers import REPOSITORY, TINY

NAMES = ("resnests-ann", "resnests-bob", "resnests-cy")
GROUP = "resnests-lab"


class Lab:
    """Holds users of one group, who share runs/ in `folder` and have a home below it each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        version = sys.version_info
        self.python = f"{sys.base_prefix}/bin/python{version.major}.{version.minor}"
        self.path = [str(REPOSITORY), *(path for path in sys.path if "-packages" in path)]
        self.umask = "002"

    def find_python(self) -> None:
        """Use a copy of this Python, of hard links, where users cannot enter its folder; skip the
        test where they cannot run that either.
        """
        if self._complaint(""):
            try:
                shutil.copytree(
                    sys.base_prefix,
                    self.folder / "python",
                    symlinks=True,
                    copy_function=os.link,
                    ignore=shutil.ignore_patterns("site-packages", "test"),
                )
            except (OSError, shutil.Error) as error:
                pytest.skip(f"needs a Python that all users can run ({str(error)[:100]})")
            self.python = str(self.folder / "python" / "bin" / Path(self.python).name)
        if said := self._complaint("import hydra, torch, resnests.run"):
            pytest.skip(f"needs a Python, packages and a checkout that all users can read: {said}")

    def _complaint(self, program: str) -> str:
        command = self.as_user(NAMES[0], self.python, "-c", program)
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment("/"))
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return lines[-1] if done.returncode else ""

    def environment(self, home: Path | str) -> dict[str, str]:
        return os.environ | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(self.path)}

    def as_user(self, name: str, *command: str) -> list[str]:
        who = ("setpriv", f"--reuid={name}", f"--regid={GROUP}", "--init-groups")
        return [*who, "sh", "-c", f'umask {self.umask}; exec "$@"', "sh", *command]

    def start(self, name: str, *overrides: str) -> subprocess.Popen:
        """Start a sweep of that user's, whose lines are appended to sweep.log in their home."""
        home = self.folder / name
        where = f"runs_dir={self.folder / 'runs'}"
        words = [str(REPOSITORY / "run.py"), "-m", *TINY, where, *overrides]
        with open(home / "sweep.log", "ab") as log:
            process = subprocess.Popen(
                self.as_user(name, self.python, *words),
                cwd=home,
                env=self.environment(home),
                stdout=log,
                stderr=log,
            )
        STARTED.append(process)
        return process


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Make the users, for as long as the `with` block takes."""
    _remove_users()  # of a test that was killed
    try:
        _run("groupadd", GROUP)
        for name in NAMES:
            home = folder / name
            _run("useradd", "-M", "-N", "-g", GROUP, "-d", str(home), "-s", "/bin/bash", name)
            home.mkdir()
            shutil.chown(home, name, GROUP)
        (folder / "runs").mkdir()
        shutil.chown(folder / "runs", None, GROUP)
        (folder / "runs").chmod(0o2775)
        made = Lab(folder)
        made.find_python()
        yield made
    finally:
        _remove_users()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _remove_users() -> None:
    for command in (*(("userdel", name) for name in NAMES), ("groupdel", GROUP)):
        subprocess.run(command, capture_output=True)
