"""Look at the second order over the last two maps, once the features are fixed.

F(A, W, c) is the penalised risk of the logits A (x_{L-1} + W v_L) + c, with A = W_{L+1} (K, M),
W = W_L (M, K_L) and a bias c (K).

F is convex in (A, B) with B = A W, but not in (A, W). Where M >= K every critical point that is no
global minimum is a strict saddle (docs/theory.md), and here is looked at how strict: at the trained
point, at a saddle that is constructed, at an optimum, and by descents towards it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resnests.analysis.features import Family
from resnests.analysis.quantities import LastMaps
from resnests.analysis.risk import Point, Risk, minimise
from resnests.runs.analysis import Descent, SecondOrder

EXACT = 2000  # unknowns up to which the whole Hessian is made
STEPS = 100  # of Lanczos beyond that, at most; each keeps a vector
EVALUATIONS = 50  # of a descent at least
WORK = 2 * 10**10  # multiplications that a descent may do, in at most 1000 evaluations
TIGHT = 1e-20  # nats above the least value that leave no gradient for the Hessian to feel


@dataclass
class TwoMaps:
    """Holds F as a function of one vector; x (m, M) and v (m, K_L) are x_{L-1} and v_L in the
    columns of the risk's rows.
    """

    risk: Risk
    x: Tensor
    v: Tensor
    classes: int

    @property
    def size(self) -> int:
        """Return the number of unknowns."""
        width, kept = self.x.shape[1], self.v.shape[1]
        return self.classes * width + width * kept + self.classes

    @property
    def work(self) -> int:
        """Return how many multiplications an evaluation takes."""
        features, width = self.x.shape
        products = self.classes * self.risk.rows.values.numel() + features * width * self.v.shape[1]
        return 2 * products

    def parts(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return A, W and c of `vector`."""
        width, kept, k = self.x.shape[1], self.v.shape[1], self.classes
        a, w, c = vector.split((k * width, width * kept, k))
        return a.view(k, width), w.view(width, kept), c

    def at(self, vector: Tensor) -> Place:
        """Evaluate F and what its derivatives need."""
        a, w, c = self.parts(vector)
        reached = self.x + self.v @ w.T
        return Place(self, a, w, reached, self.risk.at(torch.cat((c[None], reached @ a.T))))


@dataclass
class Place:
    """Holds F around a point, with derivatives in closed form."""

    maps: TwoMaps
    a: Tensor
    w: Tensor
    reached: Tensor  # x + v W', (m, M)
    point: Point  # of the convex risk

    @property
    def gradient(self) -> Tensor:
        """Return the gradient as one vector."""
        c, d = self.point.gradient[0], self.point.gradient[1:]
        return torch.cat(((d.T @ self.reached).ravel(), (self.a.T @ d.T @ self.maps.v).ravel(), c))

    def curve(self, direction: Tensor) -> Tensor:
        """Return the Hessian times `direction`."""
        v, d = self.maps.v, self.point.gradient[1:]
        da, dw, dc = self.maps.parts(direction)
        turned = v @ dw.T
        change = self.reached @ da.T + turned @ self.a.T
        curved = self.point.curve(torch.cat((dc[None], change)))
        c, e = curved[0], curved[1:]
        to_a = e.T @ self.reached + d.T @ turned
        to_w = da.T @ d.T @ v + self.a.T @ e.T @ v
        return torch.cat((to_a.ravel(), to_w.ravel(), c))

    def escape(self) -> tuple[Tensor, float] | None:
        """Return the direction that the theorem gives, normed, and the second variation along it;
        None where W_{L+1} has no kernel.

        With z in that kernel and (a, s, b) the top singular triple of D = dF/dB, F along
        (alpha a z', beta z b') curves as alpha^2 h + 2 alpha beta s: negative for some, as s > 0.
        """
        classes, width = self.a.shape
        _, values, vectors = torch.linalg.svd(self.a)
        if width <= classes and values[-1] > 1e-12:
            return None
        z = vectors[-1]
        left, singular, right = torch.linalg.svd(self.point.gradient[1:].T @ self.maps.v)
        s = singular[0]
        zero_a, zero_w = torch.zeros_like(self.a), torch.zeros_like(self.w)
        zero_c = self.a.new_zeros(classes)
        to_a = torch.cat((torch.outer(left[:, 0], z).ravel(), zero_w.ravel(), zero_c))
        to_w = torch.cat((zero_a.ravel(), torch.outer(z, right[0]).ravel(), zero_c))
        h = to_a @ self.curve(to_a)
        values, vectors = torch.linalg.eigh(torch.stack((h, s, s, 0 * s)).view(2, 2))
        return vectors[0, 0] * to_a + vectors[1, 0] * to_w, values[0].item()


