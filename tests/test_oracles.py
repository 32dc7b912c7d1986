"""The oracles, on real models and on random ones: what was found can be dropped, and nothing else notices.

`oracles` says what A and B are. They need each other, and need to be able to fail: see the first tests.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from models import NO_MODELS, Array, graph_of, hidden, manifest, mlp, model, normal, run, two_heads
from networks import Network, Thrown, Unfit, judge, network, networks
from oracles import dropped, gap, gaps, half, oracle_a, oracle_b, shuffled, silenced
from planting import ELSEWHERE, PLANTS, QUICK, Plant, found_after, planted_in

import onnxdpp
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.model import load_model
from onnxdpp.graph.operators import OPERATORS, elementwise
from onnxdpp.graph.projections import weighted_nodes
from onnxdpp.graph.rewriting import in_order

X = {"x": normal(9, 4)}


# The oracles themselves


def test_a_catches_a_softmax_taken_for_elementwise_and_b_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Softmax", elementwise)
    graph = graph_of(hidden("h = Softmax(a)"))
    (layer,), _ = find_layers(graph)
    assert oracle_b(graph, layer, X, shuffled(layer))["y"] <= 1e-5
    assert oracle_a(graph, layer, X, half(layer))["y"] > 0.1


def test_b_catches_a_cumulative_sum_taken_for_elementwise_and_a_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping the last neurons is all the same to a sum of those before."""
    monkeypatch.setitem(OPERATORS, "CumSum", elementwise)
    graph = graph_of(hidden("h = CumSum(a, axis)", axis=np.int64(1)))
    (layer,), _ = find_layers(graph)
    assert oracle_a(graph, layer, X, np.arange(3))["y"] <= 1e-5
    assert oracle_b(graph, layer, X, shuffled(layer))["y"] > 0.1


def test_a_catches_a_follower_that_was_forgotten() -> None:
    graph = graph_of(hidden("h = Mul(a, c)", c=(1, 5)))
    (layer,), _ = find_layers(graph)
    with pytest.raises(Exception, match="Incompatible dimensions"):
        oracle_a(graph, replace(layer, followers=()), X, half(layer))


def test_b_catches_a_follower_that_was_forgotten() -> None:
    graph = graph_of(hidden("h = Mul(a, c)", c=(1, 5)))
    (layer,), _ = find_layers(graph)
    assert oracle_b(graph, replace(layer, followers=()), X, shuffled(layer))["y"] > 0.1


def test_both_catch_a_consumer_that_was_forgotten() -> None:
    graph = graph_of(two_heads())
    (layer,), _ = find_layers(graph)
    forgetful = replace(layer, consumers=layer.consumers[:1])
    assert oracle_b(graph, forgetful, X, shuffled(layer))["z"] > 0.1


# Real models


FEEDS: dict[str, dict[str, Array]] = {
    "snakers4__silero-vad__model_micro.onnx": {"input": normal(2, 4000)},
    "snakers4__silero-vad__silero_vad_16k_op15.onnx": {
        "input": normal(4, 512),
        "state": normal(2, 4, 128),
        "sr": np.array(16000),
    },
}
"""For models that `random` does not suit: its paddings need more samples than 32."""

NOT_FOUND = {
    "emmtrix__emx-onnx-cgen__micro_kws_m_static_qdq.onnx": "quantized",
}
"""Models of which no layer is found though the manifest names some, and why."""

DENSE = {
    "NeuralNetworkVerification__Marabou__self-attention-sim.onnx": [32],
    "yiqide__ai_2048__Visual3DBall.onnx": [128, 128, 128],
}
"""Dense layers, where the manifest, which looked no further than elementwise operators, does not name them all."""

CONVOLUTIONS = {
    "BenPinhasov__MesoNet__model.onnx": [8, 8, 16, 16],
    "emmtrix__emx-onnx-cgen__micro_kws_m_static_fp32.onnx": [16, 12, 16],
    "fastmachinelearning__qonnx__float_model.onnx": [64, 64, 32],
    "fastmachinelearning__qonnx__model_test_keras_conv2d_conversion.onnx": [32, 64, 64],
    "yiqide__ai_2048__Visual3DBall.onnx": [16, 32],
    "tracel-ai__burn-onnx__mnist.onnx": [8, 16, 24],
    "webonnx__wonnx__mnist-8.onnx": [8, 16],
    "NeuralNetworkVerification__Marabou__cnn_max_mninst3.onnx": [2],
    "dongkyunk__LeNet-Pytorch__lenet.onnx": [6, 16, 120],
    "snakers4__silero-vad__model_micro.onnx": [8],
    "snakers4__silero-vad__silero_vad_16k_op15.onnx": [129, 128, 64, 64],
    "uwdb__DeepEverest__mnist.onnx": [10, 20],
    "intelligent-control-lab__ModelVerification.jl__mlp.onnx": [8],
}
"""Widths of layers that begin at convolutions, of the small models."""

