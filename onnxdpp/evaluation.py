"""Two models, one data set: what they cost and how far their answers lie apart."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxdpp.answers import Answers
from onnxdpp.errors import DataError, ModelError
from onnxdpp.graph.batches import Batch, Batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.external import tensor_array
from onnxdpp.graph.index import ONNX_DOMAINS, Array, Graph, attribute
from onnxdpp.graph.names import Names
from onnxdpp.graph.padding import NO_PADDING, Padding
from onnxdpp.graph.walking import all_nodes, all_tensors, quoted
from onnxdpp.report import worst

FLOATS = frozenset([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])
MOST_BYTES = 2**27  # of answers that are kept
COUNTED = ("Gemm", "MatMul", "Conv", "ConvTranspose")


def parameters(model: ModelProto, folder: Path | None = None) -> tuple[int, int]:
    """Entries of all float constants of a model, and how many of them are not zero.

    Initializers and Constant nodes count, in the main graph, in bodies and in functions. Of tensors in external data
    whose `folder` is not given, all entries count as not zero.
    """
    total = nonzero = 0
    for _, tensor in all_tensors(model):
        if tensor.data_type in FLOATS:
            size = int(np.prod(tensor.dims, dtype=np.int64))
            total += size
            array = tensor_array(tensor, folder)
            nonzero += size if array is None else int(np.count_nonzero(array))
    for node in all_nodes(model):
        for entry in node.attribute:
            if entry.name in ("value_float", "value_floats") and node.op_type == "Constant":
                numbers = np.atleast_1d(helper.get_attribute_value(entry))
                total += numbers.size
                nonzero += int(np.count_nonzero(numbers))
    return total, nonzero


def macs_per_row(graph: Graph, batch: Batch, provider: str) -> int | None:
    """Multiply-accumulates for each row, as measured from the shapes of one run; see `macs_by_node`."""
    found = macs_by_node(graph, batch, provider)
    return None if found is None else sum(found.values()) // batch.rows


def macs_by_node(graph: Graph, batch: Batch, provider: str) -> dict[int, int] | None:
    """Multiply-accumulates of one batch, by the number of the node.

    Parameters
    ----------
    graph : Graph
    batch : Batch
        What to run; the shapes that arise in it are counted.
    provider : {"cpu", "cuda"}

    Returns
    -------
    dict or None
        Of the Gemm, MatMul, Conv and ConvTranspose nodes of the main graph. None where the run fails.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    names = Names(graph)
    counted = {i: n for i, n in enumerate(graph.nodes) if n.op_type in COUNTED and n.domain in ONNX_DOMAINS}
    for index, node in counted.items():
        for slot, value in enumerate((node.input[0], node.input[1], node.output[0])):
            name = names.fresh(f"onnxdpp/shape/{index}/{slot}")
            model.graph.node.append(helper.make_node("Shape", [value], [name]))
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    if not counted:
        return {}
    try:
        shapes = [shape.tolist() for shape in Session(model, provider, graph.folder).run(batch)]
    except (ModelError, DataError):
        return None
    result = {}
    for place, (index, node) in enumerate(counted.items()):
        left, right, out = shapes[3 * place : 3 * place + 3]
        match node.op_type:
            case "Gemm":
                result[index] = int(np.prod(out)) * left[0 if attribute(node, "transA", 0) else 1]
            case "MatMul":
                result[index] = int(np.prod(out)) * left[-1]
            case "Conv":
                result[index] = int(np.prod(out)) * int(np.prod(right[1:]))
            case _:
                result[index] = int(np.prod(left)) * int(np.prod(right[1:]))
    return result


@dataclass
class Discrepancy:
    """How far the outputs of two models lie apart.

    Attributes
    ----------
    outputs : dict
        Output name -> ``relative_l2``, ``max_abs``, ``cosine`` and ``agreement`` (float outputs), or ``agreement`` (all
        others); see `onnxdpp.answers`.
    accuracy : dict
        Output name -> what `accuracy.Tally.result` gives, where labels were given and the output has their classes.
    notices : list of str
        Outputs that could not be compared, and why.
    """

    outputs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """As `report.worst`; NaN where nothing was compared."""
        found = worst(self.outputs.values())
        return math.nan if found is None else found


class Recalled(Session):
    """A model whose answers are kept, as far as `MOST_BYTES` hold them: for comparing many others with it."""

    def __init__(self, model: ModelProto, provider: str, folder: Path | None = None) -> None:
        super().__init__(model, provider, folder)
        self._answers: dict[int, list[Array]] = {}
        self._room = MOST_BYTES

    def run(self, batch: Batch) -> list[Array]:
        """The outputs for one batch, always of the same data."""
        if batch.first in self._answers:
            return self._answers[batch.first]
        outputs = super().run(batch)
        size = sum(array.nbytes for array in outputs if isinstance(array, np.ndarray))
        if size <= self._room and all(isinstance(array, np.ndarray) for array in outputs):
            self._room -= size
            self._answers[batch.first] = outputs
        return outputs


