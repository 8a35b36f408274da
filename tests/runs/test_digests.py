"""The identity of what is read from disk: taken once, part of the recipe, seen when it changed."""

import sys
from pathlib import Path

import pytest
from helpers import make_config, tiny
from PIL import Image

from resnests.config.recipe import IMAGES, recipe_hash, recipe_values
from resnests.config.schema import config_dict, config_from
from resnests.config.targets import code_digest, source_files
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.runs.digests import require_unchanged, with_digests
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Provenance, Record

NETWORK = "def net(num_classes, **values):\n    return num_classes\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the working directory, which has a module `mynets` of the user's."""
    (tmp_path / "mynets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def planned(*overrides, **components):
    """Return a configuration as a sweep plans it."""
    tree = config_dict(tiny(*overrides))
    (config,) = with_digests([config_from(tree | components)])
    return config


def own(target="mynets.net", **values):
    return planned(arch={"name": "mine", "_target_": target} | values)


def recipe(*overrides):
    return recipe_hash(planned(*overrides))


def test_what_is_planned_reads_no_file_afterwards(here):
    config = own()
    before = recipe_hash(config), RunDirectory.of(config).path
    (here / "mynets.py").write_text("edited")
    assert (recipe_hash(config), RunDirectory.of(config).path) == before
    assert recipe_hash(config_from(config_dict(config))) == before[0], "the way to a worker"
    (here / "mynets.py").unlink()
    assert recipe_hash(config) == before[0]


def test_a_worker_that_finds_another_source_says_so(here):
    config = own()
    require_unchanged(config)
    (here / "mynets.py").write_text(NETWORK + "# edited\n")
    with pytest.raises(UserError, match=r"source of arch._target_=mynets.net was changed since"):
        require_unchanged(config)


def test_an_argument_named_code_does_not_hide_an_edited_source(here):
    before = own(code="hamming")
    assert recipe_values(before)["arch.args.code"] == "hamming"
    assert recipe_hash(before) != recipe_hash(own(code="gray"))
    (here / "mynets.py").write_text(NETWORK + "# edited\n")
    assert recipe_hash(own(code="hamming")) != recipe_hash(before)


def test_digests_are_no_keys_of_the_users():
    for word in ("+digests.arch=1", "digests={}", "++digests.arch=1"):
        with pytest.raises(Exception, match="digests"):
            make_config(word)


def test_a_single_source_file_keeps_the_digest_of_earlier_versions(here):
    (here / "mynets.py").write_bytes(b"net = print\n")
    assert own().digests == {"arch.code": "c460a0aa"}  # of sha256sum


def test_code_that_moves_between_the_files_of_a_package_is_seen(here):
    package = here / "bundle"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    (package / "other.py").write_text("b = 2\n")
    before = own("bundle.net").digests
    (package / "__init__.py").write_text("a = 1\nb = 2\n")
    (package / "other.py").write_text("")
    assert own("bundle.net").digests != before


@pytest.mark.slow
def test_pythons_own_modules_and_released_packages_are_not_digested(here):
    assert own("functools.partial", func=None).digests == {}
    assert source_files("functools.partial") == []
    from importlib.metadata import version

    (found,) = own("psutil.Process").digests.values()
    assert found == f"psutil {version('psutil')}"
    mixed = code_digest(own("psutil.Process", inner={"_target_": "mynets.net"}).arch)
    assert len(mixed) == 8


def test_a_file_that_an_argument_names_is_part_of_the_recipe(here):
    (here / "start.pt").write_bytes(b"one")
    before = own(start="start.pt")
    (here / "start.pt").write_bytes(b"two")
    assert recipe_hash(own(start="start.pt")) != recipe_hash(before)
    assert own(start="nowhere.pt").digests.keys() == {"arch.code"}


def test_weights_are_their_content_not_their_path(here):
    (here / "m.pt").write_bytes(b"one")
    (here / "copy.pt").write_bytes(b"one")
    one = recipe("task=evaluate", "weights=m.pt")
    assert one == recipe("task=evaluate", "weights=./m.pt")
    assert one == recipe("task=evaluate", f"weights={here / 'm.pt'}")
    assert one == recipe("task=evaluate", "weights=copy.pt")
    config = planned("task=evaluate", "weights=m.pt")
    (here / "m.pt").write_bytes(b"two")
    assert recipe("task=evaluate", "weights=m.pt") != one
    with pytest.raises(UserError, match=r"weights=m.pt was changed since the sweep was planned"):
        require_unchanged(config)


@pytest.mark.slow
def test_the_seeds_of_a_folder_of_weights_share_a_recipe(here):
    for seed in (0, 1):
        folder = here / "official" / f"DIGITS_Standard_tiny_seed={seed}"
        folder.mkdir(parents=True)
        (folder / "last_model.pt").write_text(str(seed))
    found = {
        recipe("task=evaluate", f"weights={name}", f"seed={seed}")
        for name in ("official", "./official", "official/")
        for seed in (0, 1)
    }
    assert len(found) == 1
    config = planned("task=evaluate", "weights=official", "seed=1")
    (here / "official" / "DIGITS_Standard_tiny_seed=1" / "last_model.pt").write_text("other")
    with pytest.raises(UserError, match=r"seed=1/last_model.pt was changed since"):
        require_unchanged(config)


def test_an_evaluation_by_path_of_an_earlier_version_keeps_its_identity(here):
    """Its config.yaml has no digest, so that the path is all that it had."""
    config = tiny("task=evaluate", "weights=m.pt")
    assert recipe_values(config)["weights"] == "m.pt"
    assert recipe_hash(config) == "cb329e27"


MEASURED = ("dataset.mean=null", "dataset.std=null", "task=evaluate", "weights=run/model.pt")


@pytest.mark.slow
def test_where_images_are_measured_what_measures_them_is_part_of_an_evaluation(here):
    (here / "run").mkdir()
    (here / "run" / "model.pt").touch()
    keep = "dataset.train_limit=50", "dataset.val_fraction=0.5"
    assert len({recipe(*MEASURED), recipe(*MEASURED, keep[0]), recipe(*MEASURED, keep[1])}) == 3
    given = "task=evaluate", "weights=run/model.pt"
    assert len({recipe(*given), recipe(*given, keep[0]), recipe(*given, keep[1])}) == 1


@pytest.mark.slow
def test_what_no_evaluation_uses_is_no_part_of_it(here):
    (here / "m.pt").touch()
    given = "task=evaluate", "weights=m.pt"
    unused = "dataset.flip=true", "optimizer.lr=7", "trainer.epochs=9", "pipeline.crop_padding=1"
    assert len({recipe(*given), *(recipe(*given, word) for word in unused)}) == 1
    used = "dataset.test_limit=30", "trainer.precision=bf16", "arch.widths=[8,16]"
    assert len({recipe(*given), *(recipe(*given, word) for word in used)}) == 4


def test_weights_of_a_run_of_ours_are_evaluated_with_its_mean_and_std(here):
    run = RunDirectory("run")
    run.path.mkdir()
    run.weights_file.touch()
    record = Record.of(tiny(), Provenance())
    record.mean, record.std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    run.write_record(record)
    config = planned(*MEASURED)
    assert (config.dataset.mean, config.dataset.std) == (record.mean, record.std)
    assert recipe_hash(config) == recipe(*MEASURED, "dataset.train_limit=50")
    named = planned("task=evaluate", "weights=run/model.pt")
    assert named.dataset.mean != record.mean, "a mean that the data set has is kept"


def images(root: Path, shade: int):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / "0.png")