def second_order(
    last: LastMaps, should_stop: Callable[[], None]
) -> Iterator[SecondOrder | Descent]:
    """Yield what second order says, point by point, and where descents come to."""
    problem, family = last.problem, last.problem.family
    assert family.block is not None
    assert family.readout is not None
    units = problem.std[-family.sizes[-1] :]  # so that W is the network's own
    maps = TwoMaps(Risk(last.rows[0], problem.l2), last.x, last.v * units, problem.classes)
    a, w = (matrix.to(last.x) for matrix in (family.readout, family.block))
    trained = torch.cat((a.ravel(), w.ravel(), last.own[0]))
    starts = {"trained": trained}
    yield look(maps, "trained", trained, should_stop)
    saddle = saddle_of(maps)
    if saddle is not None:
        yield look(maps, "saddle", saddle, should_stop)
        escape = maps.at(saddle).escape()
        starts |= {"saddle": saddle + escape[0]} if escape else {}
    optimum = optimum_of(maps, last)
    if optimum is not None:
        yield look(maps, "optimum", optimum, should_stop)
    a, w, c = maps.parts(2 * drawn(maps, torch.rand) - 1)  # below: as PyTorch draws linear maps
    scaled = (a / a.shape[1] ** 0.5, w / w.shape[1] ** 0.5, 0 * c)
    starts["random"] = torch.cat([part.ravel() for part in scaled])
    for name, start in starts.items():
        yield descend(maps, name, start, should_stop)


def bytes_of_maps(family: Family) -> int:
    """Return what the second order over the last two maps takes at once: R, the basis in which
    they are reached and the maps in it, and the vectors of Lanczos.
    """
    if family.before is None:
        return 0
    width, kept, features = len(family.before), family.sizes[-1], sum(family.sizes)
    reached = min(width + kept, features)
    classes = 0 if family.readout is None else len(family.readout)
    unknowns = classes * width + width * kept + classes
    vectors = STEPS * unknowns if unknowns > EXACT else unknowns**2
    return 8 * (features**2 + features * reached + 2 * reached * (width + kept) + vectors)