def compare(
    original: Graph,
    pruned: ModelProto,
    batches: Batches,
    provider: str,
    progress: Callable[[int], None] = lambda rows: None,
    *,
    mask: str | None = None,
    finite: bool = False,
    before: Session | None = None,
) -> Discrepancy:
    """Run a model and what became of it over all batches, and compare their outputs.

    Parameters
    ----------
    original : Graph
    pruned : ModelProto
        Its external data, if it has any, are named from the original's folder.
    batches : Batches
    provider : {"cpu", "cuda"}
    progress : callable
        Told the number of rows of each batch.
    mask : str, optional
        An input whose zeros mark padding, which is not compared.
    finite : bool
        Whether entries that are finite in the original alone are an error; else that output is infinitely far.
    before : Session, optional
        Of the original, where there is one already.

    Raises
    ------
    ModelError
        If the inputs or outputs of the two differ in name, type or shape; with `finite`, if the pruned model is not
        finite somewhere where the original is.
    """
    before = before or Session(original.model, provider, original.folder)
    after = Session(pruned, provider, original.folder)
    if (before.inputs, before.outputs) != (after.inputs, after.outputs):
        raise ModelError("The pruned model would have other inputs or outputs than the original.")
    return differences(
        before, after, batches, progress,
        random_values=original.random_values, counting_values=original.counting_values,
        padding=Padding(original.model, mask), finite=finite,
    )  # fmt: skip


def differences(
    before: Session,
    after: Session,
    batches: Batches,
    progress: Callable[[int], None] = lambda rows: None,
    *,
    random_values: Collection[str] = (),
    counting_values: Collection[str] = (),
    labels: str | None = None,
    padding: Padding = NO_PADDING,
    finite: bool = False,
) -> Discrepancy:
    """How far apart two models of the same interface answer.

    Parameters
    ----------
    before, after : Session
        Of the original and of the other one; with the same inputs and outputs, in any order.
    batches : Batches
    progress : callable
        Told the number of rows of each batch.
    random_values : collection of str
        Outputs of these names are not compared.
    counting_values : collection of str
        Nor are those of these names, once they have another shape in the other model.
    labels : str, optional
        Which of the feeds are no input, but the classes of the rows.
    padding : Padding, optional
        What of the outputs is not compared.
    finite : bool
        Whether entries that are finite in the original alone are an error, or, by default, a notice.

    Raises
    ------
    ModelError
        If an output has another shape or type in the two models, or is not finite.
    DataError
        If a run fails; if labels are given and no output looks like their classes.
    """
    result = Discrepancy()
    places = {name: place for place, (name, _, _) in enumerate(after.outputs)}
    found: dict[str, Answers] = {}
    for name, kind, _ in before.outputs:
        if name in random_values:
            result.notices.append(f"Output {quoted(name)} depends on a random operator and is not compared.")
        elif not kind.startswith("tensor("):
            result.notices.append(f"Output {quoted(name)} is a {kind} and is not compared.")
        else:
            found[name] = Answers()
    for batch in batches:
        old, new = before.run(batch), after.run(batch)
        for place, (name, _, _) in enumerate(before.outputs):
            if name not in found:
                continue
            a, b = old[place], new[places[name]]
            classes = None if labels is None else batch.feeds[labels]
            if a.shape != b.shape and name in counting_values:
                del found[name]
                result.notices.append(
                    f"Output {quoted(name)} has another number of entries in the pruned model for the same rows and is "
                    "not compared."
                )
                continue
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ModelError(
                    f"Output {quoted(name)} is {b.dtype} {b.shape} in the pruned model, {a.dtype} {a.shape} in the "
                    "original."
                )
            lost = found[name].add(a, b, classes, padding.of(batch, a, name))
            if lost and finite:
                raise ModelError(
                    f"Output {quoted(name)} of the pruned model is not finite for rows {batch.first} to "
                    f"{batch.first + batch.rows - 1} of the data, where the original's is. Keep more."
                )
        progress(batch.rows)
    for name, answers in found.items():
        if not answers.is_known:
            result.notices.append(
                f"Output {quoted(name)} has nothing to compare on these rows: no finite entry, padding aside."
            )
            continue
        result.outputs[name] = answers.result()
        if answers.lost:
            result.notices.append(
                f"Output {quoted(name)} of the pruned model is not finite in {answers.lost} entries where the "
                "original's is."
            )
    if labels is not None:
        _add_accuracy(result, found, labels)
    return result


def _add_accuracy(result: Discrepancy, found: dict[str, Answers], labels: str) -> None:
    counted = {name: answers for name, answers in found.items() if answers.tally.rows}
    if not counted:
        raise DataError(
            f"The labels {quoted(labels)} cannot be used: no output of the models has a class, or a row of scores, for "
            "each row."
        )
    for name, answers in counted.items():
        if answers.outside is None:
            result.accuracy[name] = answers.tally.result()
        else:
            told = f"The labels {quoted(labels)} hold {answers.outside}, which is no class of output {quoted(name)}"
            result.notices.append(f"{told}: no accuracy.")
    if not result.accuracy:
        raise DataError(f"{told}. Classes count from 0.")
