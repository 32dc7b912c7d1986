"""Second moments: sums over rows, however the rows come."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdpp.algebra import moments as moments_module
from onnxdpp.algebra.moments import Accumulator, Moments
from onnxdpp.algebra.refit import Fit, relative_loss, squared_error

Matrix = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
FIELDS = ("gram", "mean_x", "cross", "mean_y", "power_y")


def brute_force(x: NDArray[Any], weights: Matrix, original: NDArray[Any] | None = None) -> dict[str, Matrix]:
    """Each field of Moments, from its definition."""
    rows = x.astype(np.float64)
    y = (rows if original is None else original.astype(np.float64)) @ weights
    return {
        "gram": rows.T @ rows / len(rows),
        "mean_x": rows.mean(0),
        "cross": rows.T @ y / len(rows),
        "mean_y": y.mean(0),
        "power_y": (y**2).mean(0),
    }


def accumulated(x: NDArray[Any], weights: Matrix, original: NDArray[Any] | None = None) -> Moments:
    accumulator = Accumulator(weights, paired=original is not None)
    accumulator.update(x, original)
    return accumulator.moments()


def assert_near(found: Any, expected: dict[str, Matrix], tolerance: float) -> None:
    """Each field to `tolerance` of its largest entry."""
    for name, value in expected.items():
        scale = float(np.abs(value).max(initial=1e-300))
        np.testing.assert_allclose(getattr(found, name), value, rtol=0, atol=tolerance * scale, err_msg=name)


def drawn(seed: int, r: int, n: int, m: int, dtype: Any = np.float64) -> tuple[NDArray[Any], NDArray[Any], Matrix]:
    """Rows of the pruned model, rows of the original, weights."""
    rng = np.random.default_rng(seed)
    original = rng.standard_normal((r, n)) + rng.standard_normal(n)
    return (original + 0.3 * rng.standard_normal((r, n))).astype(dtype), original.astype(dtype), rng.normal(size=(n, m))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(seed=SEEDS, r=st.integers(1, 80), n=st.integers(1, 12), m=st.integers(1, 5), paired=st.booleans())
@settings(deadline=None, max_examples=30)
def test_moments_equal_brute_force_from_rows(dtype: Any, seed: int, r: int, n: int, m: int, paired: bool) -> None:
    x, original, weights = drawn(seed, r, n, m, dtype)
    pair = original if paired else None
    found = accumulated(x, weights, pair)
    assert found.count == r
    assert_near(found, brute_force(x, weights, pair), 1e-12)
    # exact in the rows' own type: no float16 or float32 sum anywhere
    assert all(getattr(found, name).dtype == np.float64 for name in FIELDS)


@given(
    seed=SEEDS,
    cuts=st.lists(st.integers(0, 60), max_size=6),
    order=st.randoms(use_true_random=False),
    paired=st.booleans(),
    block=st.integers(1, 70),
)
@settings(deadline=None, max_examples=50)
def test_moments_do_not_depend_on_blocks_or_merge_order(
    seed: int, cuts: list[int], order: Any, paired: bool, block: int
) -> None:
    x, original, weights = drawn(seed, 60, 7, 3)
    pair = original if paired else None
    whole = accumulated(x, weights, pair)
    bounds = [0, *sorted(cuts), 60]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "BLOCK", block)
        parts = []
        for start, stop in pairwise(bounds):
            part = Accumulator(weights, paired=paired)
            part.update(x[start:stop], None if pair is None else pair[start:stop])
            parts.append(part)
    order.shuffle(parts)
    for other in parts[1:]:
        parts[0].merge(other)
    merged = parts[0].moments()
    assert merged.count == 60
    assert_near(merged, {name: getattr(whole, name) for name in FIELDS}, 1e-13)


@given(seed=SEEDS, r=st.integers(1, 50))
@settings(deadline=None, max_examples=30)
def test_paired_moments_of_equal_rows_are_the_unpaired_ones(seed: int, r: int) -> None:
    x, _, weights = drawn(seed, r, 6, 4)
    unpaired = accumulated(x, weights)
    assert_near(accumulated(x, weights, x), {name: getattr(unpaired, name) for name in FIELDS}, 1e-13)


def test_rows_beyond_one_block_are_all_counted() -> None:
    x, original, weights = drawn(0, 3 * moments_module.BLOCK + 5, 4, 2)
    assert_near(accumulated(x, weights, original), brute_force(x, weights, original), 1e-12)


def test_gram_and_covariance_are_symmetric_to_the_bit() -> None:
    x, _, weights = drawn(1, 500, 40, 3)
    found = accumulated(x, weights)
    assert np.array_equal(found.gram, found.gram.T)
    assert np.array_equal(found.covariance, found.covariance.T)


@pytest.mark.parametrize("paired", [False, True])
def test_covariance_under_a_mean_of_100_is_exact_to_1e_9(paired: bool) -> None:
    rng = np.random.default_rng(2)
    deviations = rng.standard_normal((5000, 8))
    deviations -= deviations.mean(0)
    x, weights = deviations + 100.0, rng.standard_normal((8, 3))
    found = accumulated(x, weights, x if paired else None)
    expected = deviations.T @ deviations / len(x)
    variances = np.diag(expected)
    near = {"rtol": 0, "atol": 1e-9 * variances.min()}
    np.testing.assert_allclose(found.covariance, expected, **near)
    np.testing.assert_allclose(found.variance_x, variances, **near)
    np.testing.assert_allclose(found.cross_covariance, expected @ weights, **near)
    np.testing.assert_allclose(found.variance_y, ((deviations @ weights) ** 2).mean(0), rtol=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_dead_input_stays_exactly_zero(paired: bool) -> None:
    x, original, weights = drawn(3, 300, 9, 4, np.float32)
    x[:, 5] = 0
    found = accumulated(x, weights, original if paired else None)
    for matrix in (found.gram, found.covariance):
        assert not matrix[5].any()
        assert not matrix[:, 5].any()
    assert found.mean_x[5] == 0
    assert found.variance_x[5] == 0
    assert not found.cross[5].any()
    assert not found.cross_covariance[5].any()


@given(seed=SEEDS, r=st.integers(1, 300), n=st.integers(2, 70))
@settings(deadline=None, max_examples=30)
def test_duplicate_inputs_have_equal_moments(seed: int, r: int, n: int) -> None:
    x, _, weights = drawn(seed, r, n, 2, np.float32)
    first, second = np.random.default_rng(seed).choice(n, 2, replace=False)
    x[:, second] = x[:, first]
    found = accumulated(x, weights)
    largest = np.diag(found.gram).max()
    np.testing.assert_allclose(found.gram[first], found.gram[second], rtol=0, atol=1e-14 * largest)
    np.testing.assert_allclose(found.gram[first, first], found.gram[first, second], rtol=1e-14)


@given(seed=SEEDS, r=st.integers(1, 3000), n=st.integers(1, 20), exponent=st.integers(-3, 4), paired=st.booleans())
@settings(deadline=None, max_examples=40)
def test_constant_inputs_have_exactly_no_variance(seed: int, r: int, n: int, exponent: int, paired: bool) -> None:
    rng = np.random.default_rng(seed)
    row = (rng.standard_normal(n) * 10.0**exponent).astype(np.float32)
    x, weights = np.tile(row, (r, 1)), rng.standard_normal((n, 3))
    found = accumulated(x, weights, x if paired else None)
    assert not found.covariance.any()
    assert not found.cross_covariance.any()
    assert not found.variance_x.any()
    assert not found.variance_y.any()


def test_constant_input_beside_a_varying_one_leaves_its_covariance_alone() -> None:
    x, _, weights = drawn(4, 400, 5, 2)
    expected = accumulated(x, weights).covariance
    x[:, 2] = 0.3
    found = accumulated(x, weights)
    others = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    np.testing.assert_allclose(found.covariance[others], expected[others], rtol=1e-12)
    assert not found.covariance[2].any()


def test_update_changes_neither_rows_nor_weights() -> None:
    x, original, weights = drawn(5, 30, 4, 2)
    before = x.copy(), original.copy(), weights.copy()
    accumulated(x, weights, original)
    for array, copy in zip((x, original, weights), before, strict=True):
        assert np.array_equal(array, copy)


def test_moments_can_be_taken_in_between() -> None:
    x, _, weights = drawn(6, 40, 4, 2)
    accumulator = Accumulator(weights, paired=False)
    accumulator.update(x[:15])
    half = accumulator.moments()
    kept = half.gram.copy()
    accumulator.update(x[15:])
    assert np.array_equal(half.gram, kept)
    assert_near(accumulator.moments(), brute_force(x, weights), 1e-13)


# Between outputs, and through a root


def rooted(seed: int, m: int, q: int) -> Matrix:
    return np.random.default_rng(seed + 1).standard_normal((m, q))


def between(x: NDArray[Any], weights: Matrix, original: NDArray[Any] | None, cuts: list[int]) -> Moments:
    """With those between outputs, of rows that come in parts which are merged."""
    parts = []
    for start, stop in pairwise([0, *sorted(cuts), len(x)]):
        part = Accumulator(weights, paired=original is not None, between=True)
        part.update(x[start:stop], None if original is None else original[start:stop])
        parts.append(part)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0].moments()


@given(seed=SEEDS, m=st.integers(1, 5), q=st.integers(1, 5), paired=st.booleans(), cuts=st.lists(st.integers(0, 40)))
@settings(deadline=None, max_examples=40)
def test_moments_through_a_root_are_those_of_the_weights_times_it(
    seed: int, m: int, q: int, paired: bool, cuts: list[int]
) -> None:
    x, original, weights = drawn(seed, 40, 6, m)
    pair, root = original if paired else None, rooted(seed, m, q)
    found, expected = between(x, weights, pair, cuts).through(root), accumulated(x, weights @ root, pair)
    assert found.count == expected.count
    assert_near(found, {name: getattr(expected, name) for name in (*FIELDS, "weights")}, 1e-10)
    scale = expected.magnitude_y.max()
    np.testing.assert_allclose(found.variance_y, expected.variance_y, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("paired", [False, True])
def test_moments_between_outputs_are_those_of_the_rows(paired: bool) -> None:
    x, original, weights = drawn(7, 2 * moments_module.BLOCK + 3, 5, 4)
    y = (original if paired else x) @ weights
    found = between(x, weights, original if paired else None, [100]).square_y
    assert found is not None
    np.testing.assert_allclose(found, y.T @ y / len(y), rtol=0, atol=1e-12 * np.abs(found).max())


def test_moments_between_outputs_of_a_layer_with_inputs_gone() -> None:
    x, original, weights = drawn(8, 50, 6, 3)
    left, root = np.array([0, 2, 5]), rooted(8, 3, 3)
    found, expected = Accumulator(weights, paired=True, left=left, between=True), Accumulator(
        weights @ root, paired=True, left=left
    )  # fmt: skip
    for accumulator in (found, expected):
        accumulator.update(x[:, left], original)
    whole = expected.moments()
    assert_near(found.moments().through(root), {name: getattr(whole, name) for name in (*FIELDS, "weights")}, 1e-12)


@given(seed=SEEDS, share=st.integers(1, 39), paired=st.booleans())
@settings(deadline=None, max_examples=20)
def test_merged_moments_go_through_a_root_as_all_rows_do(seed: int, share: int, paired: bool) -> None:
    x, original, weights = drawn(seed, 40, 5, 3)
    pair, root = original if paired else None, rooted(seed, 3, 2)
    first, second = (
        between(x[part], weights, None if pair is None else pair[part], [])
        for part in (slice(share), slice(share, None))
    )
    expected = accumulated(x, weights @ root, pair)
    assert_near(first.merged(second).through(root), {name: getattr(expected, name) for name in FIELDS}, 1e-10)
    assert first.merged(accumulated(x[share:], weights, None if pair is None else pair[share:])).square_y is None


@given(seed=SEEDS, q=st.integers(1, 4), paired=st.booleans(), intercept=st.booleans())
@settings(deadline=None, max_examples=30)
def test_squared_errors_through_a_root_add_up_to_weighted_ones(
    seed: int, q: int, paired: bool, intercept: bool
) -> None:
    """Those of any weights, from rows: the mean of ``e' M e``, with M the root times its transpose."""
    x, original, weights = drawn(seed, 30, 5, 3)
    root, other = rooted(seed, 3, q), rooted(seed + 1, 5, 3)
    bias = rooted(seed + 2, 1, 3)[0] if intercept else None
    errors = x @ other + (0 if bias is None else bias) - (original if paired else x) @ weights
    expected = np.einsum("ri,ij,rj->r", errors, root @ root.T, errors).mean()
    felt = between(x, weights, original if paired else None, []).through(root)
    found = squared_error(felt, Fit(other @ root, None if bias is None else bias @ root)).sum()
    assert found == pytest.approx(expected, rel=1e-9)


def test_equal_roots_leave_the_loss_as_it_was() -> None:
    x, original, weights = drawn(9, 50, 5, 3)
    sums, other = between(x, weights, original, []), rooted(9, 5, 3)
    losses = [
        relative_loss([(sums, Fit(other, None))]),
        relative_loss([(sums.through(3 * np.eye(3)), Fit(3 * other, None))]),
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_moments_without_those_between_outputs_go_through_no_root() -> None:
    x, _, weights = drawn(10, 20, 4, 2)
    with pytest.raises(ValueError, match="between outputs were not wanted"):
        accumulated(x, weights).through(np.eye(2))


def test_moments_of_no_rows_are_refused() -> None:
    accumulator = Accumulator(np.ones((2, 1)), paired=False)
    accumulator.update(np.empty((0, 2), np.float32))
    with pytest.raises(ValueError, match="no rows"):
        accumulator.moments()


@pytest.mark.parametrize("paired", [False, True])
def test_original_rows_are_taken_exactly_when_paired(paired: bool) -> None:
    accumulator = Accumulator(np.ones((2, 1)), paired=paired)
    with pytest.raises(ValueError, match="exactly when the moments are paired"):
        accumulator.update(np.ones((3, 2)), None if paired else np.ones((3, 2)))
