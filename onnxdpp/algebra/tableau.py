"""Least-error selection of neurons: by how much the refit errs without each, and by how much less with it.

A consumer's refit onto the neurons S leaves ``E(S) = E‖Y‖² - tr(C_Sᵀ G_SS⁻¹ C_S)``, with G and C centred (with an
intercept) and a ridge towards the original weights in both. The *sweep operator* keeps everything about S at hand in
one symmetric tableau per consumer,

    T_SS = -G_SS⁻¹    T_cS = G_cS G_SS⁻¹    T_cc = G_cc - G_cS G_SS⁻¹ G_Sc    B_S = G_SS⁻¹ C_S    B_c = C_c - G_cS B_S

so that dropping a neuron b of S costs ``tr(B_bᵀ (-T_bb)⁻¹ B_b)``, taking in one from outside gains
``tr(B_bᵀ T_bb⁻¹ B_b)``, and either is a rank-|b| update. A neuron is a block of inputs; several consumers add up.

- ``obs``: backward, from all neurons, dropping the cheapest (optimal brain surgeon, for neurons).
- ``omp``: forward, from none, taking in what gains most (orthogonal matching pursuit, for all outputs together).
- ``swaps``: from any S, drop the cheapest and take in the best instead, while the error falls.

References
----------
B. Hassibi, D. G. Stork: Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992.
E. Kurtic et al.: ZipLM: Inference-Aware Structured Pruning of Language Models, NeurIPS 2023, arXiv:2302.04089.
J. H. Goodnight: A Tutorial on the SWEEP Operator, The American Statistician 33 (1979).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dgemm, dger

from onnxdpp.algebra.moments import Matrix
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import ATTEMPTS, refit_neurons, ridge, squared_error

Indices = NDArray[np.intp]

NARROW = 64
"""Neurons of a layer that is refitted at all sizes for its error curve."""
GRID = 20
"""At how many sizes a wider one is."""
SHRINK = 0.8  # of a tableau's neurons are left when it is made smaller
_TIE = 1e-9
_ROUNDING = 1e-14  # of the power of all outputs
_LEAST_PIVOT = 1e-12  # of a variance, relative to what it was: below, an input is spanned by the others


class Tableau:
    """What neurons add to the refit of all consumers, for a set S that changes a neuron at a time.

    Parameters
    ----------
    observed : sequence of Inputs
        One for each value that consumers read.
    n : int
        Neurons.
    form : {"affine", "linear"}
        Of the refit: with an intercept or without.
    inside : integer array
        The neurons of S at first. Inputs that always stay are in it anyway.
    sections : (n,) integer array, optional
        The last neuron of a section is never dropped.

    Attributes
    ----------
    inside : (n,) boolean array
        S.
    error : float
        E(S), over all consumers, the ridge's part included, up to rounding.
    """

    def __init__(
        self, observed: Sequence[Inputs], n: int, form: str, inside: Indices, *, sections: Indices | None = None
    ) -> None:
        self._parts = [_Part(part, n, form, inside) for part in observed]
        self._sections = np.zeros(n, np.intp) if sections is None else sections
        self.inside = np.isin(np.arange(n), inside)
        self.error = sum(part.error for part in self._parts)
        self._rounding = _ROUNDING * sum(part.power for part in self._parts)

    def costs(self) -> Matrix:
        """(n,): by how much the error grows when a neuron of S is dropped; infinite outside and where it must stay."""
        total = self._scores(inside=True)
        counts = np.bincount(self._sections[self.inside], minlength=int(self._sections.max()) + 1)
        total[~self.inside | (counts[self._sections] <= 1)] = np.inf
        return total

    def gains(self) -> Matrix:
        """(n,): by how much the error falls when a neuron is taken in; minus infinity inside."""
        total = self._scores(inside=False)
        total[self.inside] = -np.inf
        return total

    def drop(self, neuron: int, cost: float) -> None:
        """Take a neuron out of S."""
        for part in self._parts:
            part.sweep(neuron, enter=False)
        self.inside[neuron] = False
        self.error += cost

    def take(self, neuron: int, gain: float) -> None:
        """Take a neuron into S."""
        for part in self._parts:
            part.sweep(neuron, enter=True)
        self.inside[neuron] = True
        self.error -= gain

    def forget_outside(self) -> None:
        """Let what is outside of S stay there: what is left is cheaper to work on."""
        for part in self._parts:
            part.forget_outside()

    def tie(self, score: float) -> float:
        """By how much costs, or gains, may differ from the best one and yet be equal but for rounding."""
        return max(_TIE * max(self.error, score), self._rounding)

    def _scores(self, *, inside: bool) -> Matrix:
        total = np.zeros(len(self.inside))
        for part in self._parts:
            total += part.scores(inside=inside)
        return total


class _Part:
    """The tableau of one value."""

    def __init__(self, observed: Inputs, n: int, form: str, inside: Indices) -> None:
        moments = observed.moments
        centred = form == "affine"
        gram = np.array(moments.covariance if centred else moments.gram, order="F")
        cross = np.array(moments.cross_covariance if centred else moments.cross, order="F")
        count = len(gram)
        strength = ridge(moments, count, form) * (float(np.trace(gram)) / count or 1.0)
        gram[np.diag_indices(count)] += strength
        cross += strength * moments.weights
        power = moments.variance_y if centred else moments.power_y
        self.power = float(power.sum())
        self.error = self.power + strength * float((moments.weights**2).sum())
        self._floor = _LEAST_PIVOT * np.diagonal(gram).copy()
        self._table, self._cross = gram, cross
        self._n = n
        self._index(observed.neurons)
        self._sign = np.ones(count)  # -1 for inputs in S
        start = observed.kept(inside)
        if len(start):
            self._start(start, strength, moments.weights)

    def _index(self, neurons: Indices) -> None:
        """Find the inputs of each neuron."""
        self._neurons = neurons
        order = np.argsort(neurons, kind="stable")
        bounds = np.searchsorted(neurons[order], np.arange(self._n + 1))
        self._blocks = [order[low:high] for low, high in pairwise(bounds.tolist())]
        self._single = bool((neurons >= 0).all()) and len(np.unique(neurons)) == len(neurons)

    def forget_outside(self) -> None:
        """Keep the inputs in S only: the others never come back."""
        inside = np.flatnonzero(self._sign < 0)
        self._table = np.array(self._table[np.ix_(inside, inside)], order="F")
        self._cross = np.array(self._cross[inside], order="F")
        self._floor, self._sign = self._floor[inside], self._sign[inside]
        self._index(self._neurons[inside])

    def _start(self, inside: Indices, strength: float, weights: Matrix) -> None:
        """Sweep many inputs in at once."""
        table, cross = self._table, self._cross
        outside = np.setdiff1d(np.arange(len(table)), inside)
        lower = self._factor(inside, strength, weights)
        solved = np.asarray(cho_solve(lower, cross[inside], check_finite=False))
        self.error -= float(np.einsum("ij,ij->", solved, cross[inside]))
        inverse = np.asarray(cho_solve(lower, np.eye(len(inside)), check_finite=False))
        inverse = (inverse + inverse.T) / 2
        if len(outside):
            between = table[np.ix_(outside, inside)]
            ratio = between @ inverse
            table[np.ix_(outside, outside)] -= ratio @ between.T
            table[np.ix_(outside, inside)] = ratio
            table[np.ix_(inside, outside)] = ratio.T
            cross[outside] -= between @ solved
        table[np.ix_(inside, inside)] = -inverse
        cross[inside] = solved
        self._sign[inside] = -1

    def _factor(self, inside: Indices, strength: float, weights: Matrix) -> tuple[Matrix, bool]:
        """The Cholesky factor; where rounding made the Gram indefinite by more than the ridge, with a larger one."""
        for attempt in range(ATTEMPTS):
            try:
                return cho_factor(self._table[np.ix_(inside, inside)], lower=True, check_finite=False)
            except LinAlgError:
                more = 9 * 10.0**attempt * strength  # ten times as much in all
                self._table[np.diag_indices(len(self._table))] += more
                self._cross += more * weights
                self.error += more * float((weights**2).sum())
        raise ValueError(f"a ({len(inside)}, {len(inside)}) Gram is not positive semidefinite, or not finite")

    def scores(self, *, inside: bool) -> Matrix:
        """(n,): what dropping or taking each neuron does to the error; 0 for the others, and for those not here."""
        wanted = -1.0 if inside else 1.0
        if self._single:
            pivots = wanted * np.diagonal(self._table)
            sound = (self._sign == wanted) & (pivots > (0 if inside else self._floor))
            power = np.einsum("ij,ij->i", self._cross, self._cross)
            result: Matrix = np.zeros(self._n)
            result[self._neurons] = np.divide(power, pivots, out=np.zeros(len(power)), where=sound)
            return result
        result = np.zeros(self._n)
        sizes = np.array([len(block) for block in self._blocks])
        for size in np.unique(sizes[sizes > 0]):
            chosen = [i for i in np.flatnonzero(sizes == size) if self._sign[self._blocks[i][0]] == wanted]
            if not chosen:
                continue
            where = np.stack([self._blocks[i] for i in chosen])
            pivots = wanted * self._table[where[:, :, None], where[:, None, :]]
            rows = self._cross[where]
            if not inside:
                pivots[:, np.arange(size), np.arange(size)] += self._floor[where]
            solved = np.linalg.solve(pivots, rows)
            result[chosen] = np.maximum(np.einsum("nbm,nbm->n", rows, solved), 0)
        return result

    def sweep(self, neuron: int, *, enter: bool) -> None:
        """Sweep the inputs of a neuron in or out."""
        block = self._blocks[neuron]
        if not len(block):
            return
        table, cross = self._table, self._cross
        columns = table[:, block].copy()
        rows = cross[block].copy()
        pivot = columns[block]
        if enter:
            pivot = pivot + np.diag(self._floor[block])
        inverse = np.linalg.inv((pivot + pivot.T) / 2)
        scaled = columns @ inverse
        if len(block) == 1:
            self._table = dger(-1.0, scaled[:, 0], columns[:, 0], a=table, overwrite_a=1)
            self._cross = dger(-1.0, scaled[:, 0], rows[0], a=cross, overwrite_a=1)
        else:
            self._table = dgemm(-1.0, scaled, columns, beta=1.0, c=table, trans_b=1, overwrite_c=1)
            self._cross = dgemm(-1.0, scaled, rows, beta=1.0, c=cross, overwrite_c=1)
        sign = 1.0 if enter else -1.0
        self._table[:, block] = sign * scaled
        self._table[block] = sign * scaled.T
        self._table[np.ix_(block, block)] = -inverse
        self._cross[block] = sign * (inverse @ rows)
        self._sign[block] = -1.0 if enter else 1.0


def eliminate(
    observed: Sequence[Inputs], n: int, form: str, *, least: int = 1, sections: Indices | None = None
) -> tuple[Indices, Matrix]:
    """Drop neurons one after the other, always the cheapest, until `least` are left (``obs``).

    Parameters
    ----------
    observed, n, form, sections
        As for `Tableau`.
    least : int
        How many are left at the end, at least one of each section.

    Returns
    -------
    (n,) integer array, (n + 1,) float64 array
        All neurons, in the order in which they would be kept: the last that was dropped before the one dropped before
        it; those never dropped come first, ascending. And the error with the first k of them, for k = 0 to n; NaN for
        k below the number left.
    """
    table = Tableau(observed, n, form, np.arange(n), sections=sections)
    curve = np.full(n + 1, np.nan)
    curve[n] = table.error
    dropped: list[int] = []
    size = n
    while n - len(dropped) > least:
        if n - len(dropped) < SHRINK * size:
            table.forget_outside()
            size = n - len(dropped)
        costs = table.costs()
        cheapest = float(costs.min())
        if not np.isfinite(cheapest):
            break
        # Equal costs are told apart by number, not by their last bits: the later neuron goes.
        tied = np.flatnonzero(costs <= cheapest + table.tie(cheapest))
        neuron = int(tied[-1])
        table.drop(neuron, float(costs[neuron]))
        dropped.append(neuron)
        curve[n - len(dropped)] = table.error
    kept = np.flatnonzero(table.inside)
    return np.concatenate([kept, np.array(dropped[::-1], np.intp)]).astype(np.intp), np.maximum(curve, 0)


def error_curve(
    observed: Sequence[Inputs], n: int, form: str, *, least: int = 1, sections: Indices | None = None
) -> Matrix:
    """(n + 1,): the error of the refit with the best k neurons that backward elimination finds; it never grows with k.

    Elimination tells it, for the ridge that all n neurons have. Where rows are so few that fewer neurons have a weaker
    one, layers are refitted: at every k if there are no more than `NARROW` neurons, else at `GRID` sizes, and between
    these by interpolation of the logarithm. Below `least`, and where elimination ends, as with the fewest left.
    """
    order, known = eliminate(observed, n, form, least=least, sections=sections)
    fewest = int(np.flatnonzero(~np.isnan(known))[0])
    if any(ridge(part.moments, len(part.neurons), form) > ridge(part.moments, 1, form) for part in observed):
        sizes = np.arange(fewest, n + 1) if n <= NARROW else _spread(fewest, n)
        errors = np.array([_error(observed, order[:k], form) for k in sizes])
    else:
        sizes = np.arange(fewest, n + 1)
        errors = known[fewest:]
    # More neurons can do what fewer do, whatever their ridge makes of them.
    errors = np.minimum.accumulate(errors)
    least_positive = min((error for error in errors if error > 0), default=1.0)
    curve: Matrix = np.exp(np.interp(np.arange(n + 1), sizes, np.log(np.maximum(errors, least_positive))))
    curve[sizes] = errors
    curve[:fewest] = errors[0]
    return curve


def _spread(fewest: int, n: int) -> Indices:
    """About `GRID` numbers from the fewest to n, close to each other where errors change most: at both ends."""
    low = np.linspace(np.sqrt(fewest), np.sqrt(n), 2 * GRID // 3) ** 2
    high = n - np.geomspace(1, max(1, (n - fewest) / 8), GRID // 3)
    return np.unique(np.round([*low, *high]).astype(np.intp))


def _error(observed: Sequence[Inputs], neurons: Indices, form: str) -> float:
    """Of the refit onto some neurons, all consumers together."""
    fits = ((part.moments, refit_neurons(part.moments, part.kept(np.sort(neurons)), form)) for part in observed)
    return sum(float(squared_error(moments, fit).sum()) for moments, fit in fits)


def pursue(observed: Sequence[Inputs], n: int, form: str, *, most: int) -> tuple[Indices, Matrix]:
    """Take in neurons one after the other, always what gains most, until there are `most` (``omp``).

    Returns
    -------
    (most,) integer array, (most + 1,) float64 array
        In the order of choice; the error with the first k of them.
    """
    table = Tableau(observed, n, form, np.empty(0, np.intp))
    curve = [table.error]
    chosen: list[int] = []
    for _ in range(most):
        gains = table.gains()
        best = float(gains.max())
        tied = np.flatnonzero(gains >= best - table.tie(best))
        neuron = int(tied[0])
        table.take(neuron, float(gains[neuron]))
        chosen.append(neuron)
        curve.append(table.error)
    return np.array(chosen, np.intp), np.maximum(np.array(curve), 0)


def swapped(
    observed: Sequence[Inputs], n: int, form: str, keep: Indices, *, most: int, sections: Indices | None = None
) -> Indices:
    """Replace neurons of `keep` by others, one pair at a time, while the error falls; at most `most` pairs.

    Returns
    -------
    (k,) sorted integer array
    """
    if len(keep) == n:
        return np.sort(keep)
    table = Tableau(observed, n, form, keep, sections=sections)
    for _ in range(most):
        costs = table.costs()
        worst = int(costs.argmin())
        if not np.isfinite(costs[worst]):
            break
        cost = float(costs[worst])
        table.drop(worst, cost)
        gains = table.gains()
        best = int(gains.argmax())
        if gains[best] <= cost * (1 + 1e-6) or best == worst:
            table.take(worst, cost)
            break
        table.take(best, float(gains[best]))
    return np.flatnonzero(table.inside)
