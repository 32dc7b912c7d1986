"""The oracles, on real models and on random ones: what was found can be dropped, and nothing else notices.

`oracles` says what A and B are. They need each other, and need to be able to fail: see the first tests.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from models import NO_MODELS, Array, graph_of, hidden, manifest, mlp, model, normal, run, two_heads
from onnx import ModelProto
from oracles import dropped, gap, gaps, half, oracle_a, oracle_b, shuffled, silenced

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
def test_pruning_without_refit_silences_what_it_drops(row: dict[str, str], shared_models: Path) -> None:
    """Oracle A on all layers at once, by way of `prune`."""
    file, path = row["file"], shared_models / row["file"]
    graph = real_graph(path)
    calib: Any = [FEEDS[file]] if file in FEEDS else "random:5"
    result = onnxdpp.prune(path, calib, keep=0.5, method="importance", refit="none", provider="cpu")
    kept = {entry["name"]: np.array(entry["keep"]) for entry in result.report["layers"]}
    drop = [(layer, np.setdiff1d(np.arange(layer.n), kept[layer.name])) for layer in find_layers(graph)[0]]
    feeds = real_feeds(file, graph)
    found = gaps(graph, run(silenced(graph, drop), feeds), run(result.model, feeds), least=0.01)
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


# Random models

UNARY = (
    "Relu Tanh Sigmoid Abs Neg Softplus Softsign Elu LeakyRelu HardSigmoid HardSwish Identity Cos Erf Dropout".split()
)
CONSTANT = "Add Sub Mul Max Min PRelu".split()
JOINING = "Add Sub Mul Max Min Mean Sum".split()
MIXING = {
    "Softmax": "{out} = Softmax({a})",
    "LogSoftmax": "{out} = LogSoftmax({a})",
    "CumSum": "{out} = CumSum({a}, axis)",
    "LpNormalization": "{out} = LpNormalization({a})",
    "LayerNormalization": "{out} = LayerNormalization({a}, scale{n})",
    "ReduceSum": "r{out} = ReduceSum({a}, last)   {out} = Mul({a}, r{out})",
    "Reverse": "{out} = Slice({a}, from, to, last, step)",
    "Shape": "s{out} = Shape({a})   {out} = Reshape({a}, s{out})",
    "Output": "{out} = Identity({a})   given{out} = Identity({a})",
    "Concat": "c{out} = Concat <axis = -1> ({a}, {a})   {out} = Slice(c{out}, zero_, w{n}, last)",
}
"""What no layer may go through (given values are made graph outputs)."""


@dataclass
class Builder:
    """A random model in the making: statements in the text form of ONNX, and weights."""

    rng: np.random.Generator
    lines: list[str] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    rank: int = 2

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}_"
        self.weights[name] = (self.rng.standard_normal(shape) / 2).astype(np.float32)
        return name

    def value(self) -> str:
        return f"v{len(self.lines)}"

    def add(self, text: str) -> str:
        out = self.value()
        self.lines.append(text.format(out=out))
        return out

    def model(self) -> ModelProto:
        lead = "2, 3, 4" if self.rank == 3 else "3, 4"
        shapes = [", ".join(f"{name}_{axis}" for axis in range(self.rank)) for name in self.outputs]
        outputs = ", ".join(f"float[{shape}] {name}" for name, shape in zip(self.outputs, shapes, strict=True))
        return model(f"g (float[{lead}] x) => ({outputs}) {{ {' '.join(self.lines)} }}", **self.weights)


def dense(build: Builder, draw: st.DrawFn, source: str, n: int, m: int, name: str = "") -> str:
    """A Gemm or MatMul, with or without a bias."""
    forms = ["MatMul", "MatMul+Add", "Add+MatMul", "MatMul+Sub"]
    if build.rank == 2:
        forms += ["Gemm", "Gemm+bias", "Gemm transB", "Gemm alpha", "Gemm beta"]
    form = draw(st.sampled_from(forms))
    shape = (m, n) if form == "Gemm transB" else (n, m)
    title = f"[{name}] " if name else ""
    weight = build.weight(*shape)
    if form.startswith("Gemm"):
        attributes = {"Gemm transB": "<transB = 1>", "Gemm alpha": "<alpha = -0.5>", "Gemm beta": "<beta = 0.5>"}
        bias = draw(st.sampled_from([(m,), (1, m), (1,)]))
        inputs = [source, weight] + ([build.weight(*bias)] if form in ("Gemm+bias", "Gemm beta") else [])
        return build.add(f"{title}{{out}} = Gemm {attributes.get(form, '')} ({', '.join(inputs)})")
    product = build.add(f"{title}{{out}} = MatMul({source}, {weight})")
    match form:
        case "MatMul+Add":
            return build.add(f"{{out}} = Add({product}, {build.weight(m)})")
        case "Add+MatMul":
            return build.add(f"{{out}} = Add({build.weight(1, m)}, {product})")
        case "MatMul+Sub":
            return build.add(f"{{out}} = Sub({build.weight(m)}, {product})")
    return product


def region(build: Builder, draw: st.DrawFn, start: str, n: int, mixing: bool) -> list[str]:
    """Elementwise operators upon each other's values: chains, diamonds, dead ends."""
    values = [start]
    for _ in range(draw(st.integers(0, 6))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kinds = ["unary", "constant", "joining", "clip"] + ["mixing"] * mixing
        match draw(st.sampled_from(kinds)):
            case "unary":
                out = build.add(f"{{out}} = {draw(st.sampled_from(UNARY))}({a})")
            case "constant":
                shapes = [(n,), (1, n), (1,), ()] + [(2, 1, n), (2, 1, 1)] * (build.rank == 3)
                operator = draw(st.sampled_from(CONSTANT))
                pair = [a, build.weight(*draw(st.sampled_from(shapes)))]
                if operator != "PRelu" and draw(st.booleans()):
                    pair.reverse()
                out = build.add(f"{{out}} = {operator}({', '.join(pair)})")
            case "joining":
                out = build.add(f"{{out}} = {draw(st.sampled_from(JOINING))}({a}, {b})")
            case "clip":
                out = build.add(f"{{out}} = Clip({a}, {build.weight()}, )")
            case _:
                name = draw(st.sampled_from(sorted(MIXING)))
                text = MIXING[name].replace("{a}", a).replace("{n}", str(n))
                out = build.add(text)
                build.outputs += [f"given{out}"] * (name == "Output")
        values.append(out)
    return values


@st.composite
def networks(draw: st.DrawFn, *, mixing: bool) -> Builder:
    """One to three hidden blocks, each upon the input or another block, each with one head or two."""
    build = Builder(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), rank=draw(st.sampled_from([2, 3])))
    if mixing:
        constants = {"axis": -1, "last": [-1], "from": [-1], "to": [-100], "step": [-1], "zero_": [0]}
        build.weights |= {name: np.array(value, np.int64) for name, value in constants.items()}
        build.weights |= {f"w{n}": np.array([n], np.int64) for n in range(1, 7)}
        build.weights |= {f"scale{n}": np.linspace(1, 2, n, dtype=np.float32) for n in range(1, 7)}
    sources = [("x", 4)]
    for block in range(draw(st.integers(1, 3))):
        source, width = draw(st.sampled_from(sources))
        n = draw(st.integers(1, 6))
        name = f"layer{block}"
        values = region(build, draw, dense(build, draw, source, width, n, name), n, mixing)
        build.layers.append(name)
        # Whatever else reads this block, one head does: no layer is without consumers.
        build.outputs.append(build.add(f"{{out}} = Identity({dense(build, draw, values[-1], n, 2)})"))
        for _ in range(draw(st.integers(0, 1))):
            extra = draw(st.sampled_from(values))
            build.outputs.append(build.add(f"{{out}} = Identity({dense(build, draw, extra, n, 3)})"))
        sources.append((draw(st.sampled_from(values)), n))
    return build


