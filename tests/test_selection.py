"""Which neurons or edges stay: k of n, by every method."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence
from numpy.typing import NDArray
from scipy.stats import chisquare

from onnxdpp.algebra.moments import Accumulator, Moments
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.selection import (
    KERNELS,
    METHODS,
    Rule,
    choose_edges,
    choose_neurons,
    edge_beta,
    neuron_beta,
    pattern_sizes,
)

Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]
SEEDS = st.integers(0, 2**32 - 1)
RULES = [Rule(method, kernel) for method, kernel in product(METHODS, KERNELS)]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method}-{rule.kernel}")


def moments_of(x: Matrix, weights: Matrix) -> Moments:
    accumulator = Accumulator(weights, paired=False)
    accumulator.update(x)
    return accumulator.moments()


def drawn(seed: int, n: int = 12, m: int = 5, r: int = 80) -> Moments:
    rng = np.random.default_rng(seed)
    return moments_of(np.maximum(rng.standard_normal((r, n)) + rng.standard_normal(n), 0), rng.standard_normal((n, m)))


def inputs(observed: list[Moments]) -> list[Inputs]:
    """Every input a neuron."""
    return [Inputs(part, np.arange(len(part.mean_x))) for part in observed]


def beta_of(observed: list[Moments], rule: Rule) -> float | None:
    return neuron_beta(inputs(observed), len(observed[0].mean_x), rule)


def neurons(observed: list[Moments], k: int, rule: Rule, seed: int = 0) -> Indices:
    n = len(observed[0].mean_x)
    return choose_neurons(inputs(observed), n, k, rule, beta_of(observed, rule), SeedSequence(seed))


def edges(moments: Moments, k: int, rule: Rule, executor: Executor, seed: int = 0) -> Indices:
    return choose_edges(moments, k, rule, edge_beta(moments, rule), SeedSequence(seed), executor)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


# Every method: k of n


@EVERY_RULE
@given(seed=SEEDS, n=st.integers(1, 14), data=st.data())
@settings(deadline=None, max_examples=25)
def test_choice_is_k_distinct_sorted_indices(rule: Rule, seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    moments = drawn(seed, n)
    kept = neurons([moments], k, rule)
    assert kept.shape == (k,)
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < n
    with ThreadPoolExecutor(1) as one:
        columns = edges(moments, k, rule, one)
    assert columns.shape == (k, 5)
    assert (np.diff(columns, axis=0) > 0).all()
    assert columns.min() >= 0
    assert columns.max() < n


@EVERY_RULE
def test_k_of_n_is_everything(rule: Rule, executor: Executor) -> None:
    moments = drawn(0)
    np.testing.assert_array_equal(neurons([moments], 12, rule), np.arange(12))
    np.testing.assert_array_equal(edges(moments, 12, rule, executor), np.tile(np.arange(12)[:, None], 5))


@EVERY_RULE
def test_k_of_one_is_possible(rule: Rule, executor: Executor) -> None:
    moments = drawn(1)
    assert neurons([moments], 1, rule).shape == (1,)
    assert edges(moments, 1, rule, executor).shape == (1, 5)


@EVERY_RULE
def test_dead_and_equal_inputs_can_be_chosen_from(rule: Rule, executor: Executor) -> None:
    for x in (np.zeros((6, 5)), np.ones((6, 5))):
        moments = moments_of(x, np.ones((5, 3)))
        for k in (1, 3, 4):
            assert len(set(neurons([moments], k, rule).tolist())) == k
            assert edges(moments, k, rule, executor).shape == (k, 3)


@EVERY_RULE
def test_choice_is_the_same_for_a_seed(rule: Rule, executor: Executor) -> None:
    moments = drawn(2)
    np.testing.assert_array_equal(neurons([moments], 5, rule, 7), neurons([moments], 5, rule, 7))
    np.testing.assert_array_equal(edges(moments, 5, rule, executor, 7), edges(moments, 5, rule, executor, 7))


@EVERY_RULE
def test_choice_hangs_on_the_seed_only_where_it_is_drawn(rule: Rule, executor: Executor) -> None:
    moments = drawn(3)
    draws = rule.method in ("random", "dpp-sample")
    assert (len({tuple(neurons([moments], 5, rule, seed)) for seed in range(20)}) > 1) == draws
    assert (len({edges(moments, 5, rule, executor, seed).tobytes() for seed in range(20)}) > 1) == draws


@EVERY_RULE
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_choice_of_edges_is_the_same_for_any_number_of_workers(rule: Rule, workers: int, executor: Executor) -> None:
    moments = drawn(4, n=20, m=16)
    expected = edges(moments, 6, rule, executor)
    with ThreadPoolExecutor(workers) as pool:
        np.testing.assert_array_equal(edges(moments, 6, rule, pool), expected)


@pytest.mark.parametrize("method", ["random", "dpp-sample"])
def test_outputs_draw_their_edges_independently(method: str, executor: Executor) -> None:
    columns = edges(moments_of(np.eye(12), np.ones((12, 30))), 4, Rule(method), executor)
    assert len({tuple(column) for column in columns.T}) > 15


# Importance: the papers' scores


@given(seed=SEEDS, k=st.integers(1, 11))
@settings(deadline=None, max_examples=30)
def test_importance_of_neurons_is_the_mean_absolute_outgoing_weight(seed: int, k: int) -> None:
    moments = drawn(seed)
    expected = np.argsort(-np.abs(moments.weights).mean(1))[:k]
    np.testing.assert_array_equal(neurons([moments], k, Rule("importance")), np.sort(expected))


@given(seed=SEEDS, k=st.integers(1, 11))
@settings(deadline=None, max_examples=30)
def test_importance_of_edges_is_the_absolute_weight(seed: int, k: int) -> None:
    moments = drawn(seed)
    with ThreadPoolExecutor(1) as one:
        kept = edges(moments, k, Rule("importance"), one)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(-np.abs(moments.weights), axis=0)[:k], axis=0))


def test_importance_does_not_look_at_the_rows(executor: Executor) -> None:
    weights = drawn(5).weights
    first, second = (moments_of(np.random.default_rng(s).standard_normal((30, 12)), weights) for s in (1, 2))
    rule = Rule("importance")
    np.testing.assert_array_equal(neurons([first], 4, rule), neurons([second], 4, rule))
    np.testing.assert_array_equal(edges(first, 4, rule, executor), edges(second, 4, rule, executor))


def test_importance_of_equals_goes_to_the_lower_index() -> None:
    moments = moments_of(np.eye(4), np.ones((4, 2)))
    np.testing.assert_array_equal(neurons([moments], 2, Rule("importance")), [0, 1])


def test_importance_counts_the_consumers_at_all_taps() -> None:
    first, second = (moments_of(np.eye(3), np.array(w)[:, None]) for w in ([3.0, 1.0, 0.0], [0.0, 1.0, -9.0]))
    np.testing.assert_array_equal(neurons([first, second], 1, Rule("importance")), [2])
    np.testing.assert_array_equal(neurons([first, second], 2, Rule("importance")), [0, 2])


# Random: uniform, on counts


def test_random_neurons_are_uniform_over_all_subsets() -> None:
    observed = [drawn(0, n=5)]
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4000):
        kept = tuple(neurons(observed, 2, Rule("random"), seed).tolist())
        counts[kept] = counts.get(kept, 0) + 1
    assert len(counts) == 10
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_random_edges_are_uniform_over_inputs(executor: Executor) -> None:
    moments = moments_of(np.eye(8), np.arange(8.0 * 2000).reshape(8, 2000))
    counts = np.bincount(edges(moments, 1, Rule("random"), executor).ravel(), minlength=8)
    assert counts.sum() == 2000
    assert chisquare(counts).pvalue > 1e-3


def test_random_neurons_are_uniform_over_seeds() -> None:
    moments = drawn(6, n=6)
    counts = np.bincount([neurons([moments], 1, Rule("random"), seed)[0] for seed in range(1200)], minlength=6)
    assert chisquare(counts).pvalue > 1e-3


# The DPP


@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=SEEDS, data=st.data())
@settings(deadline=None, max_examples=40)
def test_mode_never_keeps_both_of_two_duplicates_while_others_are_distinct(
    kernel: str, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    n = data.draw(st.integers(3, 10))
    k = data.draw(st.integers(1, n - 1))
    # orthonormal columns: all but the twins are as distinct as can be
    x = np.linalg.qr(rng.standard_normal((60, n)))[0] * np.sqrt(60)
    first, second = rng.choice(n, 2, replace=False)
    x[:, second] = x[:, first]
    moments = moments_of(x, np.ones((n, 4)))
    assert not {first, second} <= set(neurons([moments], k, Rule("dpp", kernel)).tolist())
    with ThreadPoolExecutor(1) as one:
        for column in edges(moments, k, Rule("dpp", kernel), one).T:
            assert not {first, second} <= set(column.tolist())


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_seldom_keep_both_of_two_duplicates(kernel: str) -> None:
    x = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 6)))[0] * np.sqrt(60)
    x[:, 4] = x[:, 1]
    moments = moments_of(x, np.ones((6, 2)))
    rule = Rule("dpp-sample", kernel)
    both = sum({1, 4} <= set(neurons([moments], 3, rule, seed).tolist()) for seed in range(300))
    assert both < 20  # uniform draws: 60


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@given(seed=SEEDS, k=st.integers(1, 9), exponent=st.integers(-20, 20), method=st.sampled_from(["dpp", "dpp-sample"]))
@settings(deadline=None, max_examples=40)
def test_rescaling_all_activations_does_not_change_the_choice_of_auto_beta(
    unit: str, seed: int, k: int, exponent: int, method: str
) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    factor = 2.0**exponent  # exact, so that draws are the same to the bit
    before, after = moments_of(x, weights), moments_of(x * factor, weights / factor)
    rule = Rule(method)
    if unit == "neuron":
        assert beta_of([after], rule) == pytest.approx(beta_of([before], rule) / factor**2, rel=1e-12)
        np.testing.assert_array_equal(neurons([after], k, rule), neurons([before], k, rule))
    else:
        assert edge_beta(after, rule) == pytest.approx(edge_beta(before, rule), rel=1e-12)
        with ThreadPoolExecutor(1) as one:
            np.testing.assert_array_equal(edges(after, k, rule, one), edges(before, k, rule, one))


@given(seed=SEEDS, k=st.integers(1, 9), kernel=st.sampled_from(KERNELS))
@settings(deadline=None, max_examples=40)
def test_rescaling_each_neuron_does_not_change_the_choice_of_edges(seed: int, k: int, kernel: str) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    factors = 10.0 ** rng.uniform(-3, 3, 10)
    before, after = moments_of(x, weights), moments_of(x * factors, weights / factors[:, None])
    with ThreadPoolExecutor(1) as one:
        rule = Rule("dpp", kernel)
        np.testing.assert_array_equal(edges(after, k, rule, one), edges(before, k, rule, one))


@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=SEEDS, k=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_permuting_neurons_permutes_the_mode(kernel: str, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    order = rng.permutation(10)
    rule = Rule("dpp", kernel)
    kept = neurons([moments_of(x, weights)], k, rule)
    moved = neurons([moments_of(x[:, order], weights[order])], k, rule)
    np.testing.assert_array_equal(np.sort(order[moved]), kept)


def test_first_of_the_mode_among_equals_is_the_largest_contribution(executor: Executor) -> None:
    rng = np.random.default_rng(7)
    x, weights = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    moments = moments_of(x, weights)
    # the diagonal of an rbf kernel is all ones: the first pivot is a tie
    contribution = (weights**2).sum(1) * x.var(0)
    np.testing.assert_array_equal(neurons([moments], 1, Rule()), [contribution.argmax()])
    each = weights**2 * x.var(0)[:, None]
    np.testing.assert_array_equal(edges(moments, 1, Rule(), executor)[0], each.argmax(0))


def test_linear_kernel_prefers_what_contributes_most() -> None:
    x = np.linalg.qr(np.random.default_rng(8).standard_normal((60, 5)))[0]
    x -= x.mean(0)
    moments = moments_of(x, np.diag([1.0, 5.0, 2.0, 4.0, 3.0]))
    np.testing.assert_array_equal(neurons([moments], 3, Rule("dpp", "linear")), [1, 3, 4])


def test_given_beta_is_taken_as_it_is() -> None:
    moments = drawn(9)
    assert beta_of([moments], Rule(beta=10.0)) == 10
    assert edge_beta(moments, Rule(beta=10.0)) == 10


@pytest.mark.parametrize("rule", [Rule("importance"), Rule("random", beta=3.0), Rule("dpp", "linear", beta=3.0)])
def test_beta_is_none_where_no_rbf_kernel_is_used(rule: Rule) -> None:
    moments = drawn(9)
    assert beta_of([moments], rule) is None
    assert edge_beta(moments, rule) is None


def test_auto_beta_is_one_over_the_median_squared_distance_of_rows() -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal((50, 6))
    distances = [((x[:, s] - x[:, t]) ** 2).mean() for s in range(6) for t in range(s)]
    assert beta_of([moments_of(x, np.ones((6, 1)))], Rule()) == pytest.approx(1 / np.median(distances), rel=1e-12)


# Several taps


@EVERY_RULE
def test_one_tap_seen_twice_is_chosen_from_as_one(rule: Rule) -> None:
    moments = drawn(11)
    np.testing.assert_array_equal(neurons([moments, moments], 5, rule), neurons([moments], 5, rule))


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_gram_of_several_taps_is_their_mean(kernel: str) -> None:
    """Neurons 0 and 1 agree at both taps; 2 and 3 only at the first, so that they may stay together."""
    rng = np.random.default_rng(12)
    base = np.linalg.qr(rng.standard_normal((60, 4)))[0] * np.sqrt(60)
    base -= base.mean(0)
    first, second = base[:, [0, 0, 1, 1]], base[:, [0, 0, 1, 2]]
    observed = [moments_of(x, np.ones((4, 2))) for x in (first, second)]
    kept = set(neurons(observed, 3, Rule("dpp", kernel)).tolist())
    assert {2, 3} <= kept
    assert len(kept & {0, 1}) == 1
    rule = Rule("dpp", kernel)
    beta = beta_of(observed, rule)
    if kernel == "rbf":
        mean = (observed[0].gram + observed[1].gram) / 2
        distances = np.add.outer(mean.diagonal(), mean.diagonal()) - 2 * mean
        apart = distances[np.triu_indices(4, 1)]
        assert beta == pytest.approx(1 / np.median(apart), rel=1e-9)


def test_contributions_of_several_taps_are_summed() -> None:
    x = np.random.default_rng(13).standard_normal((50, 3))
    weights = (np.array([[2.0], [0], [1.5]]), np.array([[0.0], [2], [1.5]]))
    observed = [moments_of(x / x.std(0), w) for w in weights]
    np.testing.assert_array_equal(neurons(observed, 1, Rule()), [2])


# Patterns: N of every M consecutive inputs


@pytest.mark.parametrize("method", ["dpp", "importance", "random"])
@pytest.mark.parametrize(("n", "pattern"), [(12, (2, 4)), (16, (4, 8)), (11, (2, 4)), (9, (1, 3)), (6, (3, 3))])
def test_pattern_keeps_n_of_every_m_inputs(method: str, n: int, pattern: tuple[int, int], executor: Executor) -> None:
    moments = drawn(3, n=n)
    rule = Rule(method, pattern=pattern)
    sizes = pattern_sizes(n, pattern)
    kept = edges(moments, sum(sizes), rule, executor)
    for column in kept.T:
        np.testing.assert_array_equal(np.bincount(column // pattern[1], minlength=len(sizes)), sizes)


def test_pattern_of_importance_takes_the_largest_of_each_group(executor: Executor) -> None:
    moments = moments_of(np.eye(8), np.array([9.0, 8, 7, 6, 1, 2, 3, 4])[:, None])
    kept = edges(moments, 4, Rule("importance", pattern=(2, 4)), executor)
    np.testing.assert_array_equal(kept[:, 0], [0, 1, 6, 7])


def test_pattern_of_random_is_uniform_in_each_group(executor: Executor) -> None:
    moments = moments_of(np.eye(8), np.ones((8, 3000)))
    counts = np.bincount(edges(moments, 4, Rule("random", pattern=(2, 4)), executor).ravel(), minlength=8)
    assert chisquare(counts).pvalue > 1e-3
