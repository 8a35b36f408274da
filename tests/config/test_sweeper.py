"""What the sweeper refuses before it composes anything."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hydra_plugins.resnests_sweeper.grid_sweeper import _require_flat, _require_grid
from resnests.errors import UserError
from resnests.run import _note_grid


@pytest.mark.parametrize("word", ["seed=range(0)", "seed=range(5,2)", "variant=glob(nosuch*)"])
def test_a_sweep_over_nothing_is_one_line_that_names_the_key(word):
    loader = cast(Any, SimpleNamespace(get_group_options=lambda *_, **__: ["standard"]))
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(["arch=a,b", word])
    with pytest.raises(UserError) as refused:
        _require_grid(overrides)
    assert str(refused.value) == f"{word}: expected at least one value; it has none"


def test_nested_keys_of_a_grid_are_one_line_with_the_key_that_is_right():
    params = OmegaConf.create({"seed": "0,1", "optimizer": {"lr": "0.1,0.2"}})
    with pytest.raises(UserError) as refused:
        _require_flat(params)
    assert str(refused.value) == (
        "hydra.sweeper.params.optimizer={'lr': '0.1,0.2'}: expected its keys in one line each, "
        "such as optimizer.lr: ..."
    )
    _require_flat(OmegaConf.create({"optimizer.lr": "0.1,0.2", "metrics": ["f1"]}))


def test_one_run_of_an_experiment_with_a_grid_says_that_m_trains_it(capsys):
    _note_grid({})
    assert capsys.readouterr().err == ""
    _note_grid(OmegaConf.create({"seed": "0,1", "optimizer.lr": "0.1,0.2"}))
    said = "note: one run, without the grid of seed, optimizer.lr, which -m trains\n"
    assert capsys.readouterr().err == said
