"""Rows of a projection: every position once, or as many as are wanted, however the data are cut into batches."""

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, Weight, graph_of, model, normal, run
from onnx import ModelProto

import onnxdpp
from onnxdpp.algebra.refit import Fit
from onnxdpp.graph.calibration import Seen
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.patches import Patch
from onnxdpp.graph.taps import CHUNK, Sampling, Tap, observations
from onnxdpp.observation import Reading, original_weights, readings

PATCH = Patch((2, 2), (1, 1), (1, 1), (0, 0, 0, 0))
EVERYTHING = Sampling(10**9, 1, 0)


def collected(tap: Tap, value: Array, sampling: Sampling, cuts: list[int], padding: Array | None = None) -> Array:
    """The rows of a value that comes in batches."""
    parts, first = [], 0
    for batch in np.split(value, cuts):
        own = None if padding is None else padding[first : first + len(batch)]
        parts += [now for _, now, _ in observations(tap, Seen(batch, None), first, sampling, own)]
        first += len(batch)
    return np.concatenate(parts)


# Which positions


@settings(max_examples=100)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 400), st.integers(0, 9))
def test_positions_are_used_equally_often(rows: int, positions: int, limit: int, seed: int) -> None:
    row, position = Sampling(limit, rows, seed).places(0, rows, positions)
    counts = np.bincount(position, minlength=positions)
    assert counts.max() - counts.min() <= 1
    assert np.unique(np.bincount(row, minlength=rows)).size == 1
    assert len(row) >= min(limit, rows * positions)
    assert len(row) < limit + rows


@settings(max_examples=100)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 200), st.data())
def test_places_do_not_depend_on_batches(rows: int, positions: int, limit: int, data: st.DataObject) -> None:
    sampling = Sampling(limit, rows, 3)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    whole = np.stack(sampling.places(0, rows, positions))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
        row, position = sampling.places(start, stop - start, positions)
        parts.append(np.stack([row + start, position]))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_no_position_of_a_row_is_taken_twice() -> None:
    row, position = Sampling(100, 20, 1).places(7, 20, 9)
    assert len({*zip(row.tolist(), position.tolist(), strict=True)}) == len(row) == 100


def test_positions_hang_on_the_seed() -> None:
    first, second = (Sampling(10, 5, seed).places(0, 5, 50)[1].tolist() for seed in (1, 2))
    assert first != second


# Rows


def test_dense_rows_are_all_leading_axes() -> None:
    x = normal(3, 4, 5)
    np.testing.assert_array_equal(collected(Tap("v"), x, EVERYTHING, [1]), x.reshape(-1, 5))


def test_padding_is_left_out() -> None:
    x, mask = normal(3, 4, 5), np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(collected(Tap("v"), x, EVERYTHING, [2], mask == 0), x[mask != 0])


def test_each_row_is_said_of_which_calibration_row_it_is() -> None:
    x, mask = normal(3, 4, 5), np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    ((owner, _, _),) = observations(Tap("v"), Seen(x, None), 0, EVERYTHING, mask == 0)
    assert owner.tolist() == [0, 0, 1, 1, 1, 1, 2]


def test_rows_of_the_original_come_with_those_of_the_pruned_model() -> None:
    x, original = normal(3, 6, 4, 4), normal(3, 8, 4, 4, seed=2)
    ((owner, now, before),) = observations(Tap("v", PATCH, 1, 2), Seen(x, original), 0, Sampling(10, 3, 0), None)
    row, position = Sampling(10, 3, 0).places(0, 3, 9)
    np.testing.assert_array_equal(now, PATCH.rows(x[:, 3:], row, position))
    np.testing.assert_array_equal(owner, row)
    np.testing.assert_array_equal(before, PATCH.rows(original[:, 4:], row, position))


@settings(max_examples=30)
@given(st.integers(1, 200), st.lists(st.integers(0, 12), max_size=3))
def test_patches_do_not_depend_on_batches(limit: int, cuts: list[int]) -> None:
    x = normal(12, 2, 4, 5)
    tap, sampling = Tap("v", PATCH), Sampling(limit, 12, 0)
    np.testing.assert_array_equal(collected(tap, x, sampling, sorted(cuts)), collected(tap, x, sampling, []))


def test_patches_are_cut_out_a_few_at_a_time() -> None:
    x = normal(3, 1, 60, 60)
    blocks = [len(now) for _, now, _ in observations(Tap("v", PATCH), Seen(x, None), 0, EVERYTHING, None)]
    assert max(blocks) == CHUNK
    assert sum(blocks) == 3 * 59 * 59


# Readings


