"""What the pictures of a report show, and where they put it."""

import base64
import zlib
from itertools import pairwise

import numpy as np
import pytest
from invoking import data, mlp
from models import normal

import onnxdpp
from onnxdpp.api import PruneResult
from onnxdpp.details import CELLS, Details, LayerDetails
from onnxdpp.drawing import Scale, heatmap, histogram, loss_curve


def pruned(**options: object) -> PruneResult:
    given = {"keep": 0.5, "method": "obs", "provider": "cpu", **options}
    return onnxdpp.prune(given.pop("model", mlp()), {"x": data()}, **given, details=True)  # type: ignore[arg-type]


def details(result: PruneResult) -> Details:
    assert result._details is not None
    return result._details


def layer(result: PruneResult, name: str = "fc1") -> LayerDetails:
    return details(result).layers[name]


# Curves


def test_curve_goes_through_what_least_error_selection_finds() -> None:
    result = pruned()
    for found in result.report["layers"]:
        curve = layer(result, found["name"]).curve
        assert curve is not None
        assert curve[found["kept"]] == pytest.approx(found["loss"], rel=1e-3)


def test_curve_falls_from_a_constant_to_nothing() -> None:
    curve = layer(pruned()).curve
    assert curve is not None
    assert curve.shape == (17,)
    assert (np.diff(curve) <= 0).all()
    assert 0 < curve[1] <= 1
    assert curve[-1] < 1e-6


@pytest.mark.parametrize("method", ["importance", "random", "dpp"])
def test_curve_is_below_what_others_choose(method: str) -> None:
    result = pruned(method=method)
    for found in result.report["layers"]:
        curve = layer(result, found["name"]).curve
        assert curve is not None
        assert curve[found["kept"]] <= found["loss"] * 1.001


def test_curve_is_left_out_with_a_word_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdpp.details.WIDEST", 12)
    result = pruned()
    assert layer(result, "fc1").curve is None
    assert layer(result, "fc1").missing == ["No error curve: that of 16 inputs takes long."]
    assert layer(result, "fc2").curve is not None
    assert "No error curve: that of 16 inputs takes long." in result.html()


def test_curve_of_outputs_that_do_not_vary_is_left_out_with_a_word() -> None:
    result = pruned(model=mlp(w3=np.zeros((12, 3), np.float32)))
    assert layer(result, "fc2").curve is None
    assert layer(result, "fc2").missing == ["No error curve: what the consumers give does not vary."]


# Similarities


def test_similarity_puts_twins_side_by_side() -> None:
    first, bias = normal(8, 8), normal(8)
    order = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]  # neuron s and neuron s + 8 are the same
    found = layer(pruned(model=mlp(w1=first[:, order], b1=bias[order]), method="dpp")).similarity
    assert found is not None
    pairs = found.cells.reshape(8, 2, 8, 2)[np.arange(8), :, np.arange(8), :]
    assert pairs == pytest.approx(1.0, abs=1e-13)
    # The mode of the DPP keeps one of each two.
    assert found.kept.reshape(8, 2).sum(axis=1).tolist() == [1] * 8
    assert found.covered == pytest.approx(1.0, abs=1e-13)
    assert found.apart is not None
    assert found.apart < 0.99


@pytest.mark.parametrize("kernel", ["rbf", "linear", "consumer"])
def test_similarity_is_that_of_a_kernel(kernel: str) -> None:
    found = layer(pruned(method="dpp", kernel=kernel)).similarity
    assert found is not None
    assert found.kernel == kernel
    assert np.diagonal(found.cells) == pytest.approx(1.0, abs=1e-13)
    assert np.array_equal(found.cells, found.cells.T)
    assert (found.cells >= 0).all()
    assert int(found.kept.sum()) == 8


def test_similarity_of_a_wide_layer_is_that_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdpp.details.SHOWN", 10)
    monkeypatch.setattr("onnxdpp.details.CELLS", 4)
    result = pruned()
    found = layer(result).similarity
    assert found is not None
    assert (found.cells.shape, found.kept.shape) == ((4, 4), (10,))
    assert "10 of 16 neurons, evenly spaced" in result.html()


