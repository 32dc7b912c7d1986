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
