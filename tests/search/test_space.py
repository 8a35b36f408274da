"""What can be searched, and what is refused before anything starts."""

import pytest
from helpers import TINY, run_command
from spaces import DECAY, LR, make_space

from resnests.errors import UserError
from resnests.search import plan
from resnests.search.space import Dimension


@pytest.mark.parametrize(
    ("override", "found"),
    [
        (LR, Dimension(1e-3, 1.0, log=True)),
        ("optimizer.lr=interval(1,2)", Dimension(1.0, 2.0)),  # as a rate is a float
        ("trainer.batch_size=interval(16,64)", Dimension(16, 64)),
        ("trainer.batch_size=tag(log,interval(16,64))", Dimension(16, 64, log=True)),
        ("trainer.batch_size=range(16,65,16)", Dimension(16, 64, step=16)),
        ("trainer.batch_size=16,32", Dimension(choices=("16", "32"))),
        ("optimizer=choice(sgd,adamw)", Dimension(choices=("sgd", "adamw"))),
        ("optimizer.milestones=[0.5],[0.3,0.6]", Dimension(choices=("[0.5]", "[0.3,0.6]"))),
        ("dataset.flip=true,false", Dimension(choices=("True", "False"))),
    ],
)
def test_hydras_sweeps_are_the_dimensions(tmp_path, override, found):
    space = make_space(tmp_path, override)
    ((key, dim),) = space.dimensions.items()
    assert key == override.partition("=")[0]
    assert dim == found
    assert type(dim.low) is type(found.low)


@pytest.mark.slow
def test_a_point_of_the_space_is_a_configuration(tmp_path):
    space = make_space(tmp_path, LR, "optimizer=sgd,sgd_cosine", "trainer.batch_size=16,32")
    config = space.config(
        {"optimizer.lr": 0.0123456789012345, "optimizer": "sgd_cosine", "trainer.batch_size": "16"}
    )
    assert config.optimizer.lr == 0.0123456789012345
    assert (config.optimizer.cosine, config.trainer.batch_size) == (True, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "task=tune: expected something to search"),
        ([LR, "dataset.val_fraction=0"], "dataset.val_fraction=0.0: expected a part of the train"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: expected a positive number"),
        (["optimizer.lr=interval(1,0.1)"], "expected interval(low, high) with low below high"),
        (["optimizer.lr=tag(log,interval(0,1))"], "expected an interval above 0"),
        (["optimizer.lr=tag(ln,interval(0,1))"], "expected no tag but log"),
        (["optimizer.lr=tag(log,choice(0.1,1))"], "expected no tag but log"),
        (["optimizer.lr=shuffle(0.1,1)"], "expected no shuffle"),
        (
            ["optimizer.rate=interval(1,2)"],
            "Could not override 'optimizer.rate': Key 'rate'",
        ),
        (["trainer.epochs=interval(0.5,3)"], "'0.5' of type 'float' could not be converted to Int"),
        (["trainer.epochs=range(5,5)"], "expected a range with something in it"),
        (["optimizer=sgd,adamw", "optimizer.momentum=0.5,0.9"], "optimizer.momentum"),
        ([LR, "seed=0,1"], "seed=0,1: expected one seed; tune.seeds says how many"),
        ([LR, "dataset.train_limit=50,96"], "expected one value, as trials are compared"),
        ([LR, "trainer.compile=true,false"], "expected values that change the numbers"),
        ([LR, "tune.trials=0"], "tune.trials=0: expected at least 1"),
        ([LR, "tune.objective=test"], "tune.objective=test: expected one of best, last"),
        ([LR, "tune.study='../x'"], "tune.study='../x': expected letters"),
        ([LR, "tune.warmup=2"], "tune.warmup=2.0: expected a fraction of the epochs"),
        ([LR, "tune.hours=0"], "tune.hours=0.0: expected a positive number"),
    ],
)
def test_what_cannot_be_searched_is_one_line(tmp_path, overrides, said):
    with pytest.raises(UserError) as caught:
        make_space(tmp_path, *overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=train", DECAY], "expected values to train each of, or task=tune to search"),
        ([LR, "hydra/launcher=basic"], "hydra/launcher=basic: expected joblib for task=tune"),
        ([LR, "trainer.overwrite=true"], "trainer.overwrite=True: expected false: delete"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, overrides, said):
    words = ("task=tune", *TINY, "dataset.val_fraction=0.25", *overrides)
    done = run_command("-m", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_tells_what_would_be_searched_without_optuna(tmp_path):
    done = run_command("-m", "experiment=tune", "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr=tag(log, interval(0.001, 1.0))" in done.stdout
    assert "20 trials of 1 seed(s) to run" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_all_choices_and_both_ends_are_tried_before_the_first_trial(tmp_path, monkeypatch, dry_run):
    tried = []
    monkeypatch.setattr(plan, "prepare", tried.extend)
    if dry_run == "false":
        pytest.importorskip("optuna", reason="needs resnests[tune]")
        monkeypatch.setattr("resnests.search.drive.search", lambda *_: 0)
    words = ("variant=standard,a_resnest", "trainer.batch_size=interval(16,63)")
    space = make_space(tmp_path, *words, f"sweep.dry_run={dry_run}")
    assert plan.run_search(space, []) == 0
    sizes = {(config.variant.name, config.trainer.batch_size) for config in tried}
    assert sizes == {("standard", 16), ("a_resnest", 16), ("standard", 63)}
