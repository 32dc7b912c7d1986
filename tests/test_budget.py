"""Targets instead of a keep: reached from below, and as near as single neurons allow."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Array, graph_of, model, normal, run, two_heads
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxdpp
from onnxdpp.algebra.moments import Accumulator
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.selection import METHODS, Rule, expected_neurons
from onnxdpp.budget import _bisect, _filled
from onnxdpp.errors import UsageError
from onnxdpp.evaluation import macs_by_node, parameters
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.weighing import Weighing, cut, weighing, weights


def network(**options: Any) -> ModelProto:
    """Three hidden layers, the first wide and of little use. Layers: fc1 (80), fc2 (40), fc3 (60)."""
    return model(
        """g (float[N, 20] x) => (float[N, 5] y) {
            [fc1] a = Gemm(x, W1, b1)  h = Relu(a)
            [fc2] c = Gemm(h, W2, b2)  k = Tanh(c)
            [fc3] d = Gemm(k, W3, b3)  l = Relu(d)
            [fc4] y = Gemm(l, W4, b4)
        }""",
        **{
            "W1": (20, 80), "b1": (80,), "W2": (80, 40), "b2": (40,), "W3": (40, 60), "b3": (60,), "W4": (60, 5),
            "b4": (5,), **options,
        },
    )  # fmt: skip


def convolutions() -> ModelProto:
    """Two convolutions and a head. Layers: c1 (16), c2 (24)."""
    return model(
        """g (float[N, 3, 9, 9] x) => (float[N, 4] y) {
            [c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1, b1)  h = Relu(a)
            [c2] b = Conv <strides = [2, 2]> (h, W2, b2)  k = Relu(b)
            f = Flatten(k)  [fc] y = Gemm(f, W3, b3)
        }""",
        W1=(16, 3, 3, 3), b1=(16,), W2=(24, 16, 3, 3), b2=(24,), W3=(24 * 16, 4), b3=(4,),
    )  # fmt: skip


def without_biases() -> ModelProto:
    """Matrices alone. Layers: fc1 (80), fc2 (40)."""
    return model(
        """g (float[N, 20] x) => (float[N, 3] y) {
            [fc1] a = MatMul(x, W1)  h = Relu(a)
            [fc2] c = MatMul(h, W2)  k = Tanh(c)
            [fc3] y = MatMul(k, W3)
        }""",
        W1=(20, 80), W2=(80, 40), W3=(40, 3),
    )  # fmt: skip


def halved() -> ModelProto:
    """Each half of the neurons has a consumer of its own. Layers: f (12, in sections of 7 and 5)."""
    return model(
        """g (float[N, 8] x) => (float[N, 3] y, float[N, 2] z) {
            [f] a = Gemm(x, w1, b1)  p, q = Split <axis = 1> (a, sizes)  g = Relu(p)  h = Tanh(q)
            y = MatMul(g, w2)  z = MatMul(h, w3)
        }""",
        w1=(8, 12), b1=(12,), w2=(7, 3), w3=(5, 2), sizes=np.int64([7, 5]),
    )  # fmt: skip


X = {"x": normal(800, 20)}
IMAGES = {"x": normal(400, 3, 9, 9)}


@pytest.mark.parametrize("allocation", ["auto", "measured", "uniform"])
@pytest.mark.parametrize("fraction", [0.8, 0.4, 0.1])
def test_parameters_are_reached_from_below(fraction: float, allocation: str) -> None:
    for proto, data, slack in ((network(), X, 0.01), (convolutions(), IMAGES, 0.1)):
        report = onnxdpp.prune(proto, data, target_parameters=fraction, allocation=allocation, provider="cpu").report
        ratio = report["model"]["after"]["parameters"] / report["model"]["before"]["parameters"]
        assert ratio <= fraction
        if allocation != "uniform":
            assert ratio >= (1 - slack) * fraction


@pytest.mark.parametrize("fraction", [0.6, 0.2])
def test_multiplications_are_reached_from_below(fraction: float) -> None:
    for proto, data, slack in ((network(), X, 0.01), (convolutions(), IMAGES, 0.04)):
        report = onnxdpp.prune(proto, data, target_macs=fraction, provider="cpu").report
        ratio = report["model"]["after"]["macs"] / report["model"]["before"]["macs"]
        assert (1 - slack) * fraction <= ratio <= fraction


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    result = onnxdpp.prune(network(), X, target_bytes=16_000, provider="cpu")
    result.save(tmp_path / "small.onnx")
    assert 15_840 <= (tmp_path / "small.onnx").stat().st_size <= 16_000


def worst(old: Array, new: Array) -> float:
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


@pytest.mark.parametrize("method", ["dpp", "auto"])
def test_discrepancy_is_kept_on_rows_that_were_not_fitted(method: str) -> None:
    proto = network()
    sizes = {}
    for limit in (0.05, 0.3):
        result = onnxdpp.prune(proto, X, target_discrepancy=limit, method=method, provider="cpu")
        held = {"x": X["x"][4::5]}
        found = worst(run(proto, held)[0], run(result.model, held)[0])
        assert found <= limit
        sizes[limit] = result.report["model"]["after"]["parameters"]
    assert sizes[0.3] < sizes[0.05] < result.report["model"]["before"]["parameters"]


def test_discrepancy_that_the_smallest_model_keeps_leaves_the_smallest() -> None:
    report = onnxdpp.prune(network(), X, target_discrepancy=1e6, method="dpp", provider="cpu").report
    assert [layer["kept"] for layer in report["layers"]] == [1, 1, 1]


@pytest.mark.parametrize("allocation", ["measured", "uniform"])
def test_smallest_model_has_a_neuron_of_each_section(allocation: str) -> None:
    options: dict[str, Any] = {"target_discrepancy": 1e6, "allocation": allocation, "method": "dpp", "provider": "cpu"}
    (layer,) = onnxdpp.prune(halved(), {"x": normal(50, 8)}, **options).report["layers"]
    assert layer["kept"] == len(layer["keep"]) == 2


def test_discrepancy_that_the_whole_model_misses_is_refused() -> None:
    """As where its refit rounds: in float64, it moves weights by some last bits."""
    text = "g (double[N, 20] x) => (double[N, 3] y) { [fc1] a = MatMul(x, W1)  h = Relu(a)  [fc2] y = MatMul(h, W2) }"
    proto = model(text, dtype=np.float64, W1=(20, 10), W2=(10, 3))
    with pytest.raises(UsageError, match="Even the whole model, refitted, is further than 1e-300 from the original"):
        onnxdpp.prune(proto, X, target_discrepancy=1e-300, method="dpp", provider="cpu")


def found(report: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The allocation that was taken, and the discrepancies that are told."""
    (told,) = (notice for notice in report["notices"] if "allocation" in notice)
    match = re.fullmatch(
        r"The (\w+) allocation was taken: discrepancy on rows held out (\S+) measured, (\S+) uniform\.", told
    )
    assert match is not None
    return match[1], {"measured": float(match[2]), "uniform": float(match[3])}


