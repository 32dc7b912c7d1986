"""What the tests of all exporters share: prune, and the framework's own weights with the same neurons removed.

A framework's model is judged as arrays by name. `Cuts` say, for each hidden layer of the model in the order of the
graph, where a neuron's entries lie in these arrays; the pruned file must answer as the framework does with the
entries of the dropped neurons gone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from models import Array
from onnx import ModelProto

import onnxdpp


class Cut(NamedTuple):
    """Entries along one axis of an array that belong to neurons; `spread` maps neurons to positions."""

    array: str
    axis: int
    spread: Callable[[Array], Array] = lambda neurons: neurons


class Hidden(NamedTuple):
    """A hidden layer: how many neurons, and all their entries."""

    width: int
    cuts: Sequence[Cut]


class Case(NamedTuple):
    """A model and its hidden layers, in the order of its graph.

    Attributes
    ----------
    make : callable
        Takes the model's widths, all with defaults.
    opset : int
        The first in which it can be exported.
    widths : callable
        The model's widths when these neurons stay: as many as there are layers, unless some go together.
    """

    make: Callable[..., Any]
    rows: Array
    layers: Sequence[Hidden]
    opset: int = 0
    widths: Callable[[Sequence[Sequence[int]]], Sequence[int]] = lambda keeps: [len(keep) for keep in keeps]


def narrowed(arrays: Mapping[str, Array], layers: Sequence[Hidden], keeps: Sequence[Sequence[int]]) -> dict[str, Array]:
    """The arrays without the entries of the neurons that are not in `keeps`."""
    result = dict(arrays)
    for layer, keep in zip(layers, keeps, strict=True):
        neurons = np.setdiff1d(np.arange(layer.width), keep)
        for array, axis, spread in layer.cuts:
            result[array] = np.delete(result[array], spread(neurons).ravel(), axis)
    return result


def keeps_of(report: Mapping[str, Any], layers: Sequence[Hidden]) -> list[list[int]]:
    """Which neurons stay in each of `layers`, which must be what was pruned, half of each."""
    assert [layer["width"] for layer in report["layers"]] == [layer.width for layer in layers]
    assert [layer["kept"] for layer in report["layers"]] == [layer.width // 2 for layer in layers]
    return [layer["keep"] for layer in report["layers"]]


def halved(proto: ModelProto, calib: Mapping[str, Array], **options: Any) -> onnxdpp.PruneResult:
    """Half of all neurons pruned, and what every pruned file must be: smaller, and sound in onnxruntime."""
    result = onnxdpp.prune(proto, calib, keep=0.5, provider="cpu", **options)
    before, after = (result.report["model"][when] for when in ("before", "after"))
    assert after["parameters"] < before["parameters"]
    assert after["macs"] < before["macs"]
    figures = [figure for output in result.report["discrepancy"].values() for figure in output.values()]
    assert all(np.isfinite(figure) for figure in figures if figure is not None)  # None: no classes, no direction
    return result


def refit_helps(proto: ModelProto, calib: Mapping[str, Array]) -> bool:
    """Whether every output is nearer to the original's with the default refit than without one."""
    refitted, cut = (halved(proto, calib, refit=refit).report["discrepancy"] for refit in ("affine", "none"))
    return all(refitted[output]["relative_l2"] < cut[output]["relative_l2"] for output in cut)


def reasons(proto: ModelProto) -> dict[str, str]:
    """Name -> why no neurons of it can be pruned."""
    return {entry["name"]: entry["reason"] for entry in onnxdpp.inspect(proto)["refusals"] if entry["unit"] == "neuron"}
