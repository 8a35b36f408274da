"""Spans, minimisers, second order, selectivity and strictness, each against an independent form."""

import json

import numpy as np
import pytest
import torch
from helpers import make_config
from torch.nn import functional as F

from resnests.analysis import second_order as second
from resnests.analysis.features import Family, extractor
from resnests.analysis.quantities import Problem
from resnests.analysis.risk import Risk, cross_entropy, minimise, penalty
from resnests.analysis.rows import Rows
from resnests.analysis.second_order import TwoMaps, lanczos, optimum_of, saddle_of, second_order
from resnests.models.single_stage import SingleStage
from resnests.runs.analysis import LAST_BLOCK, LAST_MAPS, PREFIX, Analysis, Solve

CLASSES, L2, TOLERANCE = 4, 1e-3, 1e-8


def rows_of(features: torch.Tensor, labels: torch.Tensor) -> Rows:
    rows = Rows.empty(len(labels), features.shape[1], torch.device("cpu"), None)
    rows.values[:, 1:], rows.labels[:] = features, labels
    return rows


def problem_of(width: int, images: int = 600, l2: float = L2, features: int = 4) -> Problem:
    """Return a ResNEst of three blocks, on pictures in which five pixels never change."""
    torch.manual_seed(2)
    net = SingleStage(CLASSES, 4, 3, features, width).double()
    x = torch.randn(images + 200, 3, 4, 4, dtype=torch.float64)
    labels = (x.mean(1)[:, 0, 0].abs() * 3 + x.mean(1)[:, 1, 1]).long().clamp(0, CLASSES - 1)
    x[:, :, 2] = 0.3
    x[:, :, 3, 0] = 0
    known = extractor(net)
    with torch.no_grad():
        features = known.read(x)[0]["exact"]
    rows = [rows_of(features[part], labels[part]) for part in (slice(images), slice(images, None))]
    family = known.families["exact"]
    return Problem("exact", family, *rows, CLASSES, l2, TOLERANCE, lambda: None)


def analysed(problem: Problem) -> Analysis:
    done = Analysis(problem.l2, TOLERANCE, "", coupled=True)
    done.train_images, done.test_images = len(problem.train), len(problem.test)
    done.solves = list(problem.solves(done))
    return done


def test_a_gap_is_of_spans_and_features_that_depend_on_others_pay_nothing():
    """There are 11 pixels and 8 features before the last block. A width of 19 passes them all on,
    though the maps that are needed for full column rank have 24 columns.
    """
    narrow, wide = analysed(problem_of(14)).summary(), analysed(problem_of(19)).summary()
    assert narrow["squared_eps"] > 1e-3
    assert narrow["eps"] > 100 * narrow["eps_error"]
    assert abs(wide["squared_eps"]) < 1e-12
    assert abs(wide["eps"]) <= wide["eps_error"] < 2e-8
    assert wide["lost"] == 0
    assert wide["slack"] > 0


def test_numbers_are_those_of_the_minimiser_not_of_where_the_solver_stopped():
    """With a weak penalty, a risk within 1e-4 of the least can be far from the minimiser."""
    problem = problem_of(14, images=80, l2=1e-5)
    problem.tolerance = 1e-3
    for solve in analysed(problem).solves[1:]:
        if solve.value is None:
            assert solve.quantity == LAST_BLOCK
            continue
        rows = problem.last_maps.rows if solve.quantity == LAST_MAPS else None
        train, test = rows or (problem.train, problem.test)
        start = torch.zeros(1 + solve.features, CLASSES, dtype=torch.float64)
        exact = minimise(Risk(train, 1e-5), start, 1e-18)
        assert exact.reached
        assert -1e-12 <= solve.value - exact.value <= solve.gap
        exactly = cross_entropy(test, exact.weights)[0]
        assert abs(solve.test_loss - exactly) <= solve.test_error
        if solve.group == "1.3":
            assert solve.test_error <= 5e-4


