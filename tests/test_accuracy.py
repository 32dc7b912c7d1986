"""Classes, and paired counts of who is right: against enumeration, and identities."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdpp.accuracy import Tally, classes, interval

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
"""For each row, whether the original is right, and the other model."""


def tally(right: list[tuple[bool, bool]]) -> dict[str, Any]:
    found = Tally()
    labels = np.arange(len(right))
    before, after = (np.where([pair[which] for pair in right], labels, -2) for which in (0, 1))
    found.add(labels, before, after)
    return found.result()


# Classes


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 1, 3)])
def test_classes_of_scores_are_the_largest(shape: tuple[int, ...]) -> None:
    scores = np.array([[0.1, 0.5, 0.4], [9, 8, 7]], np.float32).reshape(shape)
    assert classes(scores).tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, object])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_classes_of_other_outputs_are_themselves(dtype: Any, shape: tuple[int, ...]) -> None:
    output = np.array([1, 0, 1]).astype(dtype).reshape(shape)
    found = classes(output)
    assert found is not None
    assert found.tolist() == output.ravel().tolist()


@pytest.mark.parametrize(
    "output",
    [
        np.float32(3),
        np.zeros(4, np.float32),
        np.zeros((4, 1), np.float32),
        np.zeros((4, 2, 3), np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((4, 2), np.int64),
    ],
)
def test_what_does_not_look_like_classes(output: Any) -> None:
    assert classes(np.asarray(output)) is None


def test_class_of_scores_that_are_not_numbers() -> None:
    scores = np.array([[1, np.nan], [np.inf, 0], [-np.inf, 0]])
    assert classes(scores).tolist() == [-1, 0, 1]  # type: ignore[union-attr]


# Counts


@given(RIGHT)
def test_tally_against_counting(right: list[tuple[bool, bool]]) -> None:
    found = tally(right)
    before, after = (sum(pair[which] for pair in right) for which in (0, 1))
    assert (found["before"], found["after"], found["rows"]) == (before / len(right), after / len(right), len(right))
    assert (found["lost"], found["gained"]) == (right.count((True, False)), right.count((False, True)))
    assert found["change"] == (after - before) / len(right)


@given(RIGHT)
def test_interval_holds_the_change_and_mirrors(right: list[tuple[bool, bool]]) -> None:
    found, mirrored = tally(right), tally([(b, a) for a, b in right])
    assert -1 <= found["low"] < found["high"] <= 1
    assert found["low"] <= found["change"] <= found["high"]
    assert (mirrored["low"], mirrored["high"]) == (-found["high"], -found["low"])


@given(RIGHT, st.integers(0, 60))
def test_tally_does_not_depend_on_how_rows_are_cut(right: list[tuple[bool, bool]], cut: int) -> None:
    whole, parts = Tally(), Tally()
    labels = np.zeros(len(right))
    before, after = (np.array([not pair[which] for pair in right], float) for which in (0, 1))
    whole.add(labels, before, after)
    for piece in (slice(None, cut), slice(cut, None)):
        parts.add(labels[piece], before[piece], after[piece])
    assert whole == parts


def test_interval_covers_as_often_as_it_says() -> None:
    """Of 4000 draws of 200 rows each, with a true change of -0.03."""
    rng = np.random.default_rng(0)
    chances = [0.85, 0.05, 0.02, 0.08]  # both right, lost, gained, both wrong
    draws = rng.multinomial(200, chances, size=4000)
    bounds = [interval(200, int(lost), int(gained)) for _, lost, gained, _ in draws]
    covered = np.mean([low <= -0.03 <= high for low, high in bounds])
    assert 0.94 < covered < 0.965


def test_interval_narrows_with_the_root_of_the_rows() -> None:
    widths = [high - low for low, high in (interval(100, 10, 5), interval(10000, 1000, 500))]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.05)
