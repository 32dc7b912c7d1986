"""The routes of an exact k-DPP draw, and which one to take.

=========  ==================================================================  ==========================
route      work                                                                pays
=========  ==================================================================  ==========================
cholesky   n³/3 for a factor of ``I + z L'``, about n t² for a proposal        nearly always
spectral   an eigendecomposition, 16 to 20 such factors; then no proposal is   many draws of which few are
           wasted, and a draw costs n t²                                       accepted, t close to k
low rank   n r² for a factor of rank r, once; a draw costs n t²                r <= n / 8
=========  ==================================================================  ==========================

t is the size of the core (`mixture`), which is what makes all three cheap: on the edge kernels of image classifiers
t is a small part of k. The acceptance of a proposal is predicted from mean and variance of t, which the
factor yields in O(n²), and so is what a better tilt would save.
"""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra import cholesky, spectral
from onnxdpp.algebra.mixture import Mixture

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)

_LOW_RANK = 8  # of n items at most n / 8 columns
_EIGH = 16.0  # an eigendecomposition in units of a Cholesky factorisation, at the least
_NEWTON_STEPS = 8
_ALL = 64  # so few items that all their eigenvalues cost nothing
_PATIENCE = 30  # rejected proposals, in units of what was predicted, before the prediction is given up


@dataclass(frozen=True)
class Proposals:
    """The DPP of ``z L'`` for one z, ready to be drawn from."""

    factor: Array
    tilt: float
    mean: float
    variance: float
    acceptance: float

    @classmethod
    def of(cls, likelihood: Array, mixture: Mixture, tilt: float, rng: np.random.Generator) -> "Proposals":
        """Factorise ``I + z L'`` and predict how its draws fare."""
        factor = cholesky.factorise(likelihood, tilt)
        mean, variance = cholesky.size_moments(factor, rng)
        acceptance = max(mixture.expected_acceptance(tilt, mean, variance), 1e-12)
        return cls(factor, tilt, mean, variance, acceptance)

    def seconds(self) -> float:
        """One proposal, roughly: Python's overhead by blocks and items, flops by n t²."""
        n, t = len(self.factor), self.mean
        return 6e-5 * n / 32 + 2.5e-5 * t + 1.5e-10 * n * t * t


def seconds_to_factorise(n: int) -> float:
    """One Cholesky factorisation, roughly."""
    return 1e-4 + n**3 / 3 / 3e10


def draw_by_cholesky(
    likelihood: Array,
    mixture: Mixture,
    rng: np.random.Generator,
    draws: int,
    tilt: float | None = None,
    *,
    may_give_up: bool = False,
) -> tuple[Indices | None, float]:
    """Draw by coin flips along a Cholesky factor, accepted by size.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``; its lower triangle is read.
    mixture : Mixture
    rng : numpy.random.Generator
    draws : int
    tilt : float, optional
        The z to begin with, from a kernel like this one.
    may_give_up : bool
        Whether to return None where an eigendecomposition is predicted to be faster.

    Returns
    -------
    kept : (draws, k) intp array, or None
    tilt : float
        The z to begin with on the next kernel like this one.

    Raises
    ------
    numpy.linalg.LinAlgError
        If ``L'`` is not positive semidefinite.
    """
    proposals = tuned_proposals(likelihood, mixture, rng, draws, tilt)
    wasted = draws * proposals.seconds() * (1.0 / proposals.acceptance - 1.0)
    _log.debug(
        "k-DPP of %d of %d by Cholesky: z %.4g, core %.1f, acceptance %.2g predicted",
        mixture.k, mixture.n, proposals.tilt, proposals.mean, proposals.acceptance,
    )  # fmt: skip
    patience = _PATIENCE * draws / proposals.acceptance
    accept = mixture.acceptances(proposals.tilt)
    kept = np.empty((draws, mixture.k), dtype=np.intp)
    for draw in range(draws):
        core = None
        while core is None:
            patience -= 1
            if may_give_up and (wasted > _EIGH * seconds_to_factorise(mixture.n) or patience < 0):
                return None, proposals.tilt
            core = cholesky.sample_dpp(proposals.factor, rng, mixture.k)
            if core is not None and rng.random() >= accept[len(core)]:
                core = None
        kept[draw] = mixture.fill(core, rng)
    return kept, mixture.better_tilt(proposals.tilt, proposals.mean, proposals.variance)


def tuned_proposals(
    likelihood: Array, mixture: Mixture, rng: np.random.Generator, draws: int, tilt: float | None
) -> Proposals:
    """Newton's method in log z, as long as a better z is predicted to save more than a factorisation costs."""
    here = Proposals.of(likelihood, mixture, tilt or first_tilt(likelihood, mixture), rng)
    for _ in range(_NEWTON_STEPS):
        better = mixture.better_tilt(here.tilt, here.mean, here.variance)
        mean = here.mean + here.variance * np.log(better / here.tilt)
        acceptance = max(mixture.expected_acceptance(better, mean, here.variance), here.acceptance)
        saved = draws * here.seconds() * (1.0 / here.acceptance - 1.0 / acceptance)
        if saved <= seconds_to_factorise(mixture.n):
            break
        here = Proposals.of(likelihood, mixture, better, rng)
    return here


def first_tilt(likelihood: Array, mixture: Mixture) -> float:
    """A first z: ``E_z|T|`` among every eighth and every fourth item, continued to all of them by a power law."""
    trace = float(likelihood.trace())
    if mixture.n < _ALL:
        eigenvalues = np.maximum(np.linalg.eigvalsh(likelihood), 0.0)
        return spectral.best_tilt(partial(spectral.mean_size, eigenvalues), trace, mixture)
    eighth, fourth = (np.maximum(np.linalg.eigvalsh(likelihood[::step, ::step]), 0.0) for step in (8, 4))

    def mean_size(tilt: float) -> float:
        few, more = spectral.mean_size(eighth, tilt), spectral.mean_size(fourth, tilt)
        return more * (more / few) ** 2 if few > 0.0 else more

    return spectral.best_tilt(mean_size, trace, mixture)


def draw_spectrally(of: spectral.Spectrum, mixture: Mixture, rng: np.random.Generator, draws: int) -> Indices:
    """Draw by eigenpairs, (draws, k) intp."""
    _log.debug("k-DPP of %d of %d by %d eigenpairs", mixture.k, mixture.n, len(of.eigenvalues))
    kept = np.empty((draws, mixture.k), dtype=np.intp)
    for draw in range(draws):
        kept[draw] = spectral.sample_k_dpp_spectrally(of, mixture, rng)
    return kept


def draw_by_best_route(
    likelihood: Array, mixture: Mixture, rng: np.random.Generator, draws: int, tilt: float | None
) -> tuple[Indices, float | None]:
    """Low rank where the rank is low, else Cholesky, or the spectrum where that is predicted to be faster.

    Raises
    ------
    ValueError
        If a factorisation meets what no positive semidefinite ``L'`` has.
    """
    rank = mixture.n // _LOW_RANK
    if spectral.has_low_rank(likelihood, mixture.epsilon, rank):
        low = spectral.low_rank_spectrum(likelihood, mixture.epsilon, rank)
        if low is not None:
            return draw_spectrally(low, mixture, rng, draws), tilt
    try:
        kept, tilt = draw_by_cholesky(likelihood, mixture, rng, draws, tilt, may_give_up=True)
    except np.linalg.LinAlgError as error:
        _log.debug("no Cholesky factor: %s", error)
        kept = None
    if kept is None:
        kept = draw_spectrally(spectral.spectrum(likelihood), mixture, rng, draws)
    return kept, tilt
