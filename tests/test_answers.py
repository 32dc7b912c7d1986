"""Distances of answers: identities first."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxdpp.answers import Answers
from onnxdpp.graph.padding import blanked

MATRIX = arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.integers(-50, 50))


def apart(before: Any, after: Any, labels: Any = None, padding: Any = None) -> Answers:
    found = Answers()
    found.add(np.asarray(before), np.asarray(after), None if labels is None else np.asarray(labels), padding)
    return found


@given(MATRIX)
def test_nothing_lies_apart_from_itself(x: np.ndarray) -> None:
    found = apart(x, x).result()
    assert (found["relative_l2"], found["max_abs"]) == (0, 0)
    assert found["cosine"] == (1 if x.any() else None)
    assert found["agreement"] == (1 if x.shape[1] > 1 else None)


@given(MATRIX, st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_keeps_angle_and_classes(x: np.ndarray, factor: float) -> None:
    found = apart(x, factor * x).result()
    if x.any():
        assert found["relative_l2"] == pytest.approx(abs(factor - 1), rel=1e-12)
        assert found["cosine"] == pytest.approx(1, rel=1e-12)
    assert found["agreement"] == (1 if x.shape[1] > 1 else None)


@given(MATRIX)
def test_the_opposite_has_the_cosine_of_minus_one(x: np.ndarray) -> None:
    assert apart(x, -x).result()["cosine"] == (pytest.approx(-1, abs=1e-15) if x.any() else None)


@given(MATRIX, st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_batches_do_not_matter(x: np.ndarray, seed: int, cut: int) -> None:
    y = np.random.default_rng(seed).permuted(x, axis=1)  # whole numbers, so that sums are exact
    whole, parts = apart(x, y), Answers()
    for piece in (slice(None, cut), slice(cut, None)):
        if len(x[piece]):
            parts.add(x[piece], y[piece])
    assert whole.result() == parts.result()


@given(arrays(np.float64, (4, 3, 2), elements=st.integers(-50, 50)), arrays(np.bool_, (4, 3)))
def test_padding_counts_for_nothing(x: np.ndarray, padding: np.ndarray) -> None:
    """Whatever stands there: what is measured is what is left."""
    y = np.random.default_rng(0).permuted(x, axis=1)
    found, left = Answers(), Answers()
    assert found.add(x, blanked(y, padding, np.nan), padding=padding) == 0
    left.add(x[~padding][:, None], y[~padding][:, None])
    figures = ("relative_l2", "max_abs", "cosine")
    assert [found.result().get(name) for name in figures] == [left.result().get(name) for name in figures]


@pytest.mark.parametrize(("kind", "agreement"), [(np.float32, 0.5), (np.int64, 0.75)])
def test_agreement_leaves_padding_out(kind: type, agreement: float) -> None:
    """Scores of places: the best of the first two, of which the last row has none. Whole numbers: 4 of them."""
    before = np.array([[1, 2, 9], [2, 1, 9], [5, 5, 5]], kind)
    after = np.array([[1, 2, 0], [1, 2, 0], [7, 7, 7]], kind)
    after[1] = [2, 3, 0]
    padding = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
    assert apart(before, after, padding=padding).result()["agreement"] == agreement


def test_labels_of_rows_that_are_padding_do_not_count() -> None:
    found = apart(np.eye(3), np.eye(3), [0, 2, 1], padding=np.array([False, False, True]))
    assert (found.tally.rows, found.tally.before) == (2, 1)


def test_figures_by_hand() -> None:
    """(3, 4) and (4, 3): difference sqrt 2, cosine 24 / 25, the other class."""
    assert apart([[3.0, 4.0]], [[4.0, 3.0]]).result() == {
        "relative_l2": pytest.approx(2**0.5 / 5, abs=1e-15),
        "max_abs": 1.0,
        "cosine": pytest.approx(0.96, abs=1e-15),
        "agreement": 0.0,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_finite_in_the_original_alone_has_no_distance(bad: float) -> None:
    found = apart([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, bad]])
    assert found.lost == 1
    found.add(np.ones((1, 2)), np.ones((1, 2)))
    figures = found.result()
    assert [figures[name] for name in ("relative_l2", "max_abs", "cosine")] == [None] * 3


def test_rows_with_a_nan_in_the_original_do_not_count() -> None:
    found = apart([[np.nan, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]])
    assert found.lost == 0
    assert found.result()["agreement"] == 1


def test_a_nan_of_the_other_model_agrees_with_no_class() -> None:
    assert apart([[2.0, 1.0], [0.0, 1.0]], [[np.nan, 0.0], [0.0, 1.0]]).result()["agreement"] == 0.5


def test_figures_too_large_for_float64_are_missing_not_infinite() -> None:
    assert apart([[1e300, 0.0]], [[-1e300, 0.0]]).result()["relative_l2"] is None


def test_outputs_that_are_no_floats_have_agreement_alone() -> None:
    assert apart([[1, 2], [3, 4]], [[1, 2], [3, 5]]).result() == {"agreement": 0.75}


def test_labels_are_counted_where_there_are_classes() -> None:
    found = apart([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1])
    assert (found.tally.rows, found.tally.before, found.tally.after) == (3, 2, 2)
    assert (found.tally.lost, found.tally.gained) == (1, 1)
    assert apart([[0.5], [0.25]], [[0.5], [0.25]], [0, 1]).tally.rows == 0


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_no_class_are_told(label: int) -> None:
    assert apart(np.eye(2), np.eye(2), [1, label]).outside == label
