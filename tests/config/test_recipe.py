"""What tells recipes apart."""

import pytest
from helpers import make_config

from resnests.config.recipe import distinguishing_keys, recipe_hash, recipe_values
from resnests.config.schedule import MOVED

SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.milestones": [0.3, 0.6]}
ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 0.001, "optimizer.betas": [0.9, 0.99]}


def test_keys_in_which_recipes_differ_tell_them_apart():
    assert distinguishing_keys([SGD, SGD | {"trainer.epochs": 10}]) == {"trainer.epochs"}
    assert distinguishing_keys([SGD, SGD | {"optimizer.milestones": [0.5]}]) == {
        "optimizer.milestones"
    }
    assert distinguishing_keys([SGD, SGD]) == distinguishing_keys([SGD]) == set()


def test_a_name_says_what_comes_with_it_and_nothing_more():
    assert distinguishing_keys([SGD, ADAMW]) == {"optimizer.name"}
    faster = ADAMW | {"optimizer.lr": 0.01}
    assert distinguishing_keys([SGD, ADAMW, faster]) == {"optimizer.name", "optimizer.lr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "epochs", "before", "moved"),
    [
        ("sgd", 1, "2642cd84", []),
        ("sgd", 2, "4f86c99a", [1]),
        ("sgd", 3, "16d6a4ff", [1, 2]),
        ("sgd_densenet", 3, "ebf27aa4", [2]),
        ("sgd", 4, "c6832c33", None),
        ("sgd", 200, "5177e433", None),
        ("sgd_cosine", 1, "6290054b", None),
    ],
)
def test_a_run_with_other_milestones_than_earlier_versions_had_is_another_recipe(
    optimizer, epochs, before, moved
):
    config = make_config(f"trainer.epochs={epochs}", f"optimizer={optimizer}")
    assert recipe_values(config).get("optimizer.milestone_epochs") == moved
    assert (recipe_hash(config) == before) == (moved is None)


def test_what_follows_from_the_epochs_tells_recipes_apart_only_where_nothing_else_does():
    one, two = SGD | {"trainer.epochs": 1}, SGD | {"trainer.epochs": 2}
    moved = one | {MOVED: []}
    assert distinguishing_keys([SGD, moved]) == {"trainer.epochs"}
    assert distinguishing_keys([one, moved]) == {MOVED}
    assert distinguishing_keys([one, moved, two]) == {"trainer.epochs", MOVED}


def test_given_weights_have_no_schedule():
    config = make_config("trainer.epochs=1", "task=evaluate", "weights=model.pt")
    assert "optimizer.milestone_epochs" not in recipe_values(config)
