"""examples/own_parts as a user has it: elsewhere, with the package installed from a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from helpers import REPOSITORY

from resnests import __version__
from resnests.runs.directory import find_runs

GRID = ("dataset=stripes", "trainer.epochs=2", "trainer.batch_size=32")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder with what the wheel installs."""
    if not list(metadata.distributions(name="pip")):  # to import it would change distutils
        pytest.skip("needs pip")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def resnests(module: str, *arguments: str, cwd, site) -> subprocess.CompletedProcess:
    """`python -m resnests.<module>`, of the wheel."""
    command = [sys.executable, "-m", f"resnests.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_the_version_is_one_everywhere(site, tmp_path):
    (about,) = site.glob("*.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in about.read_text()
    assert f"\nversion: {__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (REPOSITORY / "CHANGELOG.md").read_text()
    for module in ("run", "aggregate"):
        done = resnests(module, "--version", cwd=tmp_path, site=site)
        assert (done.returncode, done.stdout) == (0, f"resnests {__version__}\n")


def test_the_wheel_has_everything_that_a_command_needs(site):
    for path in ("resnests/conf/config.yaml", "hydra_plugins/resnests_sweeper/grid_sweeper.py"):
        assert (site / path).is_file()
    assert len(list((site / "resnests" / "conf").glob("*/*.yaml"))) == len(
        list((REPOSITORY / "conf").glob("*/*.yaml"))
    )
    assert list((site / "resnests" / "results" / "templates").iterdir())


@pytest.mark.long
def test_a_network_a_head_and_a_data_set_of_ones_own(tmp_path, site):
    shutil.copytree(REPOSITORY / "examples" / "own_parts", tmp_path, dirs_exist_ok=True)
    mine = ("--config-dir", "conf", "-m", *GRID)
    for grid in (("arch=smallnet",), ("arch=resnet8", "variant=last_features,standard")):
        done = resnests("run", *mine, *grid, cwd=tmp_path, site=site)
        assert done.returncode == 0, done.stderr
    runs = list(find_runs(tmp_path))
    assert {(run.read_record().arch, run.read_record().variant) for run in runs} == {
        ("smallnet", "standard"),
        ("resnet8", "last_features"),
        ("resnet8", "standard"),
    }
    assert all(run.read_record().test_accuracy > 90 for run in runs)
    table = resnests("aggregate", cwd=tmp_path, site=site)
    assert table.returncode == 0, table.stderr
    assert "| smallnet " in table.stdout
    (again,) = [run for run in runs if run.read_record().arch == "smallnet"]
    place = (f"--config-path={again.path}", "--config-name=config")
    assert "complete already" in resnests("run", *place, cwd=tmp_path, site=site).stdout
    with open(tmp_path / "parts.py", "a") as file:
        file.write("# edited\n")
    plan = resnests("run", *mine, "arch=smallnet", "sweep.dry_run=true", cwd=tmp_path, site=site)
    assert "1 to run" in plan.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("arch._target_=parts.Smallnet",), "arch._target_=parts.Smallnet: cannot be imported"),
        (("arch.depth=-1", "arch.width=0"), "error: arch"),
        (("+arch.colour=red",), "unexpected keyword argument 'colour'"),
        (("dataset.count=2",), "error: dataset"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_run(tmp_path, site, overrides, said):
    shutil.copytree(REPOSITORY / "examples" / "own_parts", tmp_path, dirs_exist_ok=True)
    mine = ("--config-dir", "conf", "-m", *GRID, "arch=smallnet", "seed=0,1")
    done = resnests("run", *mine, *overrides, cwd=tmp_path, site=site)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(find_runs(tmp_path))
