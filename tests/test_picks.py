"""Which rows are used: each pick against its plain definition, and rows held out apart from the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import model, normal
from onnx import ModelProto

from onnxdpp.errors import UsageError
from onnxdpp.graph.batches import Batches, input_specs, open_batches
from onnxdpp.graph.picks import Evenly, Fifth, OtherFour, Pick, border_after, places


@st.composite
def chains(draw: st.DrawFn) -> tuple[int, list[Pick]]:
    """So many rows, and picks one upon the other."""
    count = total = draw(st.integers(1, 300))
    picks: list[Pick] = []
    for kind in draw(st.lists(st.sampled_from(["evenly", "fifth", "others"]), max_size=4)):
        pick: Pick
        if kind == "evenly":
            pick = Evenly(draw(st.integers(1, count)), count)
        else:
            pick = Fifth(count) if kind == "fifth" else OtherFour(count)
        if not pick.count:
            break
        picks.append(pick)
        count = pick.count
    return total, picks


def taken(total: int, picks: list[Pick]) -> np.ndarray:
    """By definition, on the list of all rows."""
    rows = np.arange(total)
    for pick in picks:
        match pick:
            case Evenly(count, among):
                rows = rows[np.arange(count) * among // count]
            case Fifth():
                rows = rows[4::5]
            case _:
                rows = np.delete(rows, np.s_[4::5])
    return rows


@given(chains())
def test_places_are_those_of_the_definition(chain: tuple[int, list[Pick]]) -> None:
    total, picks = chain
    rows = taken(total, picks)
    np.testing.assert_array_equal(places(picks, np.arange(len(rows))), rows)


@given(chains(), st.integers(0, 300))
def test_border_is_where_the_rows_behind_it_begin(chain: tuple[int, list[Pick]], border: int) -> None:
    total, picks = chain
    border = min(border, total)
    assert border_after(picks, border) == np.count_nonzero(taken(total, picks) < border)


# Rows held out


def network(rows: str = "N") -> ModelProto:
    return model(f"g (float[{rows}, 2] x) => (float[{rows}, 3] y) {{ y = MatMul(x, W) }}", W=(2, 3))


def opened(count: int, rows: str = "N", **options: int) -> Batches:
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return open_batches({"x": x}, input_specs(network(rows)), **options)


def rows_of(batches: Batches) -> list[int]:
    return [int(value) // 2 for batch in batches for value in batch.feeds["x"][:, 0]]


@pytest.mark.parametrize("options", [{}, {"batch_size": 7}, {"max_rows": 40}])
def test_parts_hold_every_row_once(options: dict[str, int]) -> None:
    batches = opened(64, **options)
    whole = rows_of(batches)
    fitted, judged = batches.parted("")
    assert rows_of(judged) == whole[4::5]
    assert sorted(rows_of(fitted) + rows_of(judged)) == whole
    assert (fitted.rows, judged.rows) == (len(whole) - len(whole) // 5, len(whole) // 5)


def test_parts_are_whole_batches_where_their_size_is_fixed() -> None:
    fitted, judged = opened(64, "8").parted("")
    assert (rows_of(fitted), rows_of(judged)) == ([row for row in range(60) if row % 5 != 4], list(range(4, 40, 5)))
    assert fitted.notices == ("4 of 52 rows are left out: the model takes 8 at a time.",)


def test_parts_of_a_part() -> None:
    fitted, _ = opened(50).parted("")
    again, held = fitted.parted("")
    assert rows_of(held) == rows_of(fitted)[4::5]
    assert rows_of(again.thinned(8)) == [rows_of(again)[row * again.rows // 8] for row in range(8)]


def test_runs_are_parted_too() -> None:
    """As with a state whose second axis counts rows."""
    proto = model("g (float[2, N] s, float[N, 2] x) => (float[2, 2] y) { y = MatMul(s, x) }")
    runs = [{"s": np.full((2, 3), number, np.float32), "x": normal(3, 2)} for number in range(12)]
    fitted, judged = open_batches(runs, input_specs(proto)).parted("")
    assert [int(batch.feeds["s"][0, 0]) for batch in judged] == [4, 9]
    assert [int(batch.feeds["s"][0, 0]) for batch in fitted] == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize(
    ("count", "rows", "message"),
    [
        (4, "N", "Of 4 calibration rows, none can be held out to judge on. Give 5 or more, or --data."),
        (32, "8", "Of 32 calibration rows, 8 at a time, none can be held out to judge on. Give 40 or more, or --data."),
    ],
)
def test_too_few_rows_to_hold_some_out(count: int, rows: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(count, rows).parted("--data")
    assert str(caught.value) == message


def test_rows_of_too_many_shapes_to_hold_some_out() -> None:
    proto = model("g (float[4, T] x) => (float[4, 1] y) { y = ReduceMean <axes = [1]> (x) }")
    parts = [{"x": normal(4, width)} for width in range(2, 12)]
    with pytest.raises(UsageError, match=r"Of 40 calibration rows, 4 at a time, .* Give 20 or more of one shape, or x"):
        open_batches(parts, input_specs(proto)).parted("x")
