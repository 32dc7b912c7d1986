"""The least-squares step: against rows, and the identities that need no rows."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Accumulator, Moments
from onnxdpp.algebra.refit import Fit, cut, refit_edges, refit_neurons, relative_loss, ridge, squared_error

Matrix = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
FORMS = st.sampled_from(["affine", "linear"])
RIDGE = {"affine": 1e-6, "linear": 1e-10}  # in units of the mean diagonal: DESIGN's λ, and λ → 0


class Problem:
    """Rows of the pruned model and of the original, weights, and what is kept."""

    def __init__(self, seed: int, r: int = 120, n: int = 9, m: int = 4, k: int = 5, *, paired: bool = True) -> None:
        rng = np.random.default_rng(seed)
        mixing = rng.standard_normal((n, n)) + 2 * np.eye(n)
        self.original: Matrix = rng.standard_normal((r, n)) @ mixing + 3 * rng.standard_normal(n)
        self.x: Matrix = self.original + 0.2 * rng.standard_normal((r, n)) if paired else self.original
        self.weights: Matrix = rng.standard_normal((n, m))
        self.keep = np.sort(rng.choice(n, k, replace=False))
        self.kept = np.stack([np.sort(rng.choice(n, k, replace=False)) for _ in range(m)], axis=1)
        self.paired = paired

    @property
    def y(self) -> Matrix:
        return self.original @ self.weights

    @property
    def moments(self) -> Moments:
        return moments_of(self.x, self.weights, self.original if self.paired else None)

    def answers(self, fit: Fit) -> Matrix:
        return self.x @ fit.weights + (0 if fit.intercept is None else fit.intercept)

    def error(self, fit: Fit) -> Matrix:
        """Mean squared error of each output, from the rows."""
        return ((self.answers(fit) - self.y) ** 2).mean(0)


def moments_of(x: Matrix, weights: Matrix, original: Matrix | None = None) -> Moments:
    accumulator = Accumulator(weights, paired=original is not None)
    accumulator.update(x, original)
    return accumulator.moments()


def lstsq(x: Matrix, y: Matrix, weights: Matrix, form: str, ridge: float) -> tuple[Matrix, Matrix | None]:
    """Minimise ``|x W + b - y|² / r + λ |W - weights|²`` by stacking the second part below the rows."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    if form == "affine":
        x, y = x - mean_x, y - mean_y
    penalty = np.sqrt(ridge * np.trace(x.T @ x) / x.shape[1]) * np.eye(x.shape[1])
    found = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, penalty @ weights]))[0]
    return found, mean_y - mean_x @ found if form == "affine" else None


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@given(seed=SEEDS, form=FORMS, k=st.integers(1, 9), paired=st.booleans())
@settings(deadline=None, max_examples=60)
def test_refit_of_neurons_is_lstsq_with_a_ridge_towards_the_original(
    seed: int, form: str, k: int, paired: bool
) -> None:
    problem = Problem(seed, k=k, paired=paired)
    fit = refit_neurons(problem.moments, problem.keep, form)
    weights, intercept = lstsq(problem.x[:, problem.keep], problem.y, problem.weights[problem.keep], form, RIDGE[form])
    scale = np.abs(weights).max()
    np.testing.assert_allclose(fit.weights[problem.keep], weights, rtol=0, atol=1e-7 * scale)
    if form == "affine":
        assert fit.intercept is not None
        np.testing.assert_allclose(fit.intercept, intercept, rtol=0, atol=1e-6 * scale)
    else:
        assert fit.intercept is None


@pytest.mark.parametrize("form", ["affine", "linear"])
def test_refit_of_well_conditioned_rows_is_plain_lstsq(form: str) -> None:
    rng = np.random.default_rng(0)
    x, weights, keep = rng.standard_normal((300, 8)) + 1.0, rng.standard_normal((8, 3)), np.array([0, 2, 5, 6])
    columns = np.hstack([x[:, keep], np.ones((300, 1))]) if form == "affine" else x[:, keep]
    expected = np.linalg.lstsq(columns, x @ weights)[0]
    fit = refit_neurons(moments_of(x, weights), keep, form)
    np.testing.assert_allclose(fit.weights[keep], expected[:4], rtol=0, atol=1e-5 if form == "affine" else 1e-9)
    if form == "affine":
        np.testing.assert_allclose(fit.intercept, expected[4], rtol=0, atol=1e-5)


