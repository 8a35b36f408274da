import pytest
import torch
from helpers import make_config

from resnests.training.optim import build_optimizer, learning_rate


def rates(*overrides: str, epochs: int) -> list[float]:
    optimizer = make_config(*overrides).optimizer
    return [learning_rate(optimizer, epoch, epochs) for epoch in range(1, epochs + 1)]


def test_the_papers_schedule():
    got = rates(epochs=200)
    assert got[59] == 0.1
    assert got[60] == pytest.approx(0.02)
    assert got[119] == pytest.approx(0.02)
    assert got[120] == pytest.approx(0.004)
    assert got[160] == got[199] == pytest.approx(0.0008)


def test_a_shortened_run_keeps_its_shape():
    assert rates(epochs=10) == pytest.approx([0.1] * 3 + [0.02] * 3 + [0.004] * 2 + [0.0008] * 2)


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [
        ("[0.3,0.6,0.8]", 1, [1]),
        ("[0.3,0.6,0.8]", 2, [1, 0.2]),
        ("[0.3,0.6,0.8]", 3, [1, 0.2, 0.04]),
        ("[0.3,0.6,0.8]", 4, [1, 0.2, 0.04, 0.008]),
        ("[0.5,0.75]", 1, [1]),
        ("[0.5,0.75]", 3, [1, 1, 0.2]),
        ("[0.01]", 3, [1, 0.2, 0.2]),
        ("[0.5,0.5]", 2, [1, 0.04]),  # both at once, as was asked for
        ("[0.98,0.99]", 4, [1, 1, 1, 1]),
    ],
)
def test_a_short_run_begins_at_its_full_rate_and_falls_once_an_epoch(milestones, epochs, expected):
    got = rates(f"optimizer.milestones={milestones}", epochs=epochs)
    assert got == pytest.approx([0.1 * part for part in expected])


def test_no_milestones_keep_the_rate_constant():
    assert rates("optimizer.milestones=[]", epochs=5) == [0.1] * 5


def test_cosine_goes_from_the_rate_towards_zero():
    got = rates("optimizer=sgd_cosine", epochs=100)
    assert got[0] == 0.1
    assert got[50] == pytest.approx(0.05)
    assert got == sorted(got, reverse=True)
    assert 0 < got[-1] < 1e-4


def test_the_papers_optimizer_decays_every_parameter():
    model = torch.nn.BatchNorm2d(3)
    optimizer = build_optimizer(make_config().optimizer, model.parameters())
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
    assert len(group["params"]) == 2


def test_adamw():
    optimizer = build_optimizer(
        make_config("optimizer=adamw").optimizer, torch.nn.Linear(2, 2).parameters()
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def rates_by_step(*overrides: str, epochs: int = 4, steps: int = 5) -> list[float]:
    optimizer = make_config(*overrides).optimizer
    places = [(epoch, step) for epoch in range(1, epochs + 1) for step in range(steps)]
    return [learning_rate(optimizer, epoch, epochs, step, steps) for epoch, step in places]


def test_a_warm_up_rises_with_every_step_to_the_schedule():
    plain = rates_by_step("optimizer=sgd_cosine")
    warm = rates_by_step("optimizer=sgd_cosine", "optimizer.warmup=0.5")
    assert [w / p for w, p in zip(warm[:10], plain[:10], strict=True)] == pytest.approx(
        [(step + 1) / 10 for step in range(10)]
    )
    assert warm[10:] == plain[10:]


def test_a_cosine_falls_with_every_step_where_asked():
    by_epoch = rates_by_step("optimizer=sgd_cosine")
    by_step = rates_by_step("optimizer=sgd_cosine", "optimizer.per_step=true")
    assert len(set(by_epoch)) == 4
    assert len(set(by_step)) == 20
    assert by_step[::5] == by_epoch[::5]
    assert by_step == sorted(by_step, reverse=True)
