"""Data with a label for each row, and how many of the rows a model gets wrong.

A label is one more array beside those of the inputs: it is streamed, checked and cut into batches with its row.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxdpp.accuracy import classes
from onnxdpp.errors import DataError, UsageError
from onnxdpp.graph.attributes import is_float
from onnxdpp.graph.batches import Batches, open_batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.inputs import InputSpec, row_axis
from onnxdpp.graph.padding import Padding, blanked
from onnxdpp.graph.sources import Source
from onnxdpp.graph.walking import quoted


def open_labelled(source: Source, inputs: Sequence[InputSpec], labels: str | None, **options: Any) -> Batches:
    """Open data that hold the class of each row, a whole number from 0 on, under the name `labels`, if any.

    Further options are those of `open_batches`.

    Raises
    ------
    UsageError
        If the data, or the model, have no place for labels.
    DataError
        As `open_batches`; where there is no such array, too.
    """
    if labels is None:
        return open_batches(source, inputs, **options)
    if isinstance(source, str) and source.startswith("random:"):
        raise UsageError("Random data have no labels. Give data that have, or leave --labels out.")
    if any(spec.name == labels for spec in inputs):
        raise UsageError(f"The labels {quoted(labels)} are an input of the model. Name the array with the classes.")
    row_wise, fixed = row_axis(inputs)
    if not row_wise:
        raise UsageError("Not all inputs of the model have a row axis, so that no label belongs to a row.")
    return open_batches(source, (*inputs, InputSpec(labels, np.dtype(np.int64), (fixed,), labels=True)), **options)


def classification_error(
    graph: Graph, model: ModelProto, batches: Batches, labels: str, provider: str, mask: str | None = None
) -> float:
    """The share of rows whose largest score, or whose class where the model tells it, is not the label's.

    Parameters
    ----------
    graph : Graph
        The original, from whose folder external data are named.
    model : ModelProto
    batches : Batches
        From `open_labelled`.
    labels : str
    provider : {"cpu", "cuda"}
    mask : str, optional
        An input whose zeros mark padding: no class is there, and rows of nothing else do not count.
    """
    session = Session(model, provider, graph.folder)
    names = [name for name, *_ in session.outputs]
    padding = Padding(graph.model, mask)
    wrong = rows = 0
    for batch in batches:
        truth = batch.feeds[labels]
        outputs = {
            name: (array, padding.of(batch, array, name))
            for name, array in zip(names, session.run(batch), strict=True)
            if name not in graph.random_values and isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
        }
        found, counted = _classes(outputs.values(), truth)
        wrong += int((found != truth)[counted].sum())
        rows += int(counted.sum())
    if not rows:
        raise DataError(f"All rows of the data are padding by the mask {mask!r}.")
    return wrong / rows


def _classes(
    outputs: Iterable[tuple[Array, NDArray[np.bool_] | None]], truth: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """From the first output with scores for each row of data, or else with a whole number; and which of them count."""
    for array, padding in sorted(outputs, key=lambda output: output[0].dtype.kind != "f"):
        found = classes(blanked(array, padding, -np.inf) if is_float(array) else array)
        if found is None or len(found) != len(truth):
            continue
        count = array[0].size
        if array.dtype.kind == "f" and not 0 <= truth.min() <= truth.max() < count:
            raise DataError(
                f"The labels go from {truth.min()} to {truth.max()}, but the model tells {count} classes apart. "
                "Count them from 0."
            )
        if padding is None:
            return found, np.ones(len(found), bool)
        return found, np.asarray(~padding.reshape(len(found), -1).all(1))
    raise UsageError("Labels need an output with scores of at least two classes, or with a class, for each row.")
