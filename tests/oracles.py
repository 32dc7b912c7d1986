"""Two independent judges of whether neurons were found rightly.

A. Dropping neurons gives what the original gives when the consumers' entries for these neurons are zero.
B. The order of the neurons is nobody's business: permuting them leaves all outputs as they are.

A alone passes a running sum whose last neurons go; B alone passes Softmax over the neurons.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from models import Array, run
from onnx import ModelProto, numpy_helper

from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.rewriting import apply, sliced


def dropped(graph: Graph, layer: Layer, keep: Array) -> ModelProto:
    """The model with only the neurons `keep` of `layer`, in that order."""
    return apply(graph, sliced(graph, {}, layer.slices, keep), layer.changed)


def silenced(model: ModelProto, drop: Mapping[int, Array]) -> ModelProto:
    """The model with zeros where its consumers, by node number, read the neurons `drop`; shapes stay.

    Written without the package's own rewriting, which it is to judge.
    """
    result = ModelProto()
    result.CopyFrom(model)
    for index, neurons in drop.items():
        node = result.graph.node[index]
        tensor = _tensor(result, node.input[1])
        weights = numpy_helper.to_array(tensor).copy()
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        weights[(slice(None), neurons) if transposed else neurons] = 0
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights, name))
    return result


def _tensor(model: ModelProto, name: str) -> Any:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return tensor
    maker = next(node for node in model.graph.node if name in node.output)
    return maker.attribute[0].t


def consumers(layer: Layer) -> list[int]:
    """Numbers of the nodes that read the layer's neurons."""
    return [projection.node for projection, _ in layer.consumers]


def gaps(graph: Graph, old: Sequence[Any], new: Sequence[Any]) -> dict[str, float]:
    """Output name -> largest difference relative to the largest entry; random outputs left out."""
    names = [value.name for value in graph.model.graph.output]
    return {name: gap(a, b) for name, a, b in zip(names, old, new, strict=True) if name not in graph.random_values}


def gap(old: Any, new: Any) -> float:
    """Largest difference of two outputs relative to the largest entry; infinite where shapes or kinds differ."""
    if isinstance(old, list):  # a sequence of maps, as sklearn's classifiers give
        pairs = [(a[key], b[key]) for a, b in zip(old, new, strict=True) for key in a]
        old, new = np.array(pairs, np.float64).T
    if old.shape != new.shape or old.dtype != new.dtype:
        return np.inf
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return np.inf
    scale = max(np.abs(old[finite]).max(initial=0.0), 1e-30)
    return float(np.abs(old - new)[finite].max(initial=0.0) / scale)


def oracle_a(graph: Graph, layer: Layer, feeds: Mapping[str, Array], keep: Array) -> dict[str, float]:
    """How far dropping all but `keep` is, in each output, from silencing them."""
    drop = np.setdiff1d(np.arange(layer.n), keep)
    quiet = silenced(graph.model, dict.fromkeys(consumers(layer), drop))
    return gaps(graph, run(quiet, feeds), run(dropped(graph, layer, keep), feeds))


def oracle_b(graph: Graph, layer: Layer, feeds: Mapping[str, Array], order: Array) -> dict[str, float]:
    """How far permuting the neurons moves each output."""
    return gaps(graph, run(graph.model, feeds), run(dropped(graph, layer, order), feeds))


def half(layer: Layer, seed: int = 0) -> Array:
    """About half of the neurons of `layer`, sorted; at least one."""
    size = max(1, layer.n // 2)
    return np.sort(np.random.default_rng(seed).choice(layer.n, size, replace=False))


def shuffled(layer: Layer, seed: int = 0) -> Array:
    """The neurons of `layer` in another order."""
    return np.random.default_rng(seed).permutation(layer.n)
