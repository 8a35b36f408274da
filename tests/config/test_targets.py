"""Pieces of a user's own: found by import path, called with what their YAML says, told apart by
their source.
"""

import sys

import pytest
from helpers import tiny

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import config_dict, config_from, part_from
from resnests.config.targets import build, locate, source_files
from resnests.errors import UserError
from resnests.runs.digests import with_digests

NETS = """
def net(num_classes, depth=1, inner=None):
    return ("net", num_classes, depth, inner)

def headed(num_classes, head):
    return ("headed", num_classes, head)

def fails(num_classes):
    raise RuntimeError("no such depth")

constant = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """Return the folder of a module `nets` that can be imported."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def arch(**values):
    return part_from("arch", {"name": "mine"} | values)


def own(**values):
    """Return a configuration with a network of one's own."""
    tree = config_dict(tiny())
    tree["arch"] = {"name": "mine"} | values
    return config_from(tree)


@pytest.mark.usefixtures("nets")
def test_a_target_is_called_with_its_yaml_and_with_what_it_takes():
    part = arch(_target_="nets.net", depth=4)
    assert build("arch", part, num_classes=7, named={"head": "x"}) == ("net", 7, 4, None)
    assert build("arch", arch(_target_="nets.headed"), num_classes=7, named={"head": "x"})[2] == "x"


@pytest.mark.usefixtures("nets")
def test_targets_may_nest():
    inner = {"_target_": "nets.net", "num_classes": 2}
    built = build("arch", arch(_target_="nets.net", inner=inner), num_classes=7)
    assert built == ("net", 7, 1, ("net", 2, 1, None))


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.Net", "arch._target_=nowhere.Net: cannot be imported"),
        ("nets.Missing", "arch._target_=nets.Missing: cannot be imported: /"),
        ("nets.constnat", "/nets.py has no constnat; did you mean constant?"),
        ("nets.constant", "arch._target_=nets.constant: expected something to call, not 3"),
        ("nets.fails", "arch._target_=nets.fails: RuntimeError: no such depth (/"),
        ("nets.headed", "arch._target_=nets.headed: TypeError: headed() got an unexpected"),
    ],
)
def test_what_is_wrong_with_a_target_is_one_line(target, said):
    with pytest.raises(UserError) as caught:
        build(
            "arch",
            arch(_target_=target, **({"depth": 1} if "headed" in target else {})),
            num_classes=2,
            named={"head": "a"},
        )
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_without_a_target_is_named_with_those_that_there_are():
    with pytest.raises(UserError, match=r"arch.depth=12: expected a key of arch \(blocks, name, w"):
        arch(depth=12)


def test_a_name_is_made_of_the_target_where_there_is_none():
    assert part_from("arch", {"_target_": "nets.Net"}).name == "Net"


def test_arguments_and_target_are_part_of_the_recipe(nets):
    values = recipe_values(own(_target_="nets.net", depth=4))
    assert values["arch._target_"] == "nets.net"
    assert values["arch.depth"] == 4
    hashes = {
        recipe_hash(own(_target_=target, **more))
        for target in ("nets.net", "nets.fails")
        for more in ({}, {"depth": 4})
    }
    assert len(hashes) == 4


def test_another_source_is_another_recipe(nets):
    (before, same) = with_digests([own(_target_="nets.net")] * 2)
    assert recipe_hash(before) == recipe_hash(same) != recipe_hash(own(_target_="nets.net"))
    (nets / "nets.py").write_text(NETS + "# edited\n")
    (after,) = with_digests([own(_target_="nets.net")])
    assert recipe_hash(after) != recipe_hash(before)


def test_the_source_of_a_package_is_all_of_its_files(nets):
    package = nets / "bundle"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "other.py", "deep/__init__.py"):
        (package / name).touch()
    assert len(source_files("bundle.Net")) == 3
    assert source_files("bundle.other.Net") == [package / "other.py"]


def test_versions_on_record_stand_for_the_source_of_torch():
    assert source_files("torch.optim.RMSprop") == []
    part = part_from("optimizer", {"_target_": "torch.optim.RMSprop", "lr": 0.1})
    assert callable(locate("optimizer", part))


def test_the_way_through_plain_values_keeps_arguments():
    config = own(_target_="nets.net", depth=4, sizes=[1, 2], nested={"a": None})
    assert config.arch.args == {"depth": 4, "sizes": [1, 2], "nested": {"a": None}}
    assert config_dict(config)["arch"]["depth"] == 4
    assert config_from(config_dict(config)) == config
