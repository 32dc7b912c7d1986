"""What outputs lack and feel: slopes and curvatures of what the package measures, by finite differences."""

from typing import Any

import numpy as np
import pytest
from models import Array, normal
from scipy.special import log_softmax, softmax

from onnxdpp.lacking import ENTRIES, TINY, Kind, Lacking, as_scores

ROWS = 7


def drawn(*shape: int, seed: int) -> Array:
    return normal(ROWS, *shape, seed=seed, dtype=np.float64)


def divergence(old: Array, new: Array) -> float:
    """Kullback-Leibler divergence of the softmax, summed over rows."""
    before, after = log_softmax(old, axis=1), log_softmax(new, axis=1)
    return float((np.exp(before) * (before - after)).sum())


def product(mine: Array, theirs: Array) -> float:
    return float((mine * theirs).sum())


# Scores: what the divergence feels


def test_errors_of_scores_go_down_the_slope_of_the_divergence() -> None:
    """As of least squares: minus the product of what is lacking with what a change moves, wherever one stands."""
    old, new, change = (drawn(5, seed=seed) for seed in (1, 2, 3))
    lacking = Lacking([old], [new], [1.0], [Kind.SCORES])
    step = 1e-5
    slope = (divergence(old, new + step * change) - divergence(old, new - step * change)) / (2 * step)
    assert product(lacking.errors[1], lacking.felt([change])[1]) == pytest.approx(-slope, rel=1e-8, abs=0)


def test_changes_of_scores_are_felt_by_the_curvature_of_the_divergence() -> None:
    old, change = (drawn(5, seed=seed) for seed in (1, 3))
    (_, felt) = Lacking([old], [old], [1.0], [Kind.SCORES]).felt([change])
    step = 1e-3
    curvature = (divergence(old, old + step * change) + divergence(old, old - step * change)) / step**2
    assert product(felt, felt) == pytest.approx(curvature, rel=1e-5, abs=0)


def test_size_of_small_errors_of_scores_is_twice_the_divergence() -> None:
    old, change = (drawn(5, seed=seed) for seed in (1, 3))
    new = old + 1e-4 * change
    (_, errors) = Lacking([old], [new], [1.0], [Kind.SCORES]).errors
    assert product(errors, errors) == pytest.approx(2 * divergence(old, new), rel=1e-4, abs=0)


def test_errors_of_scores_are_as_large_the_other_way_round() -> None:
    old, new = (drawn(5, seed=seed) for seed in (1, 2))
    there, back = (Lacking([a], [b], [1.0], [Kind.SCORES]).errors[1] for a, b in ((old, new), (new, old)))
    np.testing.assert_allclose(there, -back, rtol=1e-14)


def test_scores_that_move_together_are_not_felt() -> None:
    old, new = (drawn(5, seed=seed) for seed in (1, 2))
    (_, felt) = Lacking([old], [new], [1.0], [Kind.SCORES]).felt([np.tile(drawn(1, seed=3), 5)])
    assert np.abs(felt).max() < 1e-14


# Numbers: relative to their size


def test_errors_of_numbers_are_the_relative_distance() -> None:
    old, new = (drawn(2, 3, seed=seed) for seed in (1, 2))
    (errors,) = Lacking([old], [new], [1 / np.linalg.norm(old)], [Kind.NUMBERS]).errors
    assert np.linalg.norm(errors) == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-14, abs=0)


def test_changes_of_numbers_make_up_for_errors() -> None:
    """Whatever is lacking is nothing once the outputs have changed by it; of scores as of numbers."""
    old, new = ([drawn(4, seed=seed), drawn(2, 3, seed=seed + 1)] for seed in (1, 3))
    lacking = Lacking(old, new, [0.5, 2.0], [Kind.SCORES, Kind.NUMBERS])
    felt = lacking.felt([before - now for before, now in zip(old, new, strict=True)])
    np.testing.assert_allclose(felt[0], lacking.errors[0], rtol=1e-14, atol=0)
    assert felt[0].shape == (ROWS, 4 + 6)