def test_prefixes_are_polished_by_a_few_steps():
    problem = problem_of(14, images=300)
    problem.tolerance = 5e-4
    prefixes = [s for s in analysed(problem).solves if s.quantity == PREFIX]
    assert max(solve.test_error for solve in prefixes) <= 2e-3
    solve = prefixes[1]
    start = torch.zeros(1 + solve.features, CLASSES, dtype=torch.float64)
    left = minimise(Risk(problem.train, L2), start, 5e-4, problem.test, polish=0)
    assert left.error > 2e-2, "of where the certificate alone ends it"


def test_a_penalty_next_to_nothing_is_no_crash():
    problem = problem_of(14, l2=1e-15)
    start = torch.zeros(1 + problem.family.ends[0], CLASSES, dtype=torch.float64)
    found = minimise(Risk(problem.train, 1e-15), start, 1e-8, limit=300)
    assert np.isfinite(found.value)


def test_more_features_than_images_leave_no_bound():
    crowded = analysed(problem_of(14, images=13))
    assert crowded.find(PREFIX, "exact", "1.3").train_squared == pytest.approx(0, abs=1e-12)
    summary = crowded.summary()
    assert summary["crowded"]
    assert summary["bound"] is summary["eps"] is summary["squared_eps"] is summary["rho"] is None
    assert summary["trained"] is not None
    assert summary["linear"] is None, "the 11 pixels, too, are nearly as many as the images"
    assert not analysed(problem_of(14)).summary()["crowded"]
    some = analysed(problem_of(14, images=22)).summary()
    assert some["crowded"]
    assert some["linear"] is not None, "11 pixels of 22 images"


def two_maps(width: int) -> tuple[Problem, TwoMaps]:
    problem = problem_of(width, images=200, features=8)
    last = problem.last_maps
    return problem, TwoMaps(Risk(last.rows[0], L2), last.x, last.v * problem.std[-8:], CLASSES)


def test_second_order_is_that_of_automatic_differentiation():
    _, maps = two_maps(7)
    x, labels = maps.risk.rows.values[:, 1:], maps.risk.rows.labels

    def risk(vector: torch.Tensor) -> torch.Tensor:
        a, w, c = maps.parts(vector)
        logits = (x @ maps.x + x @ maps.v @ w.T) @ a.T + c
        map_of_features = (maps.x + maps.v @ w.T) @ a.T
        squares = map_of_features.square().sum() + c.square().sum()
        return F.cross_entropy(logits, labels) + L2 / 2 * squares

    point = torch.randn(maps.size, dtype=torch.float64)
    place = maps.at(point)
    assert place.point.value == pytest.approx(risk(point).item(), rel=1e-12)
    expected = torch.func.grad(risk)(point)
    assert (place.gradient - expected).norm() < 1e-11 * expected.norm()
    hessian = torch.autograd.functional.hessian(risk, point)
    direction = torch.randn_like(point)
    assert (place.curve(direction) - hessian @ direction).norm() < 1e-11 * hessian.norm()
    values = torch.linalg.eigvalsh(hessian)
    least, largest, residual = lanczos(place.curve, point, lambda: None)
    assert residual < 1e-9, "100 steps span the space of 88 unknowns"
    assert least == pytest.approx(values[0].item(), abs=1e-9)
    assert largest == pytest.approx(values[-1].item(), rel=1e-6)
    escape, along = place.escape()
    assert escape @ hessian @ escape == pytest.approx(along, rel=1e-9)
    assert values[0] <= along < 0


def test_lanczos_finds_the_ends_of_a_spectrum_that_it_does_not_span(monkeypatch):
    """The 300 eigenvalues, from -1 to 4, have gaps at the ends, as those of Hessians do."""
    torch.manual_seed(0)
    inner = torch.linspace(-0.3, 2, 296, dtype=torch.float64)
    values = torch.cat((torch.tensor([-1.0, -0.6, 3.0, 4.0], dtype=torch.float64), inner))
    turn = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64)).Q
    matrix = turn @ torch.diag(values) @ turn.T
    products = []

    def product(vector: torch.Tensor) -> torch.Tensor:
        products.append(matrix @ vector)
        return products[-1]

    start = torch.randn(300, dtype=torch.float64)
    least, largest, residual = lanczos(product, start, lambda: None)
    assert len(products) < 60
    assert residual <= 1e-3
    assert -1e-12 < least + 1 < 1e-5, "an error is of the residual's square"
    assert largest == pytest.approx(4, abs=1e-5)
    monkeypatch.setattr(second, "STEPS", 5)
    least, _, residual = lanczos(product, start, lambda: None)
    assert residual > 1e-2, "so few steps are not enough, and it says so"
    assert -1 - 1e-12 < least <= -1 + residual