@given(seed=SEEDS, form=FORMS, paired=st.booleans())
@settings(deadline=None, max_examples=40)
def test_dropped_inputs_have_zero_weights(seed: int, form: str, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    dropped = np.setdiff1d(np.arange(9), problem.keep)
    assert not refit_neurons(problem.moments, problem.keep, form).weights[dropped].any()
    with ThreadPoolExecutor(1) as one:
        weights = refit_edges(problem.moments, problem.kept, form, one).weights
    for output, kept in enumerate(problem.kept.T):
        assert not np.delete(weights[:, output], kept).any()


@given(seed=SEEDS, form=FORMS, r=st.integers(1, 60), k=st.integers(1, 9), paired=st.booleans())
@settings(deadline=None, max_examples=80)
def test_refit_is_never_worse_on_the_fitted_rows_than_cut(seed: int, form: str, r: int, k: int, paired: bool) -> None:
    problem = Problem(seed, r=r, k=k, paired=paired)
    rounding = 1e-9 * (problem.y**2).mean(0)
    after = problem.error(refit_neurons(problem.moments, problem.keep, form))
    assert (after <= problem.error(cut(problem.moments, problem.keep)) + rounding).all()
    with ThreadPoolExecutor(1) as one:
        edges, bare = (refit_edges(problem.moments, problem.kept, each, one) for each in (form, "none"))
    assert (problem.error(edges) <= problem.error(bare) + rounding).all()


@given(seed=SEEDS, form=FORMS)
@settings(deadline=None, max_examples=30)
def test_affine_is_never_worse_than_linear_on_the_fitted_rows(seed: int, form: str) -> None:
    problem = Problem(seed)
    affine, linear = (problem.error(refit_neurons(problem.moments, problem.keep, f)) for f in ("affine", "linear"))
    # affine has the larger ridge, which costs at most its own share of the mean square
    assert (affine <= linear + 1e-5 * (problem.y**2).mean(0)).all()


@given(seed=SEEDS, form=FORMS, r=st.integers(2, 60))
@settings(deadline=None, max_examples=50)
def test_keeping_everything_changes_nothing(seed: int, form: str, r: int) -> None:
    problem = Problem(seed, r=r, k=9, paired=False)
    with ThreadPoolExecutor(1) as one:
        fits = [
            refit_neurons(problem.moments, problem.keep, form),
            refit_edges(problem.moments, problem.kept, form, one),
        ]
    scale = np.abs(problem.y).max()
    for fit in fits:
        assert np.abs(problem.answers(fit) - problem.y).max() <= 1e-9 * scale
        if form == "affine":
            assert np.abs(fit.weights - problem.weights).max() <= 1e-7
            assert np.abs(fit.intercept).max() <= 1e-7 * scale


@given(seed=SEEDS, form=FORMS)
@settings(deadline=None, max_examples=30)
def test_keeping_everything_on_many_rows_leaves_the_weights(seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((200, 9)), rng.standard_normal((9, 4))
    fit = refit_neurons(moments_of(x, weights), np.arange(9), form)
    np.testing.assert_allclose(fit.weights, weights, rtol=0, atol=1e-9)


@given(seed=SEEDS, form=st.sampled_from(["affine", "linear", "none"]), paired=st.booleans())
@settings(deadline=None, max_examples=40)
def test_permuting_neurons_permutes_the_answer(seed: int, form: str, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    fit = refit_neurons(problem.moments, problem.keep, form)
    order = np.random.default_rng(seed).permutation(9)
    original = problem.original[:, order] if paired else None
    moved = moments_of(problem.x[:, order], problem.weights[order], original)
    permuted = refit_neurons(moved, np.flatnonzero(np.isin(order, problem.keep)), form)
    np.testing.assert_allclose(permuted.weights, fit.weights[order], rtol=0, atol=1e-7 * np.abs(fit.weights).max())
    if form == "affine":
        np.testing.assert_allclose(permuted.intercept, fit.intercept, rtol=0, atol=1e-6 * np.abs(fit.weights).max())


@given(seed=SEEDS, form=FORMS)
@settings(deadline=None, max_examples=30)
def test_duplicated_neuron_costs_nothing_to_drop(seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((150, 8)) + 0.5, rng.standard_normal((8, 3))
    first, second = rng.choice(8, 2, replace=False)
    x[:, second] = x[:, first]
    keep = np.delete(np.arange(8), second)
    moments = moments_of(x, weights)
    fit = refit_neurons(moments, keep, form)
    np.testing.assert_allclose(fit.weights[first], weights[first] + weights[second], rtol=0, atol=1e-4)
    loss = relative_loss([(moments, fit)])
    assert loss is not None
    assert loss < 1e-5
    cost = relative_loss([(moments, cut(moments, keep))])
    assert cost is not None
    assert cost > 1e-3


@given(seed=SEEDS, value=st.floats(-1e3, 1e3))
@settings(deadline=None, max_examples=30)
def test_constant_neuron_costs_nothing_to_drop_in_affine_form(seed: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((150, 6)), rng.standard_normal((6, 3))
    x[:, 2] = value
    keep = np.delete(np.arange(6), 2)
    fit = refit_neurons(moments_of(x, weights), keep, "affine")
    scale = 1 + abs(value)
    np.testing.assert_allclose(fit.weights[keep], weights[keep], rtol=0, atol=1e-7 * scale)
    np.testing.assert_allclose(fit.intercept, value * weights[2], rtol=0, atol=1e-7 * scale)


@given(seed=SEEDS, form=FORMS, paired=st.booleans())
@settings(deadline=None, max_examples=30)
def test_dead_inputs_keep_their_weights_exactly(seed: int, form: str, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    dead = problem.keep[:2]
    problem.x[:, dead] = 0  # where not paired, of the original, too
    np.testing.assert_array_equal(
        refit_neurons(problem.moments, problem.keep, form).weights[dead], problem.weights[dead]
    )
    problem.kept[:] = problem.keep[:, None]
    with ThreadPoolExecutor(1) as one:
        edges = refit_edges(problem.moments, problem.kept, form, one)
    np.testing.assert_array_equal(edges.weights[dead], problem.weights[dead])


@given(seed=SEEDS, r=st.integers(1, 2000), n=st.integers(1, 12), exponent=st.integers(-3, 4), paired=st.booleans())
@settings(deadline=None, max_examples=60)
def test_equal_rows_leave_the_weights_and_cost_nothing(seed: int, r: int, n: int, exponent: int, paired: bool) -> None:
    rng = np.random.default_rng(seed)
    x = np.tile((rng.standard_normal(n) * 10.0**exponent).astype(np.float32), (r, 1)).astype(np.float64)
    weights = rng.standard_normal((n, 3))
    keep = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
    moments = moments_of(x, weights, 1.1 * x if paired else None)
    fit = refit_neurons(moments, keep, "affine")
    np.testing.assert_array_equal(fit.weights[keep], weights[keep])
    assert relative_loss([(moments, fit)]) == 0


@given(seed=SEEDS, form=FORMS, r=st.integers(1, 30), rank=st.integers(0, 4), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(deadline=None, max_examples=100)
def test_refit_survives_any_rank_and_scale(seed: int, form: str, r: int, rank: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    n, m = 20, 3  # mostly fewer rows than neurons
    x = (rng.standard_normal((r, rank)) @ rng.standard_normal((rank, n))).astype(np.float32) * scale
    weights = rng.standard_normal((n, m))
    moments = moments_of(x.astype(np.float64), weights, None if seed % 2 else x + 0.1 * scale)
    keep = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
    with ThreadPoolExecutor(1) as one:
        fits = [
            refit_neurons(moments, keep, form),
            refit_edges(moments, np.repeat(keep[:, None], m, 1), form, one),
        ]
    for fit in fits:
        assert np.isfinite(fit.weights).all()
        assert fit.intercept is None or np.isfinite(fit.intercept).all()
        assert np.isfinite(squared_error(moments, fit)).all()


@given(seed=SEEDS, size=st.floats(1e-7, 1e-5), rank=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_refit_survives_tiny_deviations_from_a_large_mean(seed: int, size: float, rank: int) -> None:
    """Rounding of the Gram then exceeds the ridge, which is a share of the covariance."""
    rng = np.random.default_rng(seed)
    x = 1 + size * rng.standard_normal((200, rank)) @ rng.standard_normal((rank, 20))
    weights = rng.standard_normal((20, 3))
    keep = np.arange(12)
    fit = refit_neurons(moments_of(x, weights), keep, "affine")
    y = x @ weights
    assert np.isfinite(fit.weights).all()
    left = np.abs(x @ fit.weights + fit.intercept - y).max()
    assert left <= 10 * np.abs(y - y.mean(0)).max() + 1e-9


def test_rounding_of_large_means_is_no_intercept() -> None:
    """It would be large beside a small bias."""
    x = np.exp(np.random.default_rng(0).normal(0, 12, (500, 6)))
    fit = refit_neurons(moments_of(x, np.ones((6, 3))), np.arange(6), "affine")
    np.testing.assert_allclose(fit.weights, 1, rtol=1e-12)
    assert fit.intercept is not None
    np.testing.assert_array_equal(fit.intercept, np.zeros(3))


@pytest.mark.parametrize("form", ["affine", "linear"])
def test_all_zero_gram_keeps_the_weights(form: str, executor: Executor) -> None:
    weights = np.arange(1.0, 9.0).reshape(4, 2)
    moments = moments_of(np.zeros((5, 4)), weights)
    keep = np.array([1, 3])
    for fit in (
        refit_neurons(moments, keep, form),
        refit_edges(moments, np.array([[1, 1], [3, 3]]), form, executor),
    ):
        np.testing.assert_array_equal(fit.weights, [[0, 0], [3, 4], [0, 0], [7, 8]])
        assert fit.intercept is None or not fit.intercept.any()
        assert relative_loss([(moments, fit)]) == 0


def test_gram_that_no_rows_have_is_refused() -> None:
    gram = np.array([[1.0, 2.0], [2.0, 1.0]])
    moments = Moments(5, np.ones((2, 1)), gram, np.zeros(2), np.ones((2, 1)), np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        refit_neurons(moments, np.arange(2), "linear")


@given(
    seed=SEEDS,
    form=st.sampled_from(["affine", "linear", "none"]),
    edges=st.booleans(),
    paired=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_squared_error_equals_brute_force_on_rows(seed: int, form: str, edges: bool, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    if edges:
        with ThreadPoolExecutor(1) as one:
            fit = refit_edges(problem.moments, problem.kept, form, one)
    else:
        fit = refit_neurons(problem.moments, problem.keep, form)
    rounding = 1e-11 * (problem.y**2).mean(0).max()
    np.testing.assert_allclose(squared_error(problem.moments, fit), problem.error(fit), rtol=1e-9, atol=rounding)


@given(seed=SEEDS, intercept=st.booleans(), paired=st.booleans())
@settings(deadline=None, max_examples=30)
def test_squared_error_of_any_weights_equals_brute_force(seed: int, intercept: bool, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    rng = np.random.default_rng(seed + 1)
    weights = rng.standard_normal((9, 4))
    weights[rng.random(9) < 0.5] = 0
    fit = Fit(weights, rng.standard_normal(4) if intercept else None)
    np.testing.assert_allclose(squared_error(problem.moments, fit), problem.error(fit), rtol=1e-9)


@given(seed=SEEDS, form=st.sampled_from(["affine", "linear", "none"]), paired=st.booleans())
@settings(deadline=None, max_examples=40)
def test_refit_of_edges_is_that_of_neurons_column_by_column(seed: int, form: str, paired: bool) -> None:
    problem = Problem(seed, paired=paired)
    with ThreadPoolExecutor(2) as two:
        edges = refit_edges(problem.moments, problem.kept, form, two)
    for output, kept in enumerate(problem.kept.T):
        original = problem.original if paired else None
        alone = refit_neurons(moments_of(problem.x, problem.weights[:, [output]], original), kept, form)
        scale = np.abs(alone.weights).max()
        np.testing.assert_allclose(edges.weights[:, [output]], alone.weights, rtol=0, atol=1e-7 * scale)
        if form == "affine":
            assert edges.intercept is not None
            assert edges.intercept[output] == pytest.approx(alone.intercept, rel=0, abs=1e-6 * scale)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("form", ["affine", "linear", "none"])
def test_refit_of_edges_is_the_same_for_any_number_of_workers(form: str, workers: int, executor: Executor) -> None:
    problem = Problem(1, n=9, m=30)
    expected = refit_edges(problem.moments, problem.kept, form, executor)
    with ThreadPoolExecutor(workers) as pool:
        found = refit_edges(problem.moments, problem.kept, form, pool)
    assert found.weights.tobytes() == expected.weights.tobytes()


@pytest.mark.parametrize("form", ["affine", "linear", "none"])
def test_refit_changes_no_argument(form: str, executor: Executor) -> None:
    problem = Problem(2)
    moments = problem.moments
    names = ("gram", "weights", "cross", "mean_x", "mean_y", "power_y", "covariance", "cross_covariance")
    copies = {name: getattr(moments, name).copy() for name in names}
    fit = refit_neurons(moments, problem.keep, form)
    refit_edges(moments, problem.kept, form, executor)
    squared_error(moments, fit)
    for name, copy in copies.items():
        assert np.array_equal(getattr(moments, name), copy), name


def test_cut_keeps_the_original_weights_and_nothing_else() -> None:
    moments = moments_of(np.ones((2, 3)), np.arange(6.0).reshape(3, 2))
    fit = cut(moments, np.array([2]))
    np.testing.assert_array_equal(fit.weights, [[0, 0], [0, 0], [4, 5]])
    assert fit.intercept is None


# relative_loss


def test_relative_loss_equals_brute_force_over_all_consumers_together() -> None:
    problems = [Problem(3), Problem(4, m=2, paired=False)]
    fits = [refit_neurons(problem.moments, problem.keep, "affine") for problem in problems]
    error = sum(
        ((problem.answers(fit) - problem.y) ** 2).mean(0).sum() for problem, fit in zip(problems, fits, strict=True)
    )
    variance = sum(problem.y.var(0).sum() for problem in problems)
    found = relative_loss([(problem.moments, fit) for problem, fit in zip(problems, fits, strict=True)])
    assert found == pytest.approx(np.sqrt(error / variance), rel=1e-9)


def test_relative_loss_of_a_constant_answer_is_one() -> None:
    problem = Problem(5, paired=False)
    fit = Fit(np.zeros((9, 4)), problem.y.mean(0))
    assert relative_loss([(problem.moments, fit)]) == pytest.approx(1, rel=1e-9)


def test_relative_loss_is_none_where_outputs_do_not_vary_but_the_new_ones_err() -> None:
    moments = moments_of(np.full((7, 2), 0.3), np.ones((2, 1)))
    assert relative_loss([(moments, cut(moments, np.array([0])))]) is None


def test_relative_loss_is_zero_where_outputs_do_not_vary_and_nothing_errs() -> None:
    moments = moments_of(np.full((7, 2), 0.3), np.ones((2, 1)))
    assert relative_loss([(moments, refit_neurons(moments, np.array([0]), "affine"))]) == 0
    assert relative_loss([(moments, cut(moments, np.array([0, 1])))]) == 0


def test_relative_loss_is_zero_where_everything_is_zero() -> None:
    moments = moments_of(np.zeros((7, 2)), np.ones((2, 1)))
    assert relative_loss([(moments, cut(moments, np.array([0])))]) == 0


def test_relative_loss_of_one_constant_consumer_is_judged_by_the_varying_one() -> None:
    problem = Problem(6, paired=False)
    constant = moments_of(np.full((7, 9), 0.3), np.ones((9, 1)))
    fit = refit_neurons(problem.moments, problem.keep, "affine")
    alone = relative_loss([(problem.moments, fit)])
    both: list[Any] = [(problem.moments, fit), (constant, refit_neurons(constant, problem.keep, "affine"))]
    assert relative_loss(both) == pytest.approx(alone, rel=1e-9)


def test_refit_on_scarce_rows_does_not_follow_their_noise() -> None:
    """102 rows for 100 kept inputs: the plain ridge errs by tens of times the signal on rows that it has not seen."""
    rng = np.random.default_rng(0)
    first, weights = rng.standard_normal((20, 200)), rng.standard_normal((200, 5))
    seen, unseen = (np.maximum(rng.standard_normal((r, 20)) @ first, 0) for r in (102, 1000))
    keep = np.arange(100)
    problem = moments_of(seen, weights)
    fit = refit_neurons(problem, keep, "affine")
    y = unseen @ weights
    assert fit.intercept is not None
    missed = np.linalg.norm(unseen @ fit.weights + fit.intercept - y) / np.linalg.norm(y - y.mean(0))
    assert missed < 0.8
    assert missed < np.linalg.norm(unseen @ cut(problem, keep).weights - y) / np.linalg.norm(y - y.mean(0))


@pytest.mark.parametrize(("r", "form", "expected"), [(19, "affine", 1e-2), (20, "affine", 1e-6), (5, "linear", 1e-10)])
def test_ridge_depends_on_rows_for_each_kept_input(r: int, form: str, expected: float) -> None:
    assert ridge(moments_of(np.ones((r, 12)), np.ones((12, 1))), 10, form) == expected