def test_each_output_of_scores_has_its_part() -> None:
    old, new, change = ([drawn(size, seed=seed + size) for size in (4, 6, 3)] for seed in (1, 20, 40))
    kinds = [Kind.SCORES, Kind.NUMBERS, Kind.PROBABILITIES]
    together = Lacking(old, new, [1.0] * 3, kinds)
    alone = [Lacking([old[i]], [new[i]], [1.0], [kinds[i]]) for i in (0, 2)]
    assert np.array_equal(together.errors[1], np.hstack([part.errors[1] for part in alone]))
    felt = [part.felt([change[i]])[1] for part, i in zip(alone, (0, 2), strict=True)]
    assert np.array_equal(together.felt(change)[1], np.hstack(felt))


# Many numbers


def errors_of(rows: Array) -> Array:
    """Of numbers that are missing altogether."""
    return Lacking([rows], [np.zeros_like(rows)], [1.0], [Kind.NUMBERS]).errors[0]


def test_few_numbers_are_left_as_they_are() -> None:
    rows = drawn(ENTRIES, seed=1)
    assert np.array_equal(errors_of(rows), rows)


def test_sums_of_many_numbers_keep_inner_products_on_average() -> None:
    """Of unit vectors: each has its length, and two of them 0, or 1 or -1 as often as the other."""
    units = errors_of(np.eye(10 * ENTRIES + 5))
    assert units.shape[1] == ENTRIES
    products = units @ units.T
    assert (np.diagonal(products) == 1).all()
    others = products[~np.eye(len(products), dtype=bool)]
    assert others.any()
    assert abs(others[others != 0].mean()) < 4 / np.sqrt(np.count_nonzero(others) / 2)


def test_sums_of_changes_are_those_of_errors() -> None:
    rows = drawn(3 * ENTRIES, seed=1)
    (felt,) = Lacking([rows], [rows], [1.0], [Kind.NUMBERS]).felt([rows])
    assert np.array_equal(felt, errors_of(rows))


# What an output is


@pytest.mark.parametrize(
    ("batches", "options", "kind"),
    [
        ([softmax(drawn(3, seed=1), axis=1)], {}, Kind.PROBABILITIES),
        ([softmax(drawn(3, seed=1), axis=1)], {"padded": True}, Kind.NUMBERS),
        ([drawn(3, seed=1)], {}, Kind.SCORES),
        ([np.eye(3), drawn(3, seed=1)], {}, Kind.SCORES),
        ([np.eye(3), np.eye(3)], {}, Kind.PROBABILITIES),
        ([np.ones((ROWS, 1))], {}, Kind.NUMBERS),
        ([drawn(3, 3, seed=1)], {}, Kind.NUMBERS),
        ([drawn(seed=1)], {}, Kind.NUMBERS),
    ],
)
def test_kind_of_an_output_is_told_by_all_its_batches(
    batches: list[Array], options: dict[str, Any], kind: Kind
) -> None:
    assert Kind.of(batches, **{"padded": False, **options}) is kind


def test_scores_of_probabilities_have_them_as_their_softmax() -> None:
    probabilities = softmax(drawn(4, seed=1), axis=1)
    (scores,) = as_scores([probabilities], [Kind.PROBABILITIES])
    np.testing.assert_allclose(softmax(scores, axis=1), probabilities, rtol=1e-14)


def test_scores_of_what_is_impossible_are_finite() -> None:
    (scores,) = as_scores([np.eye(2)], [Kind.PROBABILITIES])
    assert np.array_equal(scores, np.log([[1, TINY], [TINY, 1]]))


@pytest.mark.parametrize("kind", [Kind.NUMBERS, Kind.SCORES])
def test_scores_of_what_is_no_probability_are_itself(kind: Kind) -> None:
    outputs = drawn(4, seed=1)
    assert as_scores([outputs], [kind])[0] is outputs