def test_own_images_are_part_of_the_recipe_wherever_they_lie(here):
    dataset = {"name": "mine", "source": "images", "num_classes": 2}
    for place, shade in (("one", 1), ("same", 1), ("other", 2)):
        images(here / place, shade)
    one, same, other = (
        planned(dataset=dataset | {"root": str(here / name)}) for name in ("one", "same", "other")
    )
    assert recipe_hash(one) == recipe_hash(same) != recipe_hash(other)
    images(here / "one", 3)
    require_unchanged(one)  # which does not read the images: who loads them compares them
    with pytest.raises(UserError, match=r"the images changed since the sweep was planned"):
        load(one.dataset, one.digests[IMAGES])


def test_each_file_is_digested_once_for_all_runs_of_a_sweep(here, monkeypatch):
    from resnests.config import targets

    read = []
    digest = targets._digest
    monkeypatch.setattr(targets, "_digest", lambda *args: read.append(args) or digest(*args))
    tree = config_dict(tiny()) | {"arch": {"name": "mine", "_target_": "mynets.net"}}
    configs = with_digests([config_from(tree | {"seed": seed}) for seed in range(5)])
    assert len(read) == 1
    assert len({recipe_hash(config) for config in configs}) == 1


def test_the_configuration_of_a_run_has_no_digests_and_runs_again(here):
    config = own()
    directory = RunDirectory.of(config)
    directory.write_config(config)
    (again,) = with_digests([directory.read_config()])
    assert "digests" not in directory.config_file.read_text()
    assert again == config