def drawn(maps: TwoMaps, draw: Callable[..., Tensor]) -> Tensor:
    """Return a random vector, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return draw(maps.size, generator=generator, dtype=torch.float64).to(maps.x)


def saddle_of(maps: TwoMaps) -> Tensor | None:
    """Return the critical point with W_{L+1} = 0, whose risk is the best constant's; None where
    the last block has too few features for one.

    Its W makes x_{L-1} + W v_L uncorrelated with the errors G of the best constant: W v'G = -x'G.
    """
    zero = maps.x.new_zeros((1, maps.classes))
    c = minimise(maps.risk, zero, TIGHT).weights[0]
    flat = torch.cat((c[None], maps.x.new_zeros((len(maps.x), maps.classes))))
    errors = maps.risk.at(flat).gradient[1:]
    w = -(maps.x.T @ errors) @ torch.linalg.pinv(maps.v.T @ errors, rtol=1e-10)
    vector = torch.cat((maps.x.new_zeros(maps.classes * len(w)), w.ravel(), c))
    left = maps.at(vector).gradient.norm().item()
    return vector if left <= 1e-8 * max(1.0, w.norm().item()) else None


def optimum_of(maps: TwoMaps, last: LastMaps) -> Tensor | None:
    """Return two maps that make the minimiser of (b); None where A W = B has no solution."""
    weights = last.minimum.weights
    if maps.size <= EXACT:
        weights = minimise(maps.risk, weights, TIGHT, limit=500).weights
    both = torch.cat((maps.x, maps.v), 1)
    found = (torch.linalg.pinv(both, rtol=1e-10) @ weights[1:]).T
    a, b = found.split((maps.x.shape[1], maps.v.shape[1]), 1)
    w = torch.linalg.pinv(a, rtol=1e-10) @ b
    if (a @ w - b).norm() > 1e-8 * b.norm():
        return None
    return torch.cat((a.ravel(), w.ravel(), weights[0]))


def look(maps: TwoMaps, name: str, vector: Tensor, should_stop: Callable[[], None]) -> SecondOrder:
    """Measure value, gradient and Hessian at `vector`."""
    place = maps.at(vector)
    result = SecondOrder(name, maps.size, place.point.value, place.gradient.norm().item(), 0, 0)
    if maps.size <= EXACT:
        columns = torch.eye(maps.size, dtype=vector.dtype, device=vector.device)
        rows = []
        for column in columns:
            should_stop()
            rows.append(place.curve(column))
        hessian = torch.stack(rows)
        values = torch.linalg.eigvalsh((hessian + hessian.T) / 2).tolist()
        result.eigenvalues = [float(f"{value:.4g}") for value in values]
        result.least, result.largest = values[0], values[-1]
    else:
        result.least, result.largest, result.residual = lanczos(
            place.curve, drawn(maps, torch.randn), should_stop
        )
    escape = place.escape() if name != "optimum" else None
    result.along = escape[1] if escape else None
    return result


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, should_stop: Callable[[], None]
) -> tuple[float, float, float]:
    """Return the least and the largest Ritz value, and |Hv - least v|, of STEPS steps, or of those
    after which that is a thousandth of the least or a millionth of the largest.

    Every vector is made orthogonal to all before it, twice: rounding would bring back copies of
    eigenvalues that are found. Own code, as ARPACK returns nothing where it does not converge.
    """
    vector, most, steps = start, min(STEPS, len(start)), 0
    basis, small = start.new_zeros((most, len(start))), start.new_zeros((most, most))
    for i in range(most):
        should_stop()
        before, known = vector.norm(), basis[:i]
        for _ in range(2):
            vector = vector - known.T @ (known @ vector)
        if vector.norm() <= 1e-10 * before:  # all that the start has parts of is found
            break
        basis[i], steps = vector / vector.norm(), i + 1
        vector = product(basis[i])
        small[i, :steps] = small[:steps, i] = basis[:steps] @ vector
        if steps % 10 == 0 and steps < most:
            least, largest, residual = ritz(product, basis[:steps], small[:steps, :steps])
            if residual <= max(1e-3 * abs(least), 1e-6 * largest):
                return least, largest, residual
    return ritz(product, basis[:steps], small[:steps, :steps])


def ritz(
    product: Callable[[Tensor], Tensor], basis: Tensor, small: Tensor
) -> tuple[float, float, float]:
    """Return the least and the largest Ritz value of an orthonormal basis, in which H is `small`,
    and |Hv - least v|.

    That takes a product more, but half the memory of keeping what H makes of each vector.
    """
    values, vectors = torch.linalg.eigh(small)
    least = basis.T @ vectors[:, 0]
    residual = (product(least) - values[0] * least).norm().item()
    return values[0].item(), values[-1].item(), residual


def descend(maps: TwoMaps, name: str, start: Tensor, should_stop: Callable[[], None]) -> Descent:
    """Go down from `start` by L-BFGS."""
    best, used = float("inf"), 0
    vector = start.clone()

    def evaluate() -> float:
        nonlocal best, used
        should_stop()
        place = maps.at(vector.detach())
        best, used = min(best, place.point.value), used + 1
        vector.grad = place.gradient
        return place.point.value

    limit = max(EVALUATIONS, min(1000, WORK // maps.work))
    torch.optim.LBFGS(
        [vector],
        max_iter=limit,
        max_eval=limit,
        tolerance_grad=1e-9,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    ).step(evaluate)
    return Descent(name, best, used)
