"""What tells recipes apart."""

from resnests.config.recipe import telling_keys

SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.milestones": [0.3, 0.6]}
ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 0.001, "optimizer.betas": [0.9, 0.99]}


def test_keys_in_which_recipes_differ_tell_them_apart():
    assert telling_keys([SGD, SGD | {"trainer.epochs": 10}]) == {"trainer.epochs"}
    assert telling_keys([SGD, SGD | {"optimizer.milestones": [0.5]}]) == {"optimizer.milestones"}
    assert telling_keys([SGD, SGD]) == telling_keys([SGD]) == set()


def test_a_name_says_what_comes_with_it_and_nothing_more():
    assert telling_keys([SGD, ADAMW]) == {"optimizer.name"}
    faster = ADAMW | {"optimizer.lr": 0.01}
    assert telling_keys([SGD, ADAMW, faster]) == {"optimizer.name", "optimizer.lr"}