def convolutional(*, groups: int = 1, channels: int = 6, **weights: Weight) -> ModelProto:
    return model(
        f"""g (float[N, 2, 6, 6] x) => (float[N, 4, 5, 5] y, float[N, 3, 5, 5] z) {{
            [c1] a = Conv(x, W1, b1)   h = Relu(a)   [c2] y = Conv <group = {groups}> (h, W2)   [c3] z = Conv(h, W3)
        }}""",
        **{
            "W1": (channels, 2, 1, 1),
            "b1": (channels,),
            "W2": (4, channels // groups, 2, 2),
            "W3": (3, channels, 2, 2),
            **weights,
        },
    )


def wanted(proto: ModelProto, memory: int = 2**30) -> list[Reading]:
    graph = graph_of(proto)
    (layer,), _ = find_layers(graph)
    reads = [(part, slicing.labels) for part, slicing in layer.consumers]
    return readings(graph, reads, lambda part: np.arange(part.m), memory)


def test_consumers_of_one_value_are_read_together() -> None:
    (reading,) = wanted(convolutional())
    assert [part.name for part, _ in reading.parts] == ["c2", "c3"]
    assert reading.weights.shape == (6 * 4, 4 + 3)
    np.testing.assert_array_equal(reading.neurons, np.repeat(np.arange(6), 4))


def test_each_group_is_a_reading_of_its_own() -> None:
    found = wanted(convolutional(groups=2))
    assert [(reading.tap.group, reading.tap.groups) for reading in found] == [(0, 2), (1, 2), (0, 1)]
    assert [reading.weights.shape for reading in found] == [(3 * 4, 2), (3 * 4, 2), (6 * 4, 3)]
    for reading in found[:2]:
        np.testing.assert_array_equal(reading.neurons, np.repeat(np.arange(3), 4))


def test_wide_patches_are_read_as_channels() -> None:
    (reading,) = wanted(convolutional(), memory=8 * 24**2 - 1)
    assert reading.weights.shape == (6, 6)
    np.testing.assert_array_equal(reading.neurons, np.arange(6))
    assert reading.tap.patch is not None
    assert reading.tap.patch.size == 1


@pytest.mark.parametrize("memory", [2**30, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_fit_that_keeps_all_gives_the_original_weights(memory: int, groups: int) -> None:
    proto = convolutional(groups=groups)
    graph = graph_of(proto)
    for reading in wanted(proto, memory):
        zeros = np.zeros(reading.weights.shape[1])
        for part, outputs, weights, intercept in reading.fitted(graph, Fit(reading.weights, zeros)):
            np.testing.assert_allclose(weights, original_weights(graph, part)[:, outputs], rtol=1e-12, atol=1e-12)
            assert intercept is not None
            assert not intercept.any()


# Twins: of each pair of equal channels one can go, and nothing is lost


def twins(*shape: int, axis: int = 0, seed: int = 5) -> Array:
    return np.repeat(normal(*shape, seed=seed), 2, axis=axis)


FLAT = "f = Flatten(h)   [c2] y = Gemm(f, W2, b2)"
LAST = "t = Transpose <perm = [0, 2, 3, 1]> (h)   f = Flatten(t)   [c2] y = Gemm(f, W2, b2)"
NEXT = {"W2": normal(3, 6, 2, 2), "b2": (3,)}


@pytest.mark.parametrize("method", ["dpp", "importance", "random"])
@pytest.mark.parametrize("memory", [2**30, 1])
@pytest.mark.parametrize(
    ("second", "weights", "rank"),
    [
        ("[c2] y = Conv(h, W2, b2)", NEXT, 4),
        ("[c2] y = Conv <strides = [2, 2], pads = [1, 0, 1, 1]> (h, W2, b2)", NEXT, 4),
        ("[c2] y = ConvTranspose <strides = [2, 1]> (h, W2, b2)", {"W2": normal(6, 3, 2, 2), "b2": (3,)}, 4),
        (FLAT, {"W2": normal(6 * 25, 3), "b2": (3,)}, 2),
        (LAST, {"W2": normal(6 * 25, 3), "b2": (3,)}, 2),
    ],
    ids=["Conv", "strides", "ConvTranspose", "Flatten", "channels-last"],
)
def test_twin_channels_are_repaired_without_a_loss(
    second: str, weights: dict[str, Any], rank: int, memory: int, method: str
) -> None:
    """Half of six channels that are three pairs; the DPP takes one of each, others may lose one."""
    dims = ", ".join(f"Y{axis}" for axis in range(rank))
    proto = model(
        f"g (float[N, 2, 5, 5] x) => (float[{dims}] y) {{ [c1] a = Conv(x, W1, b1)   h = Relu(a)   {second} }}",
        W1=twins(3, 2, 1, 1), b1=twins(3), **weights,
    )  # fmt: skip
    x = normal(600, 2, 5, 5)
    result = onnxdpp.prune(proto, {"x": x}, keep=0.5, method=method, provider="cpu", memory=memory)
    kept = result.report["layers"][0]["keep"]
    assert len(kept) == 3
    test = normal(8, 2, 5, 5, seed=9)
    old, new = run(proto, {"x": test})[0], run(result.model, {"x": test})[0]
    far = np.linalg.norm(new - old) / np.linalg.norm(old - old.mean())
    if method == "dpp":
        assert {neuron // 2 for neuron in kept} == {0, 1, 2}
    if len({neuron // 2 for neuron in kept}) == 3:
        assert far <= 1e-3
    assert far <= 1


def test_number_of_observations_of_a_convolution_is_bounded() -> None:
    x = normal(50, 2, 6, 6)
    result = onnxdpp.prune(convolutional(), {"x": x}, keep=0.5, provider="cpu")
    count = result.report["layers"][0]["observations"]
    assert 32 * 24 <= count < 32 * 24 + 50
    few = onnxdpp.prune(convolutional(), {"x": x[:4]}, keep=0.5, provider="cpu")
    assert few.report["layers"][0]["observations"] == 4 * prod((5, 5))