def test_many_unknowns_are_looked_at_by_lanczos(monkeypatch):
    problem, maps = two_maps(24)
    a, w = (matrix.to(maps.x) for matrix in (problem.family.readout, problem.family.block))
    trained = torch.cat((a.ravel(), w.ravel(), problem.last_maps.own[0]))
    exact = second.look(maps, "trained", trained, lambda: None)
    assert exact.unknowns == len(exact.eigenvalues) == 292
    monkeypatch.setattr(second, "EXACT", 200)
    found = second.look(maps, "trained", trained, lambda: None)
    assert found.eigenvalues == []
    assert 0 < found.residual <= 1e-3 * abs(exact.least)
    assert -1e-12 < found.least - exact.least <= 1e-5 * abs(exact.least)
    assert found.largest == pytest.approx(exact.largest, rel=1e-6)
    assert found.along == pytest.approx(exact.along, rel=1e-9)
    needed = second.bytes_of_maps(problem.family)
    assert needed > 8 * (second.STEPS * maps.size + maps.x.numel() + maps.v.numel())


@pytest.mark.slow
def test_a_saddle_is_strict_and_an_optimum_is_none():
    problem, maps = two_maps(7)
    saddle = maps.at(saddle_of(maps))
    assert saddle.gradient.norm() < 1e-10
    shares = torch.bincount(problem.train.labels) / len(problem.train)
    constant = -(shares * shares.log()).sum().item()
    assert saddle.point.value == pytest.approx(constant, abs=2e-3), "that of the best constant"
    _, along = saddle.escape()
    found = list(second_order(problem.last_maps, lambda: None))
    points = {point.place: point for point in found[:3]}
    assert list(points) == ["trained", "saddle", "optimum"]
    assert points["saddle"].along == pytest.approx(along, rel=1e-9)
    assert points["saddle"].least <= points["saddle"].along < -1e-3
    best = minimise(problem.last_maps.minimum.start.risk, problem.last_maps.own, 1e-18)
    assert points["optimum"].value == pytest.approx(best.value, abs=1e-12)
    assert points["optimum"].least >= -1e-9
    assert optimum_of(maps, problem.last_maps) is not None
    ends = {descent.start: descent.value - best.value for descent in found[3:]}
    assert list(ends) == ["trained", "saddle", "random"]
    assert all(-1e-12 <= end < 1e-2 for end in ends.values()), ends
    again = Analysis(L2, TOLERANCE, "", points=found[:3], descents=found[3:])
    assert Analysis.from_json(again.to_json().encode()) == again


def test_the_null_of_selectivity_is_the_mean_over_random_maps():
    """Compare it with maps drawn at random in whitened coordinates, and the floor with residuals
    that are dealt out to other images, of which (b) fits what it can first.
    """
    problem = problem_of(6, images=300)
    done = analysed(problem)
    summary = done.summary()
    x, end = problem.train.values.numpy(), 1 + problem.family.ends[-2]
    y = np.eye(CLASSES)[problem.train.labels.numpy()]

    def basis(columns: np.ndarray) -> np.ndarray:
        left, singular, _ = np.linalg.svd(columns, full_matrices=False)
        return left[:, singular > 1e-6 * singular[0]]

    def error(q: np.ndarray, target: np.ndarray) -> float:
        return ((target - q @ (q.T @ target)) ** 2).sum() / len(target)

    alone = basis(np.hstack((x[:, :1], x[:, end:])))
    rest = basis(x[:, :end] - alone @ (alone.T @ x[:, :end]))
    assert rest.shape[1] == 17, "two of the 8 relus before the last block are always off"
    assert summary["lost"] == 17 - 6
    draws = np.random.default_rng(0)
    whole = error(np.hstack((alone, rest)), y)
    random = []
    for _ in range(2000):
        q = np.linalg.qr(draws.normal(size=(rest.shape[1], 6)))[0]
        random.append(error(np.hstack((alone, rest @ q)), y) - whole)
    spread = np.std(random) / len(random) ** 0.5
    assert abs(np.mean(random) - summary["random_eps"]) < 4 * spread
    assert summary["rho"] == pytest.approx(summary["squared_eps"] / summary["random_eps"])

    reached = basis(np.hstack((np.ones((len(x), 1)), problem.last_maps.rows[0].values[:, 1:])))
    everything = basis(x)
    lost = basis(everything - reached @ (reached.T @ everything))
    left = y - reached @ (reached.T @ y)
    floor = []
    for _ in range(2000):
        dealt = left[draws.permutation(len(left))]
        dealt -= reached @ (reached.T @ dealt)
        share = ((lost.T @ dealt) ** 2).sum() / (dealt**2).sum()
        floor.append(share * summary["squared_last_maps"])
    assert abs(np.mean(floor) - summary["floor"]) < 4 * np.std(floor) / len(floor) ** 0.5


