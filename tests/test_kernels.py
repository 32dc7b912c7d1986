"""Kernels from second moments, held against the rows they stand for."""

import numpy as np
import pytest

from onnxdpp.algebra.kernels import (
    edge_gram,
    linear_kernel,
    median_squared_distance,
    rbf_kernel,
    squared_distances,
)

ROWS = np.random.default_rng(1).normal(loc=0.5, size=(40, 6))
GRAM = ROWS.T @ ROWS / len(ROWS)
COVARIANCE = np.cov(ROWS, rowvar=False, bias=True)
WEIGHTS = np.random.default_rng(2).normal(size=(6, 3))


def distances_by_rows(rows):
    return np.square(rows[:, :, None] - rows[:, None, :]).mean(axis=0)


def test_squared_distances_are_those_of_the_rows():
    np.testing.assert_allclose(squared_distances(GRAM), distances_by_rows(ROWS), rtol=1e-12, atol=1e-13)


def test_squared_distances_of_equal_items_are_not_negative():
    rows = np.random.default_rng(0).normal(loc=1e3, size=(50, 1)) @ np.ones((1, 5))
    distances = squared_distances(rows.T @ rows / 50)
    assert distances.min() >= 0.0
    assert not distances.diagonal().any()


def test_edge_gram_is_that_of_the_weighted_rows():
    weighted = ROWS * WEIGHTS[:, 1]
    np.testing.assert_allclose(edge_gram(GRAM, WEIGHTS[:, 1]), weighted.T @ weighted / len(ROWS), rtol=1e-12)


def test_edge_gram_is_symmetric_to_the_bit():
    gram = edge_gram(GRAM, WEIGHTS[:, 0])
    np.testing.assert_array_equal(gram, gram.T)


def test_rbf_kernel_is_that_of_the_rows():
    np.testing.assert_allclose(rbf_kernel(GRAM, 0.3), np.exp(-0.3 * distances_by_rows(ROWS)), rtol=1e-12)


def test_rbf_kernel_is_symmetric_with_exact_ones():
    kernel = rbf_kernel(edge_gram(GRAM, WEIGHTS[:, 2]), 7.0)
    np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_array_equal(kernel.diagonal(), np.ones(6))


def test_rbf_kernel_follows_a_permutation_of_the_items():
    order = np.random.default_rng(3).permutation(6)
    permuted = rbf_kernel(GRAM[np.ix_(order, order)], 0.7)
    np.testing.assert_array_equal(permuted, rbf_kernel(GRAM, 0.7)[np.ix_(order, order)])


@pytest.mark.parametrize("beta", [-1.0, np.nan, np.inf])
def test_rbf_kernel_refuses_a_beta_that_cannot_be(beta):
    with pytest.raises(ValueError, match="beta must be finite"):
        rbf_kernel(GRAM, beta)


def test_median_squared_distance_is_over_distinct_pairs():
    above = distances_by_rows(ROWS)[np.triu_indices(6, 1)]
    assert median_squared_distance(GRAM) == pytest.approx(np.median(above), rel=1e-12)


def test_median_squared_distance_of_edges_is_over_all_outputs_together():
    above = [distances_by_rows(ROWS * w)[np.triu_indices(6, 1)] for w in WEIGHTS.T]
    assert median_squared_distance(GRAM, WEIGHTS) == pytest.approx(np.median(above), rel=1e-12)


def test_median_squared_distance_of_one_output_takes_its_weights_alone():
    expected = median_squared_distance(edge_gram(GRAM, WEIGHTS[:, 1]))
    assert median_squared_distance(GRAM, WEIGHTS[:, 1]) == pytest.approx(expected, rel=1e-12)


def test_median_squared_distance_of_a_wide_layer_is_close_on_a_sample():
    rng = np.random.default_rng(4)
    rows, weights = rng.normal(size=(50, 600)), rng.normal(size=(600, 70))
    gram = rows.T @ rows / 50
    every = [np.median(squared_distances(edge_gram(gram, w))) for w in weights.T]
    assert median_squared_distance(gram, weights) == pytest.approx(np.median(every), rel=0.05)


def test_median_squared_distance_passes_over_equal_pairs_when_they_are_the_most():
    rows = np.zeros((10, 5))
    rows[:, 4] = 2.0
    assert median_squared_distance(rows.T @ rows / 10) == 4.0


@pytest.mark.parametrize("gram", [np.ones((4, 4)), np.zeros((4, 4)), np.ones((1, 1))])
def test_median_squared_distance_is_one_where_no_items_differ(gram):
    assert median_squared_distance(gram) == 1.0


def test_linear_kernel_of_neurons_is_the_covariance_of_what_they_contribute():
    centred = ROWS - ROWS.mean(axis=0)
    contributed = centred[:, :, None] * WEIGHTS  # row, neuron, output
    expected = np.einsum("rsm,rtm->st", contributed, contributed) / len(ROWS)
    expected /= expected.diagonal().mean()
    np.testing.assert_allclose(linear_kernel(COVARIANCE, WEIGHTS), expected, rtol=1e-10, atol=1e-13)


def test_linear_kernel_of_edges_is_that_of_a_consumer_with_one_output():
    of_edges = linear_kernel(COVARIANCE, WEIGHTS[:, 0])
    np.testing.assert_allclose(of_edges, linear_kernel(COVARIANCE, WEIGHTS[:, :1]), rtol=1e-13, atol=1e-15)
    assert of_edges.diagonal().mean() == pytest.approx(1.0, rel=1e-14)


def test_linear_kernel_is_zero_where_nothing_varies():
    np.testing.assert_array_equal(linear_kernel(np.zeros((3, 3)), np.ones((3, 2))), np.zeros((3, 3)))


def test_kernels_leave_their_arguments_alone():
    gram, weights = GRAM.copy(), WEIGHTS.copy()
    for array in (gram, weights):
        array.setflags(write=False)
    rbf_kernel(edge_gram(gram, weights[:, 0]), 1.0)
    linear_kernel(gram, weights)
    median_squared_distance(gram, weights)