MANY_CONVOLUTIONS = {
    "ShiqiYu__libfacedetection.train__retinaface_mbnet0.25.onnx": 26,
    "ShiqiYu__libfacedetection.train__yunet_n_320_320.onnx": 22,
    "opencv__opencv_zoo__vitTracker.onnx": 18,
}
"""Numbers of layers that begin at convolutions, of the others."""


def rows(keep: Callable[[dict[str, str]], object]) -> list[Any]:
    """The models of the manifest that `keep` keeps, but for the one whose weights are missing."""
    chosen = [row for row in manifest() if keep(row) and not row["file"].startswith("weights-missing")]
    return [pytest.param(row, id=Path(row["file"]).stem) for row in chosen] or [
        pytest.param({}, marks=pytest.mark.skip(reason=NO_MODELS))
    ]


def has_layers(row: dict[str, str]) -> bool:
    file = row["file"]
    found = row["prunable_dense_hidden"] or file in DENSE or file in CONVOLUTIONS or file in MANY_CONVOLUTIONS
    return bool(found) and file not in NOT_FOUND


@cache
def real_graph(path: Path) -> Graph:
    load_model(path)
    return Graph(in_order(onnx.load(path)))  # external data too


def real_feeds(name: str, graph: Graph) -> dict[str, Array]:
    if name in FEEDS:
        return FEEDS[name]
    batches = open_batches("random:5", input_specs(graph.model), seed=1)
    return next(iter(batches)).feeds


@pytest.mark.parametrize("row", rows(lambda row: True))
def test_layers_of_the_manifest_are_found_and_no_others(row: dict[str, str], shared_models: Path) -> None:
    file = row["file"]
    graph = real_graph(shared_models / file)
    kinds = {name: graph.nodes[index].op_type for index, name in weighted_nodes(graph).items()}
    layers, _ = find_layers(graph)
    dense = [layer.n for layer in layers if kinds[layer.name] in ("Gemm", "MatMul")]
    named = "" if file in NOT_FOUND else row["prunable_dense_hidden"]
    assert dense == DENSE.get(file, [int(n) for n in re.findall(r"\[(\d+)\]", named)])
    others = [layer.n for layer in layers if kinds[layer.name] not in ("Gemm", "MatMul")]
    if file in MANY_CONVOLUTIONS:
        assert len(others) == MANY_CONVOLUTIONS[file]
    else:
        assert others == CONVOLUTIONS.get(file, [])


@pytest.mark.parametrize("row", rows(has_layers))
def test_oracles_on_a_real_model(row: dict[str, str], shared_models: Path) -> None:
    graph = real_graph(shared_models / row["file"])
    feeds = real_feeds(row["file"], graph)
    original = run(graph.model, feeds)
    for layer in find_layers(graph)[0]:
        a = oracle_a(graph, layer, feeds, half(layer), least=0.01)
        b = gaps(graph, original, run(dropped(graph, layer, shuffled(layer)), feeds), least=0.01)
        assert max(a.values()) <= 1e-4, (layer.name, a)
        assert max(b.values()) <= 1e-4, (layer.name, b)


@pytest.mark.parametrize("row", rows(has_layers))
def test_pruning_without_refit_silences_what_it_drops(row: dict[str, str], shared_models: Path, tmp_path: Path) -> None:
    """Oracle A on all layers at once, by way of `prune`."""
    file, path = row["file"], shared_models / row["file"]
    graph = real_graph(path)
    calib: Any = [FEEDS[file]] if file in FEEDS else "random:5"
    result = onnxdpp.prune(path, calib, keep=0.5, method="importance", refit="none", provider="cpu")
    kept = {entry["name"]: np.array(entry["keep"]) for entry in result.report["layers"]}
    drop = [(layer, np.setdiff1d(np.arange(layer.n), kept[layer.name])) for layer in find_layers(graph)[0]]
    feeds = real_feeds(file, graph)
    result.save(tmp_path / "pruned.onnx")
    pruned = onnx.load(tmp_path / "pruned.onnx")  # external data too
    found = gaps(graph, run(silenced(graph, drop), feeds), run(pruned, feeds), least=0.01)
    assert max(found.values()) <= 1e-4, found