def chain() -> ModelProto:
    """Five layers of ten in a row. Layers: fc0 to fc4; outputs: scores of 4 classes."""
    text = "\n".join(f"[fc{n}] a{n} = Gemm(h{n}, W{n}, b{n})  h{n + 1} = Relu(a{n})" for n in range(5))
    weights = {f"W{n}": (10, 10) for n in range(5)} | {f"b{n}": (10,) for n in range(5)}
    return model(f"g (float[N, 10] h0) => (float[N, 4] y) {{ {text} y = MatMul(h5, W5) }}", **weights, W5=(10, 4))


@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
def test_auto_takes_the_allocation_that_is_nearer_on_rows_held_out(fraction: float) -> None:
    x = {"h0": normal(800, 10)}
    plain = {"target_parameters": fraction, "provider": "cpu", "method": "dpp"}
    reports = {name: onnxdpp.prune(chain(), x, allocation=name, **plain).report for name in ("auto", "measured")}
    taken, distances = found(reports["auto"])
    assert taken == min(distances, key=distances.__getitem__)
    kept = {name: [layer["kept"] for layer in report["layers"]] for name, report in reports.items()}
    assert (kept["auto"] == kept["measured"]) == (taken == "measured")


def test_allocations_are_compared_on_rows_that_are_not_fitted() -> None:
    """What is told is what a run with these rows held out says."""
    proto, x = chain(), normal(800, 10)
    _, distances = found(onnxdpp.prune(proto, {"h0": x}, target_parameters=0.5, method="dpp", provider="cpu").report)
    report = onnxdpp.prune(
        proto, {"h0": x}, target_parameters=0.5, method="dpp", allocation="measured", max_discrepancy=9, provider="cpu"
    ).report
    (gate,) = report["gates"]
    assert gate["value"] == pytest.approx(distances["measured"], rel=1e-3)


