from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from resnests import build_model
from resnests.analysis.features import extractor
from resnests.analysis.quantities import Problem
from resnests.analysis.risk import Risk, minimise
from resnests.analysis.rows import Rows
from resnests.analysis.squares import least_squares, triangle_of
from resnests.runs.analysis import LAST_MAPS, PREFIX, TRAINED, Analysis

CPU = torch.device("cpu")


def rows_of(features: torch.Tensor, labels: torch.Tensor, file=None) -> Rows:
    rows = Rows.empty(len(labels), features.shape[1], CPU, file)
    rows.values[:, 1:] = features
    rows.labels[:] = labels
    return rows


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 300 images of three overlapping classes, with one of 8 features 0 and one repeated."""
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 8, dtype=torch.float64)
    x[:, 0] += labels
    x[:, 3] = x[:, 0] - x[:, 1]
    x[:, 5] = 0
    return x, labels


def newton(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> float:
    """Return the least penalised risk, by Newton's method with the whole Hessian."""
    n, d = x.shape
    y, h = np.eye(classes)[labels], np.zeros(d * classes)
    for _ in range(30):
        p = np.exp(x @ h.reshape(d, classes))
        p /= p.sum(1, keepdims=True)
        gradient = (x.T @ (p - y) / n).ravel() + l2 * h
        curvature = p[:, :, None] * (np.eye(classes) - p[:, None, :])
        hessian = np.einsum("ni,nj,nkl->ikjl", x, x, curvature).reshape(d * classes, -1) / n
        h = h - np.linalg.solve(hessian + l2 * np.eye(d * classes), gradient)
    assert np.abs(gradient).max() < 1e-12
    loss = -np.log(p[np.arange(n), labels]).mean()
    return loss + 0.5 * l2 * (h**2).sum()


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-6])
def test_minima_and_certificates_hold_against_newtons_method(problem, l2):
    x, labels = problem
    rows = rows_of(x, labels)
    start = torch.zeros(9, 3, dtype=torch.float64)
    least = newton(rows.values.numpy(), labels.numpy(), 3, l2)
    for tolerance in (1e-2, 1e-5, 1e-9):
        found = minimise(Risk(rows, l2), start, tolerance)
        assert found.reached
        assert found.gap <= tolerance
        assert -1e-12 <= found.value - least <= found.gap


def test_a_solve_that_does_not_reach_its_tolerance_says_so(problem):
    rows = rows_of(*problem)
    start = torch.zeros(9, 3, dtype=torch.float64)
    found = minimise(Risk(rows, 1e-6), start, 1e-12, limit=3)
    assert not found.reached
    assert found.gap > 1e-12


def test_what_all_classes_share_slows_no_solve(problem):
    """The start of (b) is the network's own map, whose classes have a mean: along it the Hessian is
    the penalty alone, and a solve once ended after 2,000 passes without a result.
    """
    rows, test = rows_of(*problem), rows_of(*problem)
    rows.values[:, 1:] *= 30
    start = torch.randn(9, 3, dtype=torch.float64)
    start -= start.mean(1, keepdim=True)
    plain = minimise(Risk(rows, 1e-4), start, 1e-5, test)
    shared = minimise(Risk(rows, 1e-4), start + 5, 1e-5, test)
    assert shared.reached
    assert shared.evaluations <= 2 * plain.evaluations
    assert shared.weights.sum(1).abs().max() < 1e-9


def test_a_certified_risk_is_a_result_though_its_test_loss_has_not_settled(problem):
    rows = rows_of(*problem)
    start = torch.zeros(9, 3, dtype=torch.float64)
    found = minimise(Risk(rows, 1e-6), start, 1e-2, rows_of(*problem), polish=0)
    assert found.reached
    assert found.error > 5e-4, "which the tables show by fewer digits"


def test_least_squares_of_every_prefix_at_once_with_dependent_features(problem):
    x, labels = problem
    rows = rows_of(x, labels)
    ends = [1, 4, 7, 9]
    y = torch.nn.functional.one_hot(labels, 3).double()
    for end, found in zip(ends, least_squares(triangle_of(rows, 3), ends, 300, 3), strict=True):
        part = rows.values[:, :end]
        expected = torch.linalg.lstsq(part, y, driver="gelsd").solution
        error = (part @ expected - y).square().sum(1).mean()
        assert found.value == pytest.approx(error.item(), abs=1e-12)
        assert (part @ found.weights - y).square().sum(1).mean().item() == pytest.approx(
            found.value, abs=1e-12
        )
        assert found.rank == torch.linalg.matrix_rank(part)


def test_rows_in_a_file_give_what_rows_in_memory_give(problem, tmp_path, monkeypatch):
    x, labels = problem
    x = x.repeat(30, 1)
    labels = labels.repeat(30)
    monkeypatch.setattr("resnests.analysis.rows.PART", 1)  # the smallest parts: 256 rows
    held, mapped = rows_of(x, labels), rows_of(x, labels, tmp_path / "features.tmp")
    assert not any(tmp_path.iterdir()), "nothing is left of a process that is killed"
    for rows in (held, mapped):
        rows.standardise(*rows.moments())
    assert torch.equal(held.values, mapped.values)
    assert (held.values[:, 1:].mean(0).abs() < 1e-12).all()
    assert len(list(held.parts())) == 36
    gram = held.values.T @ held.values
    r_factor = triangle_of(mapped, 3)[:9, :9]
    assert torch.allclose(r_factor.T @ r_factor, gram, atol=1e-8)


@pytest.mark.parametrize("head", ["resnest", "bn_resnest", "a_resnest"])
def test_the_order_that_theory_gives_and_prefixes_that_do_not_rise(head):
    torch.manual_seed(3)
    model = build_model(((1, 2), (4, 6)), head, 5).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
    images = torch.randn(120, 3, 8, 8, dtype=torch.float64)
    labels = (images[:, 0].mean((1, 2)) * 8 + 2.5).long().clamp(0, 4)
    known = extractor(model)
    with torch.no_grad():
        features, logits = known.read(images)
    rows = [rows_of(features["exact"], labels) for _ in range(2)]
    tolerance = 1e-7
    whole = Problem("exact", known.families["exact"], *rows, 5, 1e-2, tolerance, lambda: None)
    done = Analysis(1e-2, tolerance, "")
    done.coupled = known.families["exact"].coupled
    done.solves = list(whole.solves(done))
    own = done.solves[0]
    assert own.quantity == TRAINED
    assert own.train_loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    curve = [s.value for s in done.solves if s.quantity == PREFIX]
    squares = [s.train_squared for s in done.solves if s.quantity == PREFIX]
    assert all(later <= earlier + tolerance for earlier, later in pairwise(curve))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(squares))
    summary = done.summary()
    assert summary["slack"] > 0
    if head == "a_resnest":
        assert summary["eps"] == 0
    else:
        (last,) = (s for s in done.solves if s.quantity == LAST_MAPS)
        assert last.features == last.rank <= 6 + 9 * 6, "x_{L-1}, nine window means of v_L"
        assert last.rank < 6 + 9 * 6, "of which some never change on so few pixels"
        assert summary["eps"] > 1e-4, "a narrow network of three blocks has a gap"
        assert summary["squared_eps"] > 1e-4
    again = Analysis.from_json(done.to_json().encode())
    assert again == done
    assert list(whole.solves(again)) == [], "nothing is solved twice"
