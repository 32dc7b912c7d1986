"""A layer's edges: the same as output by output, whatever the workers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.dpp import log_esp, maximise_k_dpp
from onnxdpp.algebra.edges import EdgeKernel, maximise_edges, sample_edges
from onnxdpp.algebra.kernels import edge_gram, linear_kernel, rbf_kernel


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Small matrices: a second thread only waits."""
    with threadpool_limits(1):
        yield


N, M, K = 90, 40, 20
ROWS = np.random.default_rng(0).normal(size=(300, 12)) @ np.random.default_rng(1).normal(size=(12, N)) + 0.3
GRAM = ROWS.T @ ROWS / len(ROWS)
COVARIANCE = np.cov(ROWS, rowvar=False, bias=True)
WEIGHTS = np.random.default_rng(2).normal(size=(N, M))
RBF, LINEAR = EdgeKernel(GRAM, beta=0.02), EdgeKernel(COVARIANCE)


def whole_kernel(kernel, weights):
    if kernel.beta is None:
        return linear_kernel(kernel.moments, weights)
    return rbf_kernel(edge_gram(kernel.moments, weights), kernel.beta)


@pytest.mark.parametrize("kernel", [RBF, LINEAR])
def test_matrix_columns_and_diagonal_are_those_of_the_kernel(kernel):
    weights = WEIGHTS[:, 3]
    expected = whole_kernel(kernel, weights)
    np.testing.assert_allclose(kernel.matrix(weights), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(kernel.diagonal(weights), expected.diagonal(), rtol=1e-13)
    np.testing.assert_allclose(kernel.column(weights)(17), expected[17], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [RBF, LINEAR])
def test_modes_of_a_layer_are_those_of_its_outputs(kernel):
    variances = COVARIANCE.diagonal()
    chosen = maximise_edges(kernel, WEIGHTS, K, epsilon=0.01, variances=variances)
    assert chosen.shape == (K, M)
    for j in range(M):
        alone = maximise_k_dpp(
            whole_kernel(kernel, WEIGHTS[:, j]),
            K,
            epsilon=0.01,
            contribution=np.square(WEIGHTS[:, j]) * variances,
        )
        np.testing.assert_array_equal(chosen[:, j], alone)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_edges_do_not_depend_on_the_number_of_workers(workers):
    seed = np.random.SeedSequence(5)
    with ThreadPoolExecutor(workers) as executor:
        drawn = sample_edges(RBF, WEIGHTS, K, epsilon=0.01, seed=seed, executor=executor)
        chosen = maximise_edges(RBF, WEIGHTS, K, epsilon=0.01, executor=executor)
    np.testing.assert_array_equal(drawn, sample_edges(RBF, WEIGHTS, K, epsilon=0.01, seed=seed))
    np.testing.assert_array_equal(chosen, maximise_edges(RBF, WEIGHTS, K, epsilon=0.01))


def test_draws_of_equal_outputs_differ():
    drawn = sample_edges(RBF, WEIGHTS[:, [0] * 8], K, epsilon=0.01, seed=np.random.SeedSequence(0))
    assert len({tuple(kept) for kept in drawn.T.tolist()}) == 8


def test_seed_sequence_gives_the_same_edges_again_and_others_by_key():
    seed, other = np.random.SeedSequence(3).spawn(2)
    first, second, third = (sample_edges(RBF, WEIGHTS[:, :4], K, epsilon=0.01, seed=s) for s in (seed, seed, other))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_draws_of_a_layer_follow_the_marginals():
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(30, 8))
    kernel, weights = EdgeKernel(rows.T @ rows / 30, beta=0.4), np.linspace(0.2, 2, 8)
    drawn = sample_edges(kernel, np.tile(weights[:, None], 1500), 3, epsilon=0.01, seed=np.random.SeedSequence(1))
    likelihood = kernel.matrix(weights) + 0.01 * np.eye(8)
    values, vectors = np.linalg.eigh(likelihood)

    without = [log_esp(np.delete(values, j), 2)[2] for j in range(8)]
    p = np.square(vectors) @ (values * np.exp(np.array(without) - log_esp(values, 3)[3]))
    z = (np.bincount(drawn.ravel(), minlength=8) - 1500 * p) / np.sqrt(1500 * p * (1 - p))
    assert np.abs(z).max() < 3.5
    assert np.ptp(p) > 0.1


def test_output_without_weights_keeps_the_first_inputs():
    chosen = maximise_edges(LINEAR, np.zeros((N, 1)), 3, epsilon=0.01)
    assert chosen.tolist() == [[0], [1], [2]]


def test_pattern_holds_for_every_output():
    kept = maximise_edges(RBF, WEIGHTS, 2, epsilon=0.01, group=4)
    assert kept.shape == (46, M)  # 22 groups of four and one of two
    for column in kept.T:
        assert np.bincount(column // 4).tolist() == [2] * 23


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": WEIGHTS[:5]}, r"weights must be finite, \(90, m\) with m >= 1, got shape \(5, 40\)"),
        ({"weights": WEIGHTS[:, 0]}, r"got shape \(90,\)"),
        ({"weights": np.full((N, 1), np.nan)}, "weights must be finite"),
        ({"k": 91}, "k must be between 1 and the number of items 90, got 91"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"kernel": EdgeKernel(GRAM + np.triu(GRAM))}, r"moments \(90, 90\) must be symmetric"),
    ],
)
def test_arguments_that_cannot_be_are_refused(changes, message):
    arguments = {"kernel": RBF, "weights": WEIGHTS, "k": K, "epsilon": 0.01} | changes
    with pytest.raises(ValueError, match=message):
        maximise_edges(**arguments)
    with pytest.raises(ValueError, match=message):
        sample_edges(**arguments, seed=np.random.SeedSequence(0))