def test_no_rows_held_out_leave_the_measured_allocation() -> None:
    report = onnxdpp.prune(chain(), {"h0": normal(4, 10)}, target_parameters=0.5, method="dpp", provider="cpu").report
    assert not any("allocation" in notice for notice in report["notices"])


def test_measured_allocation_spares_what_matters() -> None:
    """fc1 has five neurons four times over: most of it can go for nothing."""
    first = np.tile(normal(20, 20, seed=8), (1, 4))
    bias = np.tile(normal(20, seed=9), 4)
    proto = network(W1=first, b1=bias)
    errors = {}
    for allocation in ("measured", "uniform"):
        report = onnxdpp.prune(proto, X, target_parameters=0.5, allocation=allocation, provider="cpu").report
        errors[allocation] = report["discrepancy"]["y"]["relative_l2"]
        if allocation == "measured":
            kept = {layer["name"]: layer["kept"] for layer in report["layers"]}
            assert kept["fc1"] <= 25
            assert kept["fc2"] >= 30
    assert errors["measured"] < 0.5 * errors["uniform"]


def test_measured_allocation_spares_what_the_outputs_feel() -> None:
    """Two layers that are equally hard to replace, of which the outputs hardly feel the second."""
    proto = model(
        """g (float[N, 20] x) => (float[N, 5] y) {
            [fc1] a = MatMul(x, W1)  h = Relu(a)  [fc2] b = MatMul(h, W2)
            [fc3] c = MatMul(x, W3)  k = Relu(c)  [fc4] d = MatMul(k, W4)
            e = Mul(d, hardly)  y = Add(b, e)
        }""",
        W1=(20, 30), W2=(30, 5), W3=(20, 30), W4=(30, 5), hardly=np.float32(0.01),
    )  # fmt: skip
    options: dict[str, Any] = {"allocation": "measured", "method": "dpp", "provider": "cpu"}
    report = onnxdpp.prune(proto, X, target_parameters=0.6, **options).report
    kept = {layer["name"]: layer["kept"] for layer in report["layers"]}
    assert kept["fc3"] < 0.5 * kept["fc1"]


def test_target_that_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(UsageError, match=r"can be reached has \d+ parameters, and the goal is 10\. Raise it\."):
        onnxdpp.prune(network(), X, target_parameters=0.0013, provider="cpu")


@pytest.mark.parametrize("options", [{"target_parameters": 0.5}, {"target_bytes": 9000}])
@pytest.mark.parametrize("allocation", ["measured", "uniform"])
def test_biases_that_the_refit_puts_in_count(options: dict[str, Any], allocation: str) -> None:
    """Matrices without biases: each gets one, of 80, 40 and 3 numbers at most."""
    proto = without_biases()
    report = onnxdpp.prune(proto, X, allocation=allocation, provider="cpu", **options).report["model"]
    goal = options.get("target_bytes") or 0.5 * report["before"]["parameters"]
    reached = report["after"]["bytes" if "target_bytes" in options else "parameters"]
    assert 0.95 * goal <= reached <= goal


