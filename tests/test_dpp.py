"""The DPP engine: every route against enumeration, on counts; the mode against brute force."""

from itertools import combinations
from math import comb, log

import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from onnxdpp.algebra import cholesky, routes, spectral
from onnxdpp.algebra.dpp import (
    KDPPSampler,
    expected_size,
    log_esp,
    log_likelihood,
    maximise_by_columns,
    maximise_k_dpp,
    sample_k_dpp,
)
from onnxdpp.algebra.kernels import rbf_kernel
from onnxdpp.algebra.mixture import Mixture
from onnxdpp.algebra.projection import sample_projection_dpp


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Small matrices: a second thread only waits."""
    with threadpool_limits(1):
        yield


N, K, EPSILON = 8, 4, 0.01
DRAWS = 1200


def features(n=N, rows=12, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, n))


def kernel_of(x, beta):
    return rbf_kernel(x.T @ x / len(x), beta)


def low_rank(n=N):
    x = features(n, rows=2, seed=5)
    return x.T @ x


SPREAD = np.linspace(0.2, 1.5, N)

# Each far enough from uniform for the test to have power: the mutants below show it.
KERNELS = {
    "well conditioned": kernel_of(features(), 1.0) * np.outer(SPREAD, SPREAD),
    "low rank": low_rank(),
    "near constant": kernel_of(features() * SPREAD, 0.02),
    "duplicate items": kernel_of(features()[:, [0, 0, 1, 2, 2, 2, 3, 4]], 0.3),
}


def by_cholesky(likelihood, k, rng, draws):
    return routes.draw_by_cholesky(likelihood, Mixture(len(likelihood), k, EPSILON), rng, draws)[0]


def by_spectrum(likelihood, k, rng, draws):
    return routes.draw_spectrally(spectral.spectrum(likelihood), Mixture(len(likelihood), k, EPSILON), rng, draws)


def by_low_rank(likelihood, k, rng, draws):
    factored = spectral.low_rank_spectrum(likelihood, EPSILON, len(likelihood))
    return routes.draw_spectrally(factored, Mixture(len(likelihood), k, EPSILON), rng, draws)


def by_choice(likelihood, k, rng, draws):
    return sample_k_dpp(likelihood, k, epsilon=EPSILON, rng=rng, draws=draws)


ROUTES = [by_cholesky, by_spectrum, by_low_rank, by_choice]


def with_epsilon(likelihood, subset=slice(None), epsilon=EPSILON):
    return (likelihood + epsilon * np.eye(len(likelihood)))[subset][:, subset]


def enumerate_k_dpp(likelihood, k, epsilon=EPSILON):
    """All subsets of size k and their probabilities, by definition."""
    subsets = list(combinations(range(len(likelihood)), k))
    weights = np.array([np.linalg.det(with_epsilon(likelihood, list(s), epsilon)) for s in subsets])
    return subsets, weights / weights.sum()


def p_value(drawn, subsets, probabilities):
    """Chi-square of the *counts* of each subset; cells that expect fewer than five are taken together."""
    index = {tuple(subset): i for i, subset in enumerate(subsets)}
    counts = np.bincount([index[tuple(s)] for s in drawn], minlength=len(subsets))
    expected = probabilities * (len(drawn) / probabilities.sum())
    rare = expected < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    if expected[-1] < 1e-6:
        assert observed[-1] == 0
        observed, expected = observed[:-1], expected[:-1]
    return stats.chi2.sf((np.square(observed - expected) / expected).sum(), len(observed) - 1)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", KERNELS)
def test_draws_follow_the_enumerated_distribution(name, route):
    drawn = route(KERNELS[name], K, np.random.default_rng(7), DRAWS)
    assert p_value(drawn, *enumerate_k_dpp(KERNELS[name], K)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", KERNELS)
def test_many_draws_follow_the_enumerated_distribution(name, route):
    drawn = route(KERNELS[name], K, np.random.default_rng(70), 30_000)
    assert p_value(drawn, *enumerate_k_dpp(KERNELS[name], K)) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 6, 7, 8])
@pytest.mark.parametrize("route", ROUTES)
def test_draws_follow_the_enumerated_distribution_at_every_size(k, route):
    drawn = route(KERNELS["well conditioned"], k, np.random.default_rng(8), 600)
    if k == N:
        assert (drawn == np.arange(N)).all()
    else:
        assert p_value(drawn, *enumerate_k_dpp(KERNELS["well conditioned"], k)) > 1e-3


@pytest.mark.parametrize(("block", "panel"), [(1, 1), (3, 2), (5, 4)])
def test_cholesky_route_is_exact_across_its_blocks(block, panel, monkeypatch):
    monkeypatch.setattr(cholesky, "_BLOCK", block)
    monkeypatch.setattr(cholesky, "_PANEL", panel)
    likelihood = kernel_of(features(9, seed=2), 0.8)
    drawn = by_cholesky(likelihood, 3, np.random.default_rng(3), 800)
    assert p_value(drawn, *enumerate_k_dpp(likelihood, 3)) > 1e-3


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_cholesky_route_is_exact_whatever_the_tilt(factor, monkeypatch):
    monkeypatch.setattr(routes, "_NEWTON_STEPS", 0)
    likelihood, mixture = KERNELS["duplicate items"], Mixture(N, K, EPSILON)
    tilt = factor * routes.first_tilt(likelihood, mixture)
    drawn, _ = routes.draw_by_cholesky(likelihood, mixture, np.random.default_rng(4), DRAWS, tilt)
    assert p_value(drawn, *enumerate_k_dpp(likelihood, K)) > 1e-3


def test_sampler_that_carries_its_tilt_from_kernel_to_kernel_is_exact():
    sampler, rng = KDPPSampler(EPSILON), np.random.default_rng(5)
    kernels = (KERNELS["well conditioned"], KERNELS["near constant"], KERNELS["duplicate items"])
    drawn = np.array([[sampler.draw(kernel, K, rng)[0] for kernel in kernels] for _ in range(500)])
    for i, kernel in enumerate(kernels):
        assert p_value(drawn[:, i], *enumerate_k_dpp(kernel, K)) > 1e-3


class UniformFill(Mixture):
    """A mutant that forgets the core."""

    def fill(self, core, rng):
        return super().fill(core[:0], rng)


class WrongWeights(Mixture):
    """A mutant whose weights lack the binomial coefficient."""

    def log_weights(self):
        return (self.k - np.arange(self.k + 1.0)) * np.log(self.epsilon)


class NoRejection(Mixture):
    """A mutant that takes every core that fits."""

    def acceptances(self, tilt):
        return np.ones(self.k + 1)


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        *((UniformFill, name) for name in KERNELS),
        (WrongWeights, "duplicate items"),
        (NoRejection, "well conditioned"),
    ],
)
@pytest.mark.parametrize("route", [by_cholesky, by_spectrum])
def test_chi_square_turns_red_on_a_broken_route(route, mutant, name, monkeypatch):
    monkeypatch.setitem(globals(), "Mixture", mutant)
    drawn = route(KERNELS[name], K, np.random.default_rng(7), DRAWS)
    assert p_value(drawn, *enumerate_k_dpp(KERNELS[name], K)) < 1e-6


def test_chi_square_turns_red_when_a_pick_is_forgotten(monkeypatch):
    honest = cholesky._inner
    monkeypatch.setattr(cholesky, "_BLOCK", 2)
    monkeypatch.setattr(cholesky, "_inner", lambda schur, known: honest(schur[:0, :0], known))
    drawn = by_cholesky(KERNELS["duplicate items"], K, np.random.default_rng(7), DRAWS)
    assert p_value(drawn, *enumerate_k_dpp(KERNELS["duplicate items"], K)) < 1e-6


def test_dpp_of_no_fixed_size_follows_the_enumerated_distribution():
    likelihood = 1.5 * KERNELS["duplicate items"]
    subsets = [s for size in range(N + 1) for s in combinations(range(N), size)]
    weights = np.array([max(np.linalg.det(likelihood[np.ix_(s, s)]), 0.0) for s in subsets])
    factor, rng = cholesky.factorise(likelihood, 1.0), np.random.default_rng(6)
    drawn = [sorted(cholesky.sample_dpp(factor, rng).tolist()) for _ in range(DRAWS)]
    assert p_value(drawn, subsets, weights) > 1e-3


def test_projection_dpp_follows_the_enumerated_distribution():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 3)))[0]
    subsets = list(combinations(range(7), 3))
    probabilities = np.array([np.linalg.det(vectors[list(s)]) ** 2 for s in subsets])
    rng = np.random.default_rng(1)
    drawn = np.array([np.sort(sample_projection_dpp(vectors, rng)) for _ in range(DRAWS)])
    assert p_value(drawn, subsets, probabilities) > 1e-3


def exact_marginals(likelihood, k, epsilon):
    """``P(i in S) = Σ_j V_ij² λ_j e_{k-1}(λ without j) / e_k(λ)``."""
    values, vectors = np.linalg.eigh(with_epsilon(likelihood, epsilon=epsilon))
    whole = log_esp(values, k)[k]
    taken = [v * np.exp(log_esp(np.delete(values, j), k - 1)[-1] - whole) for j, v in enumerate(values)]
    return np.square(vectors) @ np.array(taken)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("beta", [0.004, 0.3])
def test_marginals_of_sixty_items_are_exact(route, beta):
    likelihood = kernel_of(features(60, rows=8, seed=9) * np.linspace(0.3, 1.0, 60), beta)
    draws, k = 600, 25
    drawn = route(likelihood, k, np.random.default_rng(10), draws)
    p = exact_marginals(likelihood, k, EPSILON)
    assert p.sum() == pytest.approx(k, rel=1e-9)
    z = (np.bincount(drawn.ravel(), minlength=60) - draws * p) / np.sqrt(draws * p * (1 - p))
    assert np.abs(z).max() < 4.3
    assert 0.6 < np.sqrt(np.square(z).mean()) < 1.35


def test_marginals_test_turns_red_on_uniform_draws():
    likelihood = kernel_of(features(60, rows=8, seed=9) * np.linspace(0.3, 1.0, 60), 0.3)
    rng = np.random.default_rng(0)
    drawn = np.array([rng.permutation(60)[:25] for _ in range(2500)])
    p = exact_marginals(likelihood, 25, EPSILON)
    z = (np.bincount(drawn.ravel(), minlength=60) - 2500 * p) / np.sqrt(2500 * p * (1 - p))
    assert np.abs(z).max() > 6


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("k", [1, 40, 150, 190, 199, 200])
def test_draws_are_distinct_sorted_and_of_the_size_asked_for(route, k):
    likelihood = kernel_of(features(200, rows=6), 0.05)
    drawn = route(likelihood, k, np.random.default_rng(0), 2)
    assert drawn.shape == (2, k)
    assert drawn.dtype == np.intp
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < 200


def test_draw_succeeds_where_elementary_polynomials_underflow():
    likelihood = 1e-3 * kernel_of(features(400, rows=6), 0.01)
    values = np.linalg.eigvalsh(likelihood) + 1e-5
    assert log_esp(np.maximum(values, 0), 350)[-1] < np.log(np.finfo(float).tiny)
    assert len(sample_k_dpp(likelihood, 350, epsilon=1e-5, rng=np.random.default_rng(0))) == 350


def test_draw_gives_way_to_the_spectrum_when_proposals_would_be_wasted(monkeypatch, caplog):
    caplog.set_level("DEBUG", logger="onnxdpp")
    monkeypatch.setattr(routes, "_EIGH", 0.0)
    drawn = by_choice(KERNELS["well conditioned"], K, np.random.default_rng(1), DRAWS)
    assert "eigenpairs" in caplog.messages[-1]
    assert p_value(drawn, *enumerate_k_dpp(KERNELS["well conditioned"], K)) > 1e-3


@pytest.mark.parametrize(
    ("likelihood", "route"),
    [(kernel_of(features(64, rows=8), 0.3), "Cholesky"), (low_rank(64), "2 eigenpairs")],
)
def test_route_taken_goes_to_the_debug_log(likelihood, route, caplog):
    caplog.set_level("DEBUG", logger="onnxdpp")
    sample_k_dpp(likelihood, 5, epsilon=EPSILON, rng=np.random.default_rng(0))
    assert route in caplog.messages[-1]


def test_same_seed_gives_the_same_items():
    likelihood = kernel_of(features(100), 0.3)
    first, second = (
        sample_k_dpp(likelihood, 30, epsilon=EPSILON, rng=np.random.default_rng(3), draws=4) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_factor_is_that_of_the_tilted_kernel():
    likelihood = kernel_of(features(300, rows=20), 0.2)
    factor = np.tril(cholesky.factorise(likelihood, 3.0))
    np.testing.assert_allclose(factor @ factor.T, np.eye(300) + 3.0 * likelihood, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "error"), [(100, 1e-9), (300, 5.0)])
def test_size_moments_are_those_of_the_spectrum(n, error):
    likelihood = kernel_of(features(n, rows=20), 0.2)
    values = 3.0 * np.linalg.eigvalsh(likelihood)
    chances = values / (1 + values)
    moments = cholesky.size_moments(cholesky.factorise(likelihood, 3.0), np.random.default_rng(0))
    expected = (chances.sum(), (chances * (1 - chances)).sum())
    np.testing.assert_allclose(moments, expected, rtol=0, atol=error)


def exact_tilt(likelihood, mixture):
    values = np.maximum(np.linalg.eigvalsh(likelihood), 0)
    return spectral.best_tilt(lambda z: spectral.mean_size(values, z), values.sum(), mixture)


def test_tilt_found_by_newton_is_that_of_the_spectrum():
    likelihood, mixture = kernel_of(features(100), 0.3), Mixture(100, 30, EPSILON)
    best = exact_tilt(likelihood, mixture)
    tilt = 50.0 * best
    for _ in range(8):
        moments = cholesky.size_moments(cholesky.factorise(likelihood, tilt), np.random.default_rng(0))
        tilt = mixture.better_tilt(tilt, *moments)
    assert tilt == pytest.approx(best, rel=1e-3)


def test_first_tilt_is_near_the_best_one():
    likelihood, mixture = kernel_of(features(300, rows=20), 0.1), Mixture(300, 60, EPSILON)
    assert routes.first_tilt(likelihood, mixture) == pytest.approx(exact_tilt(likelihood, mixture), rel=0.3)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("route", [by_cholesky, by_spectrum, by_choice])
def test_draws_are_exact_at_extreme_epsilon(epsilon, route, monkeypatch):
    monkeypatch.setitem(globals(), "EPSILON", epsilon)
    drawn = route(KERNELS["near constant"], 3, np.random.default_rng(7), 800)
    assert p_value(drawn, *enumerate_k_dpp(KERNELS["near constant"], 3, epsilon)) > 1e-3


def test_low_rank_is_ruled_out_only_where_it_fails():
    for likelihood in (*KERNELS.values(), kernel_of(features(64, rows=2), 0.01), low_rank(64)):
        for rank in (1, 2, 5, 7):
            if spectral.low_rank_factor(likelihood, spectral.TRUNCATION * EPSILON, rank) is not None:
                assert spectral.has_low_rank(likelihood, EPSILON, rank)


# log_esp, log_likelihood, expected_size


@pytest.mark.parametrize("values", [[0.3, 2.0, 1e-8, 5.0, 0.0, 7.0], [1.0], [0.0, 0.0, 2.0]])
def test_log_esp_is_its_definition(values):
    k = len(values) + 2
    brute = [sum(np.prod(c) for c in combinations(values, degree)) for degree in range(k + 1)]
    np.testing.assert_allclose(np.exp(log_esp(values, k)), brute, rtol=1e-13, atol=0)


def test_log_esp_of_ones_are_binomials_far_beyond_float64():
    logs = log_esp(np.full(2000, 1e-3), 1500)
    exact = log(comb(2000, 1500)) - 1500 * log(1e3)
    assert logs[-1] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("values", [[1.0, -1e-9], [np.nan], [[1.0]]])
def test_log_esp_refuses_values_that_cannot_be(values):
    with pytest.raises(ValueError, match="values must be"):
        log_esp(values, 1)


@pytest.mark.parametrize("name", KERNELS)
def test_log_likelihood_is_the_enumerated_one(name):
    subsets, probabilities = enumerate_k_dpp(KERNELS[name], K)
    logs = [log_likelihood(KERNELS[name], np.array(s), EPSILON) for s in subsets]
    np.testing.assert_allclose(np.exp(logs), probabilities, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("subset", [[0, 0], [0, N], [-1, 2]])
def test_log_likelihood_refuses_what_is_no_subset(subset):
    with pytest.raises(ValueError, match="distinct indices below 8"):
        log_likelihood(KERNELS["low rank"], np.array(subset), EPSILON)


def test_expected_size_is_the_enumerated_one():
    likelihood = with_epsilon(KERNELS["well conditioned"])
    subsets = [list(s) for size in range(N + 1) for s in combinations(range(N), size)]
    weights = np.array([np.linalg.det(likelihood[np.ix_(s, s)]) for s in subsets])
    expected = weights @ [len(s) for s in subsets] / weights.sum()
    assert expected_size(KERNELS["well conditioned"], EPSILON) == pytest.approx(expected, rel=1e-12)


# The mode


def brute_greedy(likelihood, k, epsilon):
    chosen = []
    for _ in range(k):
        rest = [i for i in range(len(likelihood)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: np.linalg.slogdet(with_epsilon(likelihood, [*chosen, i], epsilon))[1]))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_mode_is_that_of_brute_force_greedy(seed):
    likelihood = kernel_of(features(20, seed=seed), 0.4) * np.outer(*[np.linspace(1, 2, 20)] * 2)
    assert maximise_k_dpp(likelihood, 12, epsilon=1e-3).tolist() == brute_greedy(likelihood, 12, 1e-3)


@pytest.mark.parametrize("name", KERNELS)
def test_mode_of_a_smaller_size_is_a_prefix(name):
    contribution = np.random.default_rng(0).random(N)
    whole = maximise_k_dpp(KERNELS[name], N, epsilon=EPSILON, contribution=contribution)
    assert sorted(whole) == list(range(N))
    for k in range(1, N):
        shorter = maximise_k_dpp(KERNELS[name], k, epsilon=EPSILON, contribution=contribution)
        np.testing.assert_array_equal(shorter, whole[:k])


@pytest.mark.parametrize("name", KERNELS)
def test_mode_follows_a_permutation_of_the_items(name):
    rng = np.random.default_rng(1)
    order, contribution = rng.permutation(N), rng.random(N)
    straight = maximise_k_dpp(KERNELS[name], K, epsilon=EPSILON, contribution=contribution)
    permuted = maximise_k_dpp(KERNELS[name][np.ix_(order, order)], K, epsilon=EPSILON, contribution=contribution[order])
    np.testing.assert_array_equal(order[permuted], straight)


def test_mode_breaks_ties_by_contribution_then_index():
    likelihood = np.eye(5)
    assert maximise_k_dpp(likelihood, 3, epsilon=EPSILON).tolist() == [0, 1, 2]
    chosen = maximise_k_dpp(likelihood, 3, epsilon=EPSILON, contribution=np.array([0.0, 3.0, 1.0, 3.0, 0.0]))
    assert chosen.tolist() == [1, 3, 2]


def test_mode_counts_residuals_as_equal_within_rounding():
    likelihood = np.diag([1.0, 1.0 + 1e-10, 1.0 + 1e-6])
    chosen = maximise_k_dpp(likelihood, 3, epsilon=EPSILON, contribution=np.array([2.0, 1.0, 0.0]))
    assert chosen.tolist() == [2, 0, 1]


def test_mode_fills_the_flat_tail_by_contribution():
    chosen = maximise_k_dpp(np.ones((5, 5)), 4, epsilon=EPSILON, contribution=np.array([1.0, 5.0, 2.0, 2.0, 9.0]))
    assert chosen.tolist() == [4, 1, 2, 3]


def test_mode_of_a_zero_kernel_is_the_order_of_contribution():
    chosen = maximise_k_dpp(np.zeros((3, 3)), 3, epsilon=EPSILON, contribution=np.array([1.0, 3.0, 2.0]))
    assert chosen.tolist() == [1, 2, 0]


def test_mode_of_duplicates_takes_one_of_each_first():
    chosen = maximise_k_dpp(KERNELS["duplicate items"], N, epsilon=EPSILON)
    assert sorted(chosen[:5]) == [0, 2, 3, 6, 7]
    assert chosen[5:].tolist() == [1, 4, 5]


def test_mode_by_columns_visits_no_more_columns_than_pivots():
    likelihood, visited = kernel_of(features(30), 0.4), []

    def column(i):
        visited.append(i)
        return likelihood[i]

    chosen = maximise_by_columns(column, likelihood.diagonal(), 10, epsilon=EPSILON)
    assert visited == chosen.tolist()
    np.testing.assert_array_equal(chosen, maximise_k_dpp(likelihood, 10, epsilon=EPSILON))


@pytest.mark.parametrize(("k", "group"), [(2, 4), (1, 3), (4, 4), (3, 5)])
def test_pattern_keeps_its_share_of_every_group(k, group):
    n = 18
    contribution = np.random.default_rng(0).random(n)
    for likelihood in (kernel_of(features(n), 0.3), kernel_of(features(n, rows=2), 1e-3), np.zeros((n, n))):
        kept = maximise_k_dpp(likelihood, k, epsilon=EPSILON, contribution=contribution, group=group)
        counts = np.bincount(np.unique(kept) // group)
        expected = [min(k, len(range(low, min(low + group, n)))) for low in range(0, n, group)]
        assert counts.tolist() == expected
        assert len(kept) == sum(expected)


@pytest.mark.parametrize("seed", range(3))
def test_pattern_is_that_of_brute_force_greedy_within_open_groups(seed):
    likelihood = kernel_of(features(16, seed=seed), 0.4)
    chosen = []
    for _ in range(8):
        full = [i for i in range(16) if sum(j // 4 == i // 4 for j in chosen) == 2]
        rest = [i for i in range(16) if i not in chosen and i not in full]
        chosen.append(max(rest, key=lambda i: np.linalg.slogdet(with_epsilon(likelihood, [*chosen, i]))[1]))
    assert maximise_k_dpp(likelihood, 2, epsilon=EPSILON, group=4).tolist() == chosen


def test_pattern_of_one_group_of_all_is_the_mode():
    likelihood = KERNELS["near constant"]
    np.testing.assert_array_equal(
        maximise_k_dpp(likelihood, 5, epsilon=EPSILON, group=N), maximise_k_dpp(likelihood, 5, epsilon=EPSILON)
    )


def test_pattern_fills_the_flat_tail_by_contribution_within_groups():
    contribution = np.array([5.0, 6.0, 7.0, 8.0, 1.0, 4.0, 2.0, 3.0])
    kept = maximise_k_dpp(np.ones((8, 8)), 2, epsilon=EPSILON, contribution=contribution, group=4)
    assert kept.tolist() == [3, 2, 5, 7]


# Arguments

GOOD = KERNELS["well conditioned"]
LOPSIDED = GOOD + np.triu(np.full((N, N), 0.01), 1)
HOLED = np.where(np.arange(N * N).reshape(N, N) == 11, np.nan, GOOD)
BOUNDLESS = np.where(np.arange(N * N).reshape(N, N) == 0, np.inf, GOOD)
INDEFINITE = GOOD - 0.5 * np.eye(N)


def draw(likelihood=GOOD, k=K, epsilon=EPSILON):
    return sample_k_dpp(likelihood, k, epsilon=epsilon, rng=np.random.default_rng(0))


def maximise(likelihood=GOOD, k=K, epsilon=EPSILON):
    return maximise_k_dpp(likelihood, k, epsilon=epsilon)


@pytest.mark.parametrize("function", [draw, maximise])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"likelihood": GOOD[:3]}, r"square matrix, got shape \(3, 8\)"),
        ({"likelihood": GOOD[0]}, r"square matrix, got shape \(8,\)"),
        ({"likelihood": np.empty((0, 0))}, r"square matrix, got shape \(0, 0\)"),
        ({"likelihood": LOPSIDED}, r"likelihood \(8, 8\) must be symmetric; \[\d, \d\] is 0\.\d+ and"),
        ({"likelihood": HOLED}, r"must be finite; entry \(1, 3\) is nan \(1 such\)"),
        ({"likelihood": BOUNDLESS}, r"must be finite; entry \(0, 0\) is inf"),
        ({"likelihood": INDEFINITE}, r"\(8, 8\) must be positive semidefinite; "),
        ({"k": 0}, "k must be between 1 and the number of items 8, got 0"),
        ({"k": 9}, "k must be between 1 and the number of items 8, got 9"),
        ({"epsilon": 0.0}, r"epsilon must be positive and finite, got 0\.0"),
        ({"epsilon": np.nan}, "epsilon must be positive and finite, got nan"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(function, bad, message):
    with pytest.raises(ValueError, match=message) as caught:
        function(**bad)
    assert "\n" not in str(caught.value)


def test_draws_below_one_are_refused():
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        sample_k_dpp(GOOD, K, epsilon=EPSILON, rng=np.random.default_rng(0), draws=0)


def test_contribution_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"contribution must be 8 numbers, got shape \(3,\)"):
        maximise_k_dpp(GOOD, K, epsilon=EPSILON, contribution=np.ones(3))


@pytest.mark.parametrize("route", ROUTES)
def test_rounding_below_zero_is_forgiven(route):
    likelihood = KERNELS["low rank"] - 1e-9 * np.eye(N)
    assert route(likelihood, K, np.random.default_rng(0), 3).shape == (3, K)


def test_engine_leaves_its_arguments_alone():
    likelihood = GOOD.copy()
    likelihood.setflags(write=False)
    for route in ROUTES:
        route(likelihood, K, np.random.default_rng(0), 2)
    maximise_k_dpp(likelihood, K, epsilon=EPSILON)
    log_likelihood(likelihood, np.arange(3), EPSILON)
