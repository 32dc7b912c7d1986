"""Data with a label for each row, and how many of the rows a model gets wrong.

A label is one more array beside those of the inputs: it is streamed, checked and cut into batches with its row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxdpp.accuracy import classes
from onnxdpp.errors import DataError, UsageError
from onnxdpp.graph.batches import Batches, open_batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.inputs import InputSpec, row_axis
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


def classification_error(graph: Graph, model: ModelProto, batches: Batches, labels: str, provider: str) -> float:
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
    """
    session = Session(model, provider, graph.folder)
    places = [place for place, (name, *_) in enumerate(session.outputs) if name not in graph.random_values]
    wrong = 0
    for batch in batches:
        truth, outputs = batch.feeds[labels], session.run(batch)
        wrong += int((_classes([outputs[place] for place in places], truth) != truth).sum())
    return wrong / batches.rows


def _classes(outputs: Sequence[Array], truth: Array) -> Array:
    """From the first output with scores for each row of data; or else the first with a whole number."""
    arrays = [array for array in outputs if isinstance(array, np.ndarray) and array.dtype.kind in "fiub"]
    for array in sorted(arrays, key=lambda array: array.dtype.kind != "f"):
        found = classes(array)
        if found is None or len(found) != len(truth):
            continue
        count = array[0].size
        if array.dtype.kind == "f" and not 0 <= truth.min() <= truth.max() < count:
            raise DataError(
                f"The labels go from {truth.min()} to {truth.max()}, but the model tells {count} classes apart. "
                "Count them from 0."
            )
        return found
    raise UsageError("Labels need an output with scores of at least two classes, or with a class, for each row.")