def test_edges_reach_a_number_of_parameters() -> None:
    report = onnxdpp.prune(network(), X, unit="edge", target_parameters=0.5, provider="cpu").report
    goal = 0.5 * report["model"]["before"]["parameters"]
    assert 0.97 * goal <= report["model"]["after"]["nonzero"] <= goal
    assert len({round(layer["kept"] / layer["width"], 1) for layer in report["layers"]}) == 1


def test_edges_are_good_enough_on_rows_held_out() -> None:
    report = onnxdpp.prune(network(), X, unit="edge", target_discrepancy=0.3, provider="cpu").report
    assert report["model"]["after"]["nonzero"] < 0.9 * report["model"]["before"]["nonzero"]
    assert report["discrepancy"]["y"]["relative_l2"] < 0.3


def test_discrepancy_of_too_few_rows_is_refused() -> None:
    few = {name: rows[:4] for name, rows in X.items()}
    with pytest.raises(UsageError, match=r"Of 4 calibration rows, none can .* Give 5 or more, or a keep\."):
        onnxdpp.prune(network(), few, target_discrepancy=0.1, provider="cpu")


def test_outputs_that_are_no_floats_count_by_what_differs() -> None:
    """An answer among three: a model that answers otherwise on more than a tenth of the rows is too far."""
    proto = network()
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["answer"], axis=1, keepdims=0))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("answer", TensorProto.INT64, ["N"]))
    report = onnxdpp.prune(proto, X, target_discrepancy=0.1, provider="cpu").report
    assert report["discrepancy"]["answer"]["agreement"] >= 0.85
    assert report["model"]["after"]["parameters"] > 0.05 * report["model"]["before"]["parameters"]


def test_output_that_is_zero_in_the_original_stops_no_target() -> None:
    proto = network(W4=np.zeros((60, 5), np.float32), b4=np.zeros(5, np.float32))
    report = onnxdpp.prune(proto, X, target_parameters=0.3, provider="cpu").report["model"]
    assert report["after"]["parameters"] <= 0.3 * report["before"]["parameters"]


# What steps save


