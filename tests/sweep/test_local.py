"""Test what a launcher on this machine is given, and what a sweep makes of its troubles."""

import errno
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import REPOSITORY, tiny
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from hydra_plugins.resnests_sweeper.grid_sweeper import _limited
from resnests.config.compose import register
from resnests.config.schema import config_from
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.sweep.devices import allocate
from resnests.sweep.executors import local
from resnests.sweep.executors.launcher import SpecLoader
from resnests.sweep.executors.local import LauncherExecutor, local_sweep
from resnests.sweep.job import run_job
from resnests.sweep.leases import _own_folder
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import REFUSED, Scheduler


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[Run]:
    for name in ("RESNESTS_SWEEP", "RESNESTS_COMMAND", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that what a sweep sets is undone
    configs = [tiny(f"runs_dir={tmp_path / 'runs'}", f"seed={seed}") for seed in range(2)]
    return [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]


def hydras_loader() -> ConfigLoader:
    register()
    setup_globals()
    Plugins.instance()
    return ConfigLoaderImpl(create_config_search_path(str(REPOSITORY / "conf")))


def test_a_job_gets_what_the_sweep_checked_whatever_the_files_say_by_now(runs):
    """The YAML may have been renamed since, as nothing is composed anew."""
    loader = hydras_loader()
    master = loader.load_configuration("config", ["hydra.job.chdir=true"], RunMode.MULTIRUN)
    words = ["arch=renamed_since", "seed=1", "++hydra.job.env_set.RESNESTS_RUN='1'"]
    with local_sweep(runs, allocate(runs[0].config, 1)) as folder:
        made = SpecLoader(loader, folder).load_sweep_config(master, words)
    assert (
        config_from(DictConfig({k: v for k, v in made.items() if k != "hydra"})) == runs[1].config
    )
    job = made.hydra.job
    assert (job.env_set.RESNESTS_RUN, job.chdir) == ("1", False)
    assert job.override_dirname == "arch=renamed_since,seed=1"
    assert list(made.hydra.overrides.task) == ["arch=renamed_since", "seed=1"]
    assert made.hydra.runtime.choices.arch == "renamed_since"
    assert master.hydra.job.chdir is True, "the sweep's own is left as it was"


def swept(runs, launch) -> tuple[list[str], list]:
    """Return what is printed of a sweep by this launcher, and the jobs of its last round."""
    printed: list[str] = []
    jobs: list = []
    with local_sweep(runs, allocate(runs[0].config, 1)) as folder:
        executor = LauncherExecutor(lambda numbers: launch(folder), folder, printed.append)
        for some in Scheduler(runs, executor, lambda: False, printed.append).rounds():
            jobs[:] = some
    return printed, jobs


def test_a_launcher_without_room_says_where(runs):
    def launch(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    printed, _ = swept(runs, launch)
    assert "hydra/launcher=basic" in printed[0]
    assert "/dev/shm" in printed[0]


def test_who_takes_the_specs_away_ends_a_sweep_which_says_so(runs):
    printed, jobs = swept(runs, lambda folder: folder.stop())
    assert len(printed) == 1
    assert "jobs.jsonl, which stops the jobs of a sweep; the same command goes on" in printed[0]
    assert all(REFUSED in job.outcomes.values() for job in jobs)
    for run in runs:
        run.config.trainer.overwrite = True
    printed, _ = swept(runs, lambda folder: folder.stop())
    assert "; the same command without trainer.overwrite=true goes on" in printed[0]


def test_the_folder_of_a_long_sweep_is_kept_fresh(runs, monkeypatch):
    monkeypatch.setattr(local, "FRESHEN_SECONDS", 0)
    with local_sweep(runs, allocate(runs[0].config, 1)) as folder:
        executor = LauncherExecutor(lambda numbers: time.sleep(0.1), folder, print)
        executor.submit(runs, [], 0)
        for path in (folder.path, folder.specs):
            os.utime(path, (0, 0))
        executor.poll([])
        assert time.time() - folder.path.stat().st_mtime < 60
        assert time.time() - folder.specs.stat().st_mtime < 60
        executor.close([])


def test_locks_need_no_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert _own_folder() == Path(tempfile.gettempdir()) / f"resnests-slots-{os.getuid()}"


def test_a_launchers_own_limit_holds():
    def slots(*overrides, **options):
        launcher = SimpleNamespace(joblib=options)
        return [one.devices.slots for one in _limited([tiny(*overrides)] * 2, launcher)]

    assert slots() == slots(n_jobs=-1, batch_size="auto") == [None, None]
    assert slots(n_jobs=1) == [1, 1]
    assert slots("devices.slots=2", n_jobs=3) == [2, 2]
    for options, said in (
        ({"n_jobs": 0}, "n_jobs=0: expected at least 1"),
        ({"n_jobs": -2}, "n_jobs=-2: expected at least 1"),
        ({"batch_size": "7"}, "batch_size=7: expected auto"),
    ):
        with pytest.raises(UserError, match=f"hydra.launcher.{said}"):
            slots(**options)
    (other,) = _limited([tiny()], object())  # of another launcher
    assert other.devices.slots is None
    (one_by_one,) = _limited([tiny()], BasicLauncher())  # Hydra's own
    assert one_by_one.devices.slots == 1
    on_slurm = tiny("cluster=slurm")
    assert _limited([on_slurm], SimpleNamespace(joblib={"n_jobs": -1})) == [on_slurm]
    with pytest.raises(UserError, match="n_jobs=1: expected -1 beside a cluster"):
        _limited([on_slurm], SimpleNamespace(joblib={"n_jobs": 1}))


def test_what_no_log_can_take_is_printed(runs, monkeypatch, capfd):
    """A folder may have become one that nobody may write to."""

    def fail(*_):
        raise PermissionError("not any more")

    monkeypatch.setattr("resnests.sweep.process.run_process", fail)
    monkeypatch.setattr("resnests.sweep.job.log_line", fail)
    with local_sweep(runs, allocate(runs[0].config, 1)):
        assert run_job(0) == "failed"
    said = f"failed: {runs[0].label}: PermissionError: not any more\n"
    assert capfd.readouterr().err == said