def test_similarity_of_a_sample_is_that_of_its_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdpp.details.SHOWN", 8)
    first, bias = normal(8, 8), normal(8)
    order = [*range(8), *range(8)]  # the sample, every other neuron, has four of them twice
    found = layer(pruned(model=mlp(w1=first[:, order], b1=bias[order]), method="dpp")).similarity
    assert found is not None
    pairs = found.cells.reshape(4, 2, 4, 2)[np.arange(4), :, np.arange(4), :]
    assert pairs == pytest.approx(1.0, abs=1e-13)
    assert (found.covered, found.apart) == (None, None)
    assert found.cells[0, -1] < 1


# Rows


def test_rows_are_as_far_as_the_report_says_on_average() -> None:
    result = pruned()
    (distances,) = details(result).rows.values()
    assert distances.shape == (64,)
    expected = result.report["discrepancy"]["y"]["relative_l2"]
    assert np.sqrt(np.mean(distances.astype(float) ** 2)) == pytest.approx(expected, rel=1e-5)


def test_nothing_is_collected_unless_it_is_asked_for() -> None:
    assert onnxdpp.prune(mlp(), {"x": data()}, keep=0.5, provider="cpu")._details is None


def test_edges_have_readers_alone() -> None:
    result = pruned(unit="edge", method="importance")
    found = layer(result)
    assert (found.curve, found.similarity) == (None, None)
    assert found.readers is not None
    # Four of eight inputs stay for each of 16 outputs.
    assert (len(found.readers), int(found.readers.sum())) == (8, 64)
    assert (np.diff(found.readers) <= 0).all()


# Drawings


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 500, False), (0, 1, False), (1e-4, 10, True), (0.002, 0.006, True)]
)
def test_ticks_are_few_and_where_they_say(low: float, high: float, log: bool) -> None:
    scale = Scale(low, high, 0, 100, log=log)
    ticks = scale.ticks()
    assert 4 <= len(ticks) <= 10
    for place, label in ticks:
        assert scale.at(float(label.replace(",", ""))) == pytest.approx(place, abs=0.02)
    assert all(first < second for (first, _), (second, _) in pairwise(ticks))


def test_loss_curve_marks_what_was_chosen() -> None:
    drawn = loss_curve(np.geomspace(1, 1e-4, 101), 1, 50, 0.01, 0.5)
    assert drawn.chosen is not None
    assert drawn.bare is not None
    assert drawn.chosen.title == "50 of 100 kept: loss 0.01"
    assert drawn.chosen.x == drawn.bare.x
    assert drawn.chosen.y > drawn.bare.y
    places = dict(tuple(map(float, part.split())) for part in drawn.line[1:].split("L"))
    assert places[drawn.chosen.x] == pytest.approx(drawn.chosen.y, abs=0.5)


@pytest.mark.parametrize("curve", [np.zeros(9), np.full(9, 0.5), np.array([1.0, 0.0])])
def test_loss_curve_of_nothing_much(curve: np.ndarray) -> None:
    drawn = loss_curve(curve, 1, 1, float(curve[1]), None)
    assert "nan" not in drawn.line
    assert drawn.y


def test_histogram_counts_every_row_once() -> None:
    values = np.abs(normal(1000)).astype(np.float32)
    values[:10] = 0
    drawn = histogram(values)
    assert drawn is not None
    assert drawn.still == 10
    assert sum(int(title.split(" ")[0].replace(",", "")) for *_, title in drawn.bars) == 990
    assert histogram(np.zeros(5, np.float32)) is None


def test_histogram_of_equal_values_is_one_bar() -> None:
    drawn = histogram(np.full(7, 0.25, np.float32))
    assert drawn is not None
    assert [bar[-1].split(" ")[:2] for bar in drawn.bars] == [["7", "rows"]]


def test_heatmap_is_a_png_of_its_shades() -> None:
    cells = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    drawn = heatmap(cells, np.array([True, False, True]), (1, 2, 3))
    assert drawn.kept == [(0, 1), (2, 1)]
    png = base64.b64decode(drawn.image.removeprefix("data:image/png;base64,"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    start = png.index(b"IDAT")
    packed = png[start + 4 : start + 4 + int.from_bytes(png[start - 4 : start])]
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(3, 4)
    assert rows[:, 1:].tolist() == [[47, 0, 24], [0, 47, 0], [24, 0, 47]]
    assert CELLS <= 256