def coupled() -> ModelProto:
    """Neurons that meet in a sum and with the input in a concatenation. Layers: fc1 (6), with fc2; fc3 (7)."""
    return model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            [fc1] a = MatMul(x, W1)  h = Relu(a)
            [fc2] b = MatMul(h, W2)  s = Add(h, b)
            j = Concat <axis = 1> (s, x)
            [fc3] c = Gemm(j, W3, b3)  k = Tanh(c)
            [fc4] y = Gemm(k, W4, b4)
        }""",
        W1=(4, 6), W2=(6, 6), W3=(10, 7), b3=(7,), W4=(7, 3), b4=(3,),
    )  # fmt: skip


def weighed(proto: ModelProto) -> tuple[Graph, list[Layer], Weighing]:
    graph = graph_of(proto)
    layers = list(find_layers(graph)[0])
    return graph, layers, weighing(layers, weights(graph, layers, None))


@pytest.mark.parametrize("proto", [coupled(), two_heads(), chain()])
def test_saved_is_what_the_model_loses(proto: ModelProto) -> None:
    graph, layers, weigh = weighed(proto)
    whole = tuple(layer.n for layer in layers)
    for counts in (whole, tuple(n - 2 for n in whole)):
        for number in range(len(layers)):
            fewer = (*counts[:number], counts[number] - 2, *counts[number + 1 :])
            before, after = (parameters(cut(graph, layers, part))[0] for part in (counts, fewer))
            assert weigh.saved(counts, number, counts[number] - 2) == pytest.approx(before - after, rel=1e-12)


def test_saved_multiplications_are_what_the_model_loses() -> None:
    """Of convolutions, whose weights are read at many places."""
    graph, layers, _ = weighed(convolutions())
    batch = next(iter(open_batches({"x": IMAGES["x"][:1]}, input_specs(graph.model))))

    def macs(proto: ModelProto) -> dict[int, int]:
        return macs_by_node(Graph(proto), batch, "cpu") or {}

    weigh = weighing(layers, weights(graph, layers, macs(graph.model)))
    for number, counts in enumerate([(10, 24), (16, 11)]):
        lost = sum(macs(graph.model).values()) - sum(macs(cut(graph, layers, counts)).values())
        assert weigh.saved((16, 24), number, counts[number]) == pytest.approx(lost, rel=1e-12)


@pytest.mark.parametrize("proto", [coupled(), two_heads(), chain()])
def test_neighbours_are_the_layers_that_save_something_else(proto: ModelProto) -> None:
    _, layers, weigh = weighed(proto)
    counts = [layer.n for layer in layers]

    def saved(counts: list[int]) -> list[float]:
        """By one neuron less of each layer."""
        return [weigh.saved(counts, number, count - 1) for number, count in enumerate(counts)]

    for number in range(len(layers)):
        fewer = [count - (place == number) for place, count in enumerate(counts)]
        pairs = enumerate(zip(saved(counts), saved(fewer), strict=True))
        changed = {place for place, (before, after) in pairs if before != pytest.approx(after, rel=1e-9)}
        assert weigh.neighbours(number) == {number} | changed


def test_what_is_left_is_filled_layer_by_layer() -> None:
    layers = weighed(chain())[1]
    assert _filled((1, 9, 2, 3, 4), layers, lambda counts: sum(counts) <= 30) == (10, 10, 3, 3, 4)
    assert _filled((1, 9, 2, 3, 4), layers, lambda counts: sum(counts) <= 19) == (1, 9, 2, 3, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_bisection_finds_the_first_that_reaches(count: int) -> None:
    assert [_bisect(count, first.__le__) for first in range(count)] == list(range(count))
    assert _bisect(count, lambda index: False) is None


# Sweeps


def test_sweeps_never_make_the_outputs_worse_on_rows_held_out() -> None:
    plain = onnxdpp.prune(network(), X, keep=0.2, provider="cpu").report
    report = onnxdpp.prune(network(), X, keep=0.2, sweeps=2, provider="cpu").report
    told = next(notice for notice in report["notices"] if notice.startswith("Sweeps took"))
    found = re.fullmatch(r"Sweeps took (\d+) of (\d+) new choices: ([0-9.e-]+) to ([0-9.e-]+) on rows held out\.", told)
    assert found is not None
    assert float(found[4]) <= float(found[3])
    if found[1] == "0":
        assert [layer["keep"] for layer in report["layers"]] == [layer["keep"] for layer in plain["layers"]]


def test_sweeps_mend_a_bad_choice() -> None:
    """Drawn at random, neurons are soon swapped for better ones."""
    options: dict[str, Any] = {"keep": 0.2, "method": "random", "provider": "cpu"}
    errors = [
        onnxdpp.prune(network(), X, sweeps=sweeps, **options).report["discrepancy"]["y"]["relative_l2"]
        for sweeps in (0, 2)
    ]
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.parametrize("options", [{"unit": "edge"}, {"refit": "none"}])
def test_sweeps_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Sweeps are for neurons that are chosen here, with a refit"):
        onnxdpp.prune(network(), X, keep=0.5, sweeps=1, provider="cpu", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.5, "target_bytes": 9}, "Give one of these: keep; target-parameters, target-bytes, target-macs,"),
        ({}, "Give one of these"),
        ({"target_parameters": 1.5}, "target_parameters is 1.5; it must be at most 1: the fraction that stays."),
        ({"target_macs": 0.0}, "target_macs is 0.0; it must be a positive number."),
        ({"target_discrepancy": float("nan")}, "target_discrepancy is nan; it must be a positive number."),
        ({"target_bytes": 500, "unit": "edge", "storage": "dense"}, "Edges that are written as zeros save no bytes."),
        ({"target_macs": 0.5, "unit": "edge"}, "Edges that are zero save no multiplications here."),
        ({"target_parameters": 0.5, "refit": "none"}, "A target goes with a refit. Give a keep instead."),
        ({"target_parameters": 0.5, "round_to": 8}, "A target says how many stay: it goes with neither --round-to nor"),
        ({"target_macs": 0.5, "layers": "fc1=0.5"}, "A target says how many stay: it goes with neither --round-to nor"),
        ({"target_macs": 0.5, "allocation": "best"}, "allocation is 'best'; it can be auto, measured, uniform."),
    ],
)
def test_targets_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        onnxdpp.prune(network(), X, provider="cpu", **options)
    assert str(caught.value).startswith(message)


# The DPP's own opinion


def test_size_of_the_dpp_itself() -> None:
    """Of 80 neurons that are 20 four times over, a DPP of narrow kernel keeps fewer than of 80 that differ."""
    sizes = {}
    twins = network(W1=np.tile(normal(20, 20, seed=8), (1, 4)), b1=np.tile(normal(20, seed=9), 4))
    for name, proto in (("twins", twins), ("apart", network())):
        report = onnxdpp.prune(proto, X, keep="auto", layers="fc1", method="dpp", beta=1.0, provider="cpu").report
        sizes[name] = report["layers"][0]["kept"]
        assert len(report["layers"][0]["keep"]) == sizes[name]
    assert sizes["twins"] < 0.5 * sizes["apart"]
    report = onnxdpp.prune(network(), X, keep="auto", layers=["fc1", "fc2=0.5"], provider="cpu").report
    assert report["options"]["keep"] == "auto"
    assert report["layers"][1]["kept"] == 20


def test_size_of_the_dpp_itself_is_the_mean_size_of_draws() -> None:
    """By enumeration: all subsets of five neurons, each as likely as its determinant."""
    sums = Accumulator(normal(5, 2).astype(np.float64), paired=False)
    sums.update(normal(50, 5, seed=3))
    rule = Rule("dpp", "rbf", 0.5, 0.01)
    observed = [Inputs(sums.moments(), np.arange(5))]
    gram = observed[0].moments.gram
    distances = np.add.outer(gram.diagonal(), gram.diagonal()) - 2 * gram
    kernel = np.exp(-0.5 * np.maximum(distances, 0)) + 0.01 * np.eye(5)
    subsets = [list(part) for size in range(6) for part in combinations(range(5), size)]
    weights = np.array([np.linalg.det(kernel[np.ix_(part, part)]) if part else 1.0 for part in subsets])
    mean = np.array([len(part) for part in subsets]) @ weights / weights.sum()
    assert expected_neurons(observed, 5, rule) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "edge"}, "The DPP's own size is that of a layer's neurons. Give a keep for edges."),
        ({"round_to": 4}, "The DPP's own size goes without --round-to."),
    ],
)
def test_size_of_the_dpp_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        onnxdpp.prune(network(), X, keep="auto", provider="cpu", **options)


# The same neurons again


def test_report_applied_to_the_same_model_gives_the_same_model(tmp_path: Path) -> None:
    first = onnxdpp.prune(network(), X, keep=0.4, method="obs", provider="cpu")
    again = onnxdpp.prune(network(), X, apply=first.report, provider="cpu")
    assert again.model == first.model
    (tmp_path / "report.json").write_text(json.dumps(first.report))
    assert onnxdpp.prune(network(), X, apply=tmp_path / "report.json", provider="cpu").model == first.model


def test_report_applied_to_another_training_keeps_the_neurons_and_fits_anew() -> None:
    report = onnxdpp.prune(network(), X, keep=0.4, layers=["fc1", "fc3"], provider="cpu").report
    other = network(seed=5)
    applied = onnxdpp.prune(other, X, apply=report, provider="cpu").report
    assert [(part["name"], part["keep"]) for part in applied["layers"]] == [
        (part["name"], part["keep"]) for part in report["layers"]
    ]
    bare = onnxdpp.prune(other, X, apply=report, refit="none", provider="cpu").report
    assert applied["discrepancy"]["y"]["relative_l2"] < bare["discrepancy"]["y"]["relative_l2"]


def test_patterns_choose_among_the_layers_of_an_applied_report() -> None:
    report = onnxdpp.prune(network(), X, keep=0.4, method="dpp", provider="cpu").report
    names = [part["name"] for part in report["layers"]]

    def applied(**patterns: Any) -> list[str]:
        found = onnxdpp.prune(network(), X, apply=report, provider="cpu", **patterns).report
        return [part["name"] for part in found["layers"]]

    assert applied() == names
    assert applied(skip=names[0]) == names[1:]
    assert applied(layers=names[1]) == [names[1]]
    with pytest.raises(onnxdpp.NothingToPrune):
        applied(skip=names)


@pytest.mark.parametrize(
    "options",
    [
        {"swaps": 1},
        {"round_to": 4},
        {"layers": "fc1=0.5"},
        {"method": "obs"},
        {"kernel": "linear"},
        {"sensitivity": True},
    ],
    ids=lambda part: next(iter(part)),
)
def test_options_that_choose_neurons_do_not_go_with_a_report(options: dict[str, Any]) -> None:
    report = {"layers": [{"name": "fc1", "width": 80, "keep": [1]}]}
    with pytest.raises(UsageError, match="The report says which neurons stay"):
        onnxdpp.prune(network(), X, apply=report, provider="cpu", **options)


def test_discrepancy_that_a_target_was_judged_by_is_reported() -> None:
    found = onnxdpp.prune(network(), X, target_discrepancy=0.3, provider="cpu").report
    tried = found["evaluation"]
    assert (tried["held_out"], tried["rows"]) == (True, 160)
    assert tried["discrepancy"]["y"]["relative_l2"] <= 0.3


def test_discrepancy_is_kept_by_the_model_as_it_is_written() -> None:
    """With its values rounded, that is: a little above what rounding alone does, not everything can go."""
    options: dict[str, Any] = {"unit": "edge", "method": "dpp", "values": "float16", "provider": "cpu"}
    for goal in (0.01, 0.1):
        found = onnxdpp.prune(sparse(), X, target_discrepancy=goal, **options).report
        assert found["evaluation"]["discrepancy"]["y"]["relative_l2"] <= goal
    with pytest.raises(UsageError, match="Even the whole model, refitted, is further than 1e-07"):
        onnxdpp.prune(sparse(), X, target_discrepancy=1e-7, **options)


def test_models_that_are_not_finite_are_too_far() -> None:
    """The logarithm of what may be negative once it is pruned."""
    proto = model(
        """g (float[N, 20] x) => (float[N, 3] z) {
            [fc1] a = Gemm(x, w1, b1)  h = Relu(a)  [fc2] c = Gemm(h, w2, b2)  e = Exp(c)
            [fc3] d = Gemm(e, w3, b3)  z = Log(d)
        }""",
        w1=(20, 40), b1=(40,), w2=(40, 30), b2=(30,), w3=np.abs(normal(30, 3)), b3=np.full(3, 0.1, np.float32),
    )  # fmt: skip
    with pytest.raises(onnxdpp.ModelError, match="not finite"):
        onnxdpp.prune(proto, X, keep=0.8, method="dpp", provider="cpu")
    for limit in (0.01, 0.6):
        found = onnxdpp.prune(proto, X, target_discrepancy=limit, method="dpp", provider="cpu").report
        assert 0 < found["evaluation"]["discrepancy"]["z"]["relative_l2"] <= limit


def test_discrepancy_of_a_target_is_told_beside_other_data() -> None:
    found = onnxdpp.prune(
        network(), X, target_discrepancy=0.3, data={"x": normal(50, 20, seed=3)}, provider="cpu"
    ).report
    assert (found["evaluation"]["held_out"], found["evaluation"]["rows"]) == (False, 50)
    (told,) = (notice for notice in found["notices"] if "that the target was judged on" in notice)
    assert float(told.rstrip(".").rsplit(" ", 1)[1]) <= 0.3


# Models that were pruned before


def sparse() -> ModelProto:
    options: dict[str, Any] = {"unit": "edge", "method": "dpp", "storage": "dense", "provider": "cpu"}
    return onnxdpp.prune(network(), X, keep=0.2, **options).model


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_edges_that_were_pruned_before_do_not_come_back(method: str) -> None:
    """Where there is room for all that are left, the model stays as it is."""
    again = onnxdpp.prune(sparse(), X, keep=0.6, unit="edge", method=method, storage="dense", provider="cpu").report
    before, after = (again["model"][side]["nonzero"] for side in ("before", "after"))
    assert after <= before
    if method not in ("dpp-sample", "random"):
        assert again["discrepancy"]["y"]["relative_l2"] < 1e-6


@pytest.mark.parametrize("method", ["dpp", "auto", "importance", "wanda"])
def test_pattern_applied_to_its_own_result_changes_nothing(method: str) -> None:
    options: dict[str, Any] = {
        "unit": "edge",
        "pattern": "2:4",
        "method": method,
        "storage": "dense",
        "provider": "cpu",
    }
    once = onnxdpp.prune(network(), X, **options).model
    twice = onnxdpp.prune(once, X, **options).model
    for old, new in zip(once.graph.initializer, twice.graph.initializer, strict=True):
        assert (numpy_helper.to_array(old) != 0).tolist() == (numpy_helper.to_array(new) != 0).tolist()


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_target_counts_the_weights_that_a_sparse_model_has(share: float) -> None:
    found = onnxdpp.prune(sparse(), X, target_parameters=share, unit="edge", method="dpp", provider="cpu").report
    before, after = (found["model"][side]["nonzero"] for side in ("before", "after"))
    assert 0.8 * share * before <= after <= share * before


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"schema": "onnxdpp/report/0", "layers": []}, "The report to apply is a 'onnxdpp/report/0', not the"),
        (
            {"layers": [{"name": "fc1", "width": "80", "keep": [1]}]},
            "The report to apply is none of onnxdpp prune with",
        ),
        (
            {"layers": [{"name": "fc9", "width": 80, "keep": [1]}]},
            "The report has a layer 'fc9', which this model has not",
        ),
        ({"layers": [{"name": "fc1", "width": 81, "keep": [1]}]}, "Layer 'fc1' has 80 neurons, 81 in the report"),
        ({"layers": [{"name": "fc1", "width": 80, "keep": [80]}]}, "The report to apply keeps 1 neurons of 'fc1'"),
        ({"layers": [{"name": "fc1", "width": 80, "keep": [2, 1]}]}, "The report to apply keeps 2 neurons of 'fc1'"),
        ({"layers": [{"name": "fc1", "width": 80, "keep": None}]}, "The report to apply is none of onnxdpp prune with"),
        (
            {"layers": [{"name": "fc1", "width": 80, "keep": [0.5]}]},
            "The report to apply is none of onnxdpp prune with",
        ),
        ({"layers": 2 * [{"name": "fc1", "width": 80, "keep": [1]}]}, "The report to apply has a layer twice."),
        ({"layers": []}, "The report to apply has no layers."),
        ({}, "The report to apply is none of onnxdpp prune with"),
    ],
)
def test_reports_that_cannot_be_applied(report: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        onnxdpp.prune(network(), X, apply=report, provider="cpu")
    assert str(caught.value).startswith(message)


def test_report_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The report '.*' cannot be read"):
        onnxdpp.prune(network(), X, apply=tmp_path / "none.json", provider="cpu")


def test_report_that_leaves_a_consumer_nothing_cannot_be_applied() -> None:
    proto, x = halved(), {"x": normal(50, 8)}
    report = onnxdpp.prune(proto, x, keep=0.5, provider="cpu").report
    again = onnxdpp.prune(proto, x, apply=report, provider="cpu").report
    assert again["layers"][0]["keep"] == report["layers"][0]["keep"]
    report["layers"][0]["keep"] = [0, 1]
    with pytest.raises(UsageError, match="Of layer 'f' 2 sections must keep a neuron each"):
        onnxdpp.prune(proto, x, apply=report, provider="cpu")
