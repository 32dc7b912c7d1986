"""Two independent judges of whether neurons were found rightly.

A. Dropping neurons gives what the original gives when the consumers' entries for these neurons are zero.
B. The order of the neurons is nobody's business: permuting them leaves all outputs as they are.

A alone passes a running sum whose last neurons go; B alone passes Softmax over the neurons.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from models import Array, graph_of, run
from onnx import ModelProto, helper, numpy_helper

from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.rewriting import apply, sliced


def dropped(graph: Graph, layer: Layer, keep: Array) -> ModelProto:
    """The model with only the neurons `keep` of `layer`, in that order."""
    return apply(graph, sliced(graph, {}, layer, keep), layer.changed)


def silenced(graph: Graph, drop: Sequence[tuple[Layer, Array]]) -> ModelProto:
    """The model with zeros where the consumers of each layer read the neurons to drop; shapes stay.

    Written without the package's own rewriting, which it is to judge: a Mul upon each weight.
    """
    result = ModelProto()
    result.CopyFrom(graph.model)
    before: dict[int, list[Any]] = {}
    for layer, neurons in drop:
        for projection, slicing in layer.consumers:
            node = result.graph.node[projection.node]
            weight = graph.array(graph.nodes[projection.node].input[1])
            shape = [1] * weight.ndim
            shape[slicing.axis] = -1
            mask = (~np.isin(slicing.labels, neurons)).astype(weight.dtype).reshape(shape)
            name = f"silenced/{layer.name}/{projection.node}"
            result.graph.initializer.append(numpy_helper.from_array(mask, f"{name}/mask"))
            if result.ir_version < 4:
                kind = helper.np_dtype_to_tensor_dtype(mask.dtype)
                result.graph.input.append(helper.make_tensor_value_info(f"{name}/mask", kind, mask.shape))
            mul = helper.make_node("Mul", [node.input[1], f"{name}/mask"], [name])
            before.setdefault(projection.node, []).append(mul)
            node.input[1] = name
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for index, node in enumerate(nodes):
        result.graph.node.extend([*before.get(index, []), node])
    return result


def gaps(graph: Graph, old: Sequence[Any], new: Sequence[Any], least: float = 1e-30) -> dict[str, float]:
    """Output name -> `gap`; random outputs left out."""
    pairs = zip(graph.model.graph.output, old, new, strict=True)
    return {value.name: gap(a, b, least) for value, a, b in pairs if value.name not in graph.random_values}


def gap(old: Any, new: Any, least: float = 1e-30) -> float:
    """Largest difference of two outputs relative to the largest entry; infinite where shapes or kinds differ.

    An output of a Sigmoid may be smaller than its rounding: largest entries below `least` count as that.
    """
    if isinstance(old, list):  # a sequence of maps, as sklearn's classifiers give
        pairs = [(a[key], b[key]) for a, b in zip(old, new, strict=True) for key in a]
        old, new = np.array(pairs, np.float64).T
    if old.shape != new.shape or old.dtype != new.dtype:
        return np.inf
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return np.inf
    scale = max(np.abs(old[finite]).max(initial=0.0), least)
    return float(np.abs(old - new)[finite].max(initial=0.0) / scale)


def oracle_a(
    graph: Graph, layer: Layer, feeds: Mapping[str, Array], keep: Array, least: float = 1e-30
) -> dict[str, float]:
    """How far dropping all but `keep` is, in each output, from silencing them."""
    drop = np.setdiff1d(np.arange(layer.n), keep)
    quiet = silenced(graph, [(layer, drop)])
    return gaps(graph, run(quiet, feeds), run(dropped(graph, layer, keep), feeds), least)


def oracle_b(graph: Graph, layer: Layer, feeds: Mapping[str, Array], order: Array) -> dict[str, float]:
    """How far permuting the neurons moves each output."""
    return gaps(graph, run(graph.model, feeds), run(dropped(graph, layer, order), feeds))


def half(layer: Layer, seed: int = 0) -> Array:
    """About half of the neurons of `layer`, sorted; at least one of each section."""
    rng = np.random.default_rng(seed)
    first = [rng.choice(np.flatnonzero(layer.sections == section)) for section in np.unique(layer.sections)]
    others = rng.permutation(np.setdiff1d(np.arange(layer.n), first))
    return np.sort(np.concatenate([first, others[: max(0, layer.n // 2 - len(first))]]).astype(np.intp))


def shuffled(layer: Layer, seed: int = 0) -> Array:
    """The neurons of `layer` in another order, each in the place of one that is like it."""
    order = np.arange(layer.n)
    rng = np.random.default_rng(seed)
    for kind in np.unique(layer.alike):
        members = np.flatnonzero(layer.alike == kind)
        order[members] = rng.permutation(members)
    return order


def assert_sound(proto: ModelProto, feeds: Mapping[str, Array], *, tolerance: float) -> None:
    """Both oracles, on every layer found; and silencing neurons changes some output, so that A says something."""
    graph = graph_of(proto)
    layers, refusals = find_layers(graph)
    assert layers, refusals
    for layer in layers:
        keep = half(layer)
        drop = np.setdiff1d(np.arange(layer.n), keep)
        old, silent = run(proto, feeds), run(silenced(graph, [(layer, drop)]), feeds)
        assert max(gaps(graph, old, silent).values()) > 10 * tolerance
        assert max(oracle_a(graph, layer, feeds, keep).values()) <= tolerance
        assert max(oracle_b(graph, layer, feeds, shuffled(layer)).values()) <= tolerance
