"""What a sweep composes is what Hydra composes, job by job."""

import itertools

import pytest
from helpers import REPOSITORY
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import open_dict

from resnests.config.compose import register
from resnests.config.grid import Grid
from resnests.config.schema import Config, config_from
from resnests.errors import UserError

# Recipes apply by themselves, experiments set values, a section is given as a whole, and values
# are added, forced, taken away, and make sense only together.
GRIDS = {
    "values": (["variant=resnest"], ["optimizer.lr=0.1,1"], ["trainer.epochs=1,1.5,x"]),
    "groups": (["optimizer=sgd,adamw"], ["variant=resnest,a_resnest"], ["seed=0,1"]),
    "experiment": (["+experiment=demo", "experiment=demo"], ["trainer.batch_size=8"]),
    "wholes": (["arch.blocks=[1,1,1]|{a:1}"], ["seed=007|3"], ["runs_dir='a b'|c"]),
    "dicts": (["optimizer={lr:0.5}", "+optimizer.lr=3"], ["optimizer.lr=2|null"]),
    "marks": (["++trainer.epochs=3", "~trainer.epochs", "+x=1"], ["+trainer.epochs=2", "seed=1"]),
    "seeds": (["seed=0,1"], ["++seed=5", "+seed=5", "~seed", "seed='7'"], ["trainer.epochs=1,2"]),
    "together": (["task=train,evaluate"], ["weights=null,w"], ["seed=0,-1"]),
    "references": (["runs_dir='r/${seed}'|'${oc.env:HOME}'"], ["seed=4|5"]),
    "overrides": (["runs_dir='${hydra:job.override_dirname}'|r"], ["trainer.epochs=1|2"]),
    "unknown": (["trainer.epoch=1", "nothing=1", "variant@x=a", "trainer=none"], ["seed=2"]),
}


def jobs_of(grid: tuple[list[str], ...]) -> list[list[str]]:
    """Return the grid of all choices, in which | and , part the values of one key."""
    axes = []
    for words in grid:
        axis = []
        for word in words:
            key, equals, values = word.partition("=")
            mark = "|" if "|" in values else ","
            axis += [key + equals + value for value in values.split(mark)] if equals else [word]
        axes.append(axis)
    return [list(job) for job in itertools.product(*axes)]


@pytest.fixture
def loader():
    state = Singleton.get_state()
    setup_globals()
    register()
    JobRuntime.instance().set("name", "run")
    yield ConfigLoaderImpl(create_config_search_path(str(REPOSITORY / "conf")))
    GlobalHydra.instance().clear()
    Singleton.set_state(state)


def outcome(compose) -> Config | str:
    try:
        return compose()
    except (HydraException, UserError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_composed_as_hydra_composes_each_job(loader, name):
    given = "hydra.job.config.override_dirname.exclude_keys=[runs_dir]"
    master = loader.load_configuration("config", [given], RunMode.MULTIRUN)
    jobs = jobs_of(GRIDS[name])
    grid = Grid(loader, master, jobs)
    for job in jobs:

        def by_hydra(job=job) -> Config:
            tree = loader.load_sweep_config(master, job)
            HydraConfig.instance().set_config(tree)
            with open_dict(tree):
                del tree["hydra"]
            return config_from(tree)

        found = outcome(lambda job=job: grid.config(job))
        assert found == outcome(by_hydra), job


def test_what_runs_share_is_composed_once(loader, monkeypatch):
    """Hydra composes each choice of groups, and a value is checked once for all its seeds."""
    calls = []
    load = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda *args: calls.append(1) or load(*args))
    monkeypatch.setattr(
        "resnests.config.grid.config_from", lambda tree: calls.append(2) or config_from(tree)
    )
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    grid = (["variant=standard,resnest"], ["optimizer.lr=0.1,0.2"], ["trainer.epochs=1,2"])
    jobs = [[*job, f"seed={seed}"] for job in jobs_of(grid) for seed in range(100)]
    composed = Grid(loader, master, jobs)
    configs = [composed.config(job) for job in jobs]
    assert len({(c.variant.name, c.optimizer.lr, c.trainer.epochs, c.seed) for c in configs}) == 800
    assert (calls.count(1), calls.count(2)) == (2, 2 * (1 + 2 + 2))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["launcher", "sweeper"])
def test_a_launcher_that_only_some_runs_choose_is_refused(loader, part):
    """The sweep has one already, and would train those runs by that."""
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    jobs = [["arch=resnet8"], ["arch=resnet20", f"hydra/{part}=basic"]]
    grid = Grid(loader, master, jobs)
    assert grid.config(jobs[0]).arch.name == "resnet8"
    with pytest.raises(UserError, match=rf"brings hydra\.{part} .*: expected hydra/{part}=basic"):
        grid.config(jobs[1])