def test_pruning_without_refit_keeps_every_bit_of_a_small_model() -> None:
    proto = mlp()
    result = onnxdpp.prune(proto, {"x": normal(64, 4)}, keep=1.0, refit="none", provider="cpu")
    np.testing.assert_array_equal(run(result.model, X)[0], run(proto, X)[0])


@pytest.mark.parametrize("unit", ["neuron", "edge"])
@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("holder", ["initializer", "Constant"])
def test_layer_upon_a_constant_is_pruned(holder: str, ir_version: int, unit: str) -> None:
    """Nothing of it depends on the data: what is observed before it is a constant."""
    constant = "C = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()" if holder == "Constant" else ""
    proto = model(
        f"""g (float[N, 3] x) => (float[N, 3] y) {{
            {constant} [fc1] a = MatMul(C, W1)   h = Relu(a)   [fc2] b = MatMul(h, W2)   y = Add(x, b)
        }}""",
        ir_version=ir_version,
        **({} if constant else {"C": (4,)}),
        **{"W1": (4, 6), "W2": (6, 3)},
    )
    data = {"x": normal(9, 3)}
    result = onnxdpp.prune(proto, data, keep=0.5, unit=unit, provider="cpu")
    assert gap(run(proto, data)[0], run(result.model, data)[0]) <= 1e-5


# Random models: see `networks`

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def judged(net: Network) -> None:
    try:
        event(f"{judge(net)} layers")
    except Unfit:
        event("unfit")


@settings(max_examples=110, suppress_health_check=HEALTH)
@given(networks(wild=False))
def test_random_networks_are_found_and_sound(net: Network) -> None:
    judged(net)


@settings(max_examples=90, suppress_health_check=HEALTH)
@given(networks(wild=True))
def test_random_networks_with_operators_that_mix_are_sound(net: Network) -> None:
    judged(net)


@pytest.mark.slow
@settings(max_examples=4000, suppress_health_check=HEALTH)
@given(networks(wild=False))
def test_many_random_networks_are_found_and_sound(net: Network) -> None:
    judged(net)


@pytest.mark.slow
@settings(max_examples=4000, suppress_health_check=HEALTH)
@given(networks(wild=True))
def test_many_random_networks_with_operators_that_mix_are_sound(net: Network) -> None:
    judged(net)


@pytest.mark.parametrize("wild", [False, True])
def test_random_networks_run_have_layers_and_are_of_many_operators(wild: bool) -> None:
    """So that the tests above say something."""
    operators: set[str] = set()
    layers = unfit = 0
    for seed in range(150):
        net = network(Thrown(seed), wild=wild)
        proto = net.model()
        layers += len(find_layers(graph_of(proto))[0])
        operators |= {node.op_type for node in proto.graph.node}
        try:
            run(proto, {"x": normal(*net.x)})
        except Exception:
            unfit += 1
    assert layers > 120
    assert unfit < 5
    assert len(operators & OPERATORS.keys()) > 60


# Bugs that are planted


def planted_names(plants: list[tuple[str, Plant]]) -> list[str]:
    return [f"{operator}-{plant.__name__}" for operator, plant in plants]


@pytest.mark.parametrize(("operator", "plant"), QUICK, ids=planted_names(QUICK))
def test_random_networks_find_a_bug_in_an_entry(operator: str, plant: Plant) -> None:
    assert planted_in(operator, plant, 100) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "plant"), PLANTS, ids=planted_names(PLANTS))
def test_random_networks_find_a_bug_in_any_entry(operator: str, plant: Plant) -> None:
    assert planted_in(operator, plant, 1000) is not None


@pytest.mark.parametrize(("plant", "favour"), ELSEWHERE, ids=[plant.__name__ for plant, _ in ELSEWHERE])
def test_random_networks_find_a_bug_in_the_walk(
    plant: Callable[[pytest.MonkeyPatch], None], favour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_after(favour, 300, lambda: plant(monkeypatch), monkeypatch.undo) is not None


BEYOND = """
    Attention CumProd DFT DepthToSpace Det DynamicQuantizeLinear GRU LSTM MeanVarianceNormalization RMSNormalization RNN
    SpaceToDepth Swish Upsample QuantizeLinear DequantizeLinear
""".split()
"""Operators in which nothing is planted; each has its cases in `test_operators` all the same."""


def test_bugs_are_planted_in_every_other_entry() -> None:
    assert {operator for operator, _ in PLANTS} | {*BEYOND} >= OPERATORS.keys()