def judge(build: Builder, *, complete: bool) -> None:
    """Both oracles on every layer found; with `complete`, every layer that was built is found."""
    proto = build.model()
    graph = graph_of(proto)
    layers, refusals = find_layers(graph)
    if complete:
        assert {layer.name for layer in layers} >= set(build.layers), refusals
    feeds = {"x": normal(*(2, 3, 4)[3 - build.rank :])}
    for layer in layers:
        a = oracle_a(graph, layer, feeds, half(layer))
        b = oracle_b(graph, layer, feeds, shuffled(layer))
        assert max(a.values()) <= 1e-4, (layer.name, a, build.lines)
        assert max(b.values()) <= 1e-4, (layer.name, b, build.lines)
    event(f"{len(layers)} layers")


HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, suppress_health_check=HEALTH)
@given(networks(mixing=False))
def test_random_elementwise_networks_are_found_and_sound(build: Builder) -> None:
    judge(build, complete=True)


@settings(max_examples=60, suppress_health_check=HEALTH)
@given(networks(mixing=True))
def test_random_networks_with_operators_that_mix_are_sound(build: Builder) -> None:
    judge(build, complete=False)


@pytest.mark.slow
@settings(max_examples=3000, suppress_health_check=HEALTH)
@given(networks(mixing=False))
def test_many_random_elementwise_networks_are_found_and_sound(build: Builder) -> None:
    judge(build, complete=True)


@pytest.mark.slow
@settings(max_examples=3000, suppress_health_check=HEALTH)
@given(networks(mixing=True))
def test_many_random_networks_with_operators_that_mix_are_sound(build: Builder) -> None:
    judge(build, complete=False)