def test_one_gradient_bounds_what_a_block_adds_from_both_sides():
    problem = problem_of(14)
    done = analysed(problem)
    least, l2 = [], L2
    for end in problem.family.ends:
        start = torch.zeros(1 + end, CLASSES, dtype=torch.float64)
        least.append(minimise(Risk(problem.train, l2), start, 1e-18).value)
    solves = [solve for solve in done.solves if solve.quantity == PREFIX]
    assert solves[0].drop_at_least is None
    for before, after, solve in zip(least, least[1:], solves[1:], strict=False):
        assert 0 < solve.drop_at_least <= before - after <= solve.drop_at_most


def test_what_an_interruption_left_is_certified_as_without_one():
    whole, part = analysed(problem_of(14)), analysed(problem_of(14))
    part.solves = part.solves[:3]
    rest = list(problem_of(14).solves(part))
    assert [solve.group for solve in rest] == [solve.group for solve in whole.solves[3:]]
    assert rest[0].drop_at_least == pytest.approx(whole.solves[3].drop_at_least, rel=1e-3)


def test_other_penalties_are_solved_beside_it():
    problem = problem_of(14)
    done = analysed(problem)
    done.l2_path = [1e-2, L2]
    done.over_l2 = list(problem.over_l2(done, done.l2_path))
    before, bound = done.over(L2)
    assert before.value - bound.value == pytest.approx(done.summary()["eps"], abs=2 * TOLERANCE)
    before, bound = done.over(1e-2)
    assert before.value > bound.value > done.summary()["bound"]
    assert list(problem.over_l2(done, done.l2_path)) == []


def test_an_analysis_of_an_earlier_method_is_read_and_made_again():
    new = ("method", "points", "descents", "l2_path", "over_l2", "kept", "epoch")
    values = json.loads(
        Analysis(5e-4, 5e-4, "", solves=[Solve(PREFIX, "exact", "1.1", 3, 0.1)]).to_json()
    )
    old = Analysis.from_json(json.dumps({k: v for k, v in values.items() if k not in new}).encode())
    assert old.solves[0].value == 0.1
    assert not old.is_made_with(make_config())


def test_an_analysis_of_other_settings_is_made_again():
    made = Analysis.of(make_config(), "0" * 64)
    assert made.is_of("0" * 64, make_config())
    assert not made.is_of("1" * 64, make_config())
    for other in ("analysis.l2=1e-3", "analysis.tolerance=1e-5", "dataset.train_limit=50"):
        assert not made.is_of("0" * 64, make_config(other))


def test_the_penalty_of_the_network_is_that_of_the_smallest_map_with_its_logits():
    problem = problem_of(14)
    small = problem.smallest(problem.own)
    assert penalty(small, L2) < penalty(problem.own, L2)
    x = problem.train.values
    assert torch.allclose(x @ small, x @ problem.own, atol=1e-9)


def test_a_family_without_relations_is_left_as_it_is():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    family = Family(["input"], [5], torch.randn(3, 5).double(), torch.zeros(3).double())
    rows = [rows_of(torch.randn(90, 5).double(), labels) for _ in range(2)]
    problem = Problem("exact", family, *rows, 3, L2, TOLERANCE, lambda: None)
    assert torch.equal(problem.smallest(problem.own), problem.own)
