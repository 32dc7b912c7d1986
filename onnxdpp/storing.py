"""The Python interface of `onnxdpp pack` and `onnxdpp unpack`: weights with zeros in them, stored without the zeros."""

import math
import time
from dataclasses import dataclass

from onnxdpp.errors import DataError, ModelError, NothingToPrune, UsageError
from onnxdpp.evaluation import differences
from onnxdpp.forms import Form, flaw_of, form_of, grown, weighed
from onnxdpp.graph.batches import Batches, input_specs, open_batches
from onnxdpp.graph.calibration import Session, choose_provider
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.decoders import OPSET
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import model_info
from onnxdpp.graph.rewriting import in_order
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.storage import is_packed
from onnxdpp.graph.storage import unpack as dense_form
from onnxdpp.graph.versions import converted
from onnxdpp.interface import check_interface
from onnxdpp.opening import Model, Outcome, Progress, as_given, dense, size_of, versions
from onnxdpp.options import Options
from onnxdpp.report import Packing

ROWS = 8
"""Random rows on which a packed model must give the same as its dense form."""
CLOSE = 1e-4
"""How far, as relative L2, a model converted to other operators may be from what it was."""


@dataclass
class PackResult(Outcome):
    """The outcome of `pack` or `unpack`.

    Attributes
    ----------
    model : ModelProto
        Verified.
    report : dict
        As the JSON Schema ``packing`` says.
    folder : Path or None
        Of the input, where it is a path: external data are named from there.
    """


def pack(
    model: Model,
    *,
    storage: str = "auto",
    values: str = "same",
    opset: int | None = None,
    provider: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> PackResult:
    """Store the weights of any ONNX model that have zeros in them without the zeros.

    Parameters
    ----------
    model : path or ModelProto
        Not changed. One that is packed already is packed anew.
    storage : {"auto", "packed", "sparse"}
        The smallest form of each weight, where that saves enough; one form alone: a bit for each entry and the values,
        or ``sparse_initializer``. ``"auto"`` leaves N:M patterns dense.
    values : {"same", "float16"}
        As they are, or rounded.
    opset : int, optional
        Convert the model to this version of the ONNX operators first: what unpacks needs 11 or newer.
    provider : {"cpu", "cuda", "auto"}
        Where both models are run to see that they give the same.
    seed : int
        Of the random rows for that.
    progress : callable (text, fraction), optional

    Returns
    -------
    PackResult
        The verified model and the report.

    Raises
    ------
    UsageError, ModelError, NothingToPrune, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`. NothingToPrune where no weight would be smaller, with the reason
        for each.
    """
    started = time.perf_counter()
    Options("auto", provider=provider, seed=seed, storage=storage, values=values)  # checks them
    if storage == "dense":
        raise UsageError("storage is dense: that is what unpack does. Take auto, packed or sparse.")
    given, folder, info = as_given(model)
    whole = dense(given, folder)
    graph = Graph(in_order(whole), folder)
    where, notices = choose_provider(provider)
    rows = _random_rows(graph, where, seed, notices)
    now = graph
    if opset is not None and opset != graph.opset:
        progress("convert", 0.0)
        now = _converted(graph, opset, where, rows)
        whole = now.model
    progress("pack", 0.2)
    form = form_of(whole, folder, storage, values)
    if not form.smaller:
        reasons = [(part.name, part.reason) for part in form.tensors]
        told = ":" if reasons else ": none has enough zeros."
        if reasons and now.opset < OPSET:
            told = (
                f". The operators of the model are of opset {now.opset}, too old to unpack weights: add --opset 13 to "
                "convert it."
            )
        way = "Packing" if storage == "auto" else f"Storage {storage}"
        raise NothingToPrune(f"{way} would not make any weight smaller{told}", reasons)
    progress("compare", 0.5)
    _check(form, now, where, rows)
    if values == "float16" and rows is not None:
        notices += _rounded(now, form, where, rows)
    progress("weigh", 0.7)
    files, told_of_files = weighed(form, folder, where)
    written = model_info(form.model, folder)
    return PackResult(
        form.model,
        Packing(
            before=size_of(graph, info, None),
            after=size_of(Graph(in_order(form.dense), folder), written, None),
            opset=(graph.opset, now.opset),
            storage=form.report(files),
            rows=0 if rows is None else rows.rows,
            provider=where,
            notices=[*notices, *told_of_files, *grown(given, info.bytes, written.bytes), *form.notices],
            options={"storage": storage, "values": values, "opset": opset, "provider": provider, "seed": seed},
            versions=versions(),
            seconds=time.perf_counter() - started,
        ).as_dict(),
        folder,
        form.scratch,
    )


def unpack(
    model: Model,
    *,
    provider: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> PackResult:
    """Give back the dense model that a packed one stands for, its weights byte for byte.

    Parameters
    ----------
    model : path or ModelProto
        Not changed.
    provider, seed, progress : as for `pack`

    Returns
    -------
    PackResult
        The verified model and the report.

    Raises
    ------
    UsageError, ModelError, NothingToPrune, MachineError
        All of them OnnxdppError; see `onnxdpp.errors`. NothingToPrune where no weight is packed.
    """
    started = time.perf_counter()
    Options("auto", provider=provider, seed=seed)  # checks them
    given, folder, info = as_given(model)
    if not is_packed(given):
        raise NothingToPrune("No weight of the model is packed: there is nothing to unpack.")
    scratch = Scratch(active=has_external_data(given))
    whole, tensors = dense_form(given, folder, scratch=scratch)
    if not tensors:
        raise NothingToPrune("No weight of the model is packed any more: something has made them dense already.")
    check_model(whole, "the unpacked model")
    values = "float16" if any(part.values == "float16" for part in tensors) else "same"
    form = Form(whole, given, tensors, "dense", values)
    graph = Graph(in_order(whole), folder)
    where, notices = choose_provider(provider)
    rows = _random_rows(graph, where, seed, notices)
    progress("compare", 0.3)
    _check(form, graph, where, rows)
    progress("weigh", 0.7)
    files, told = weighed(form, folder, where)
    return PackResult(
        whole,
        Packing(
            before=size_of(graph, info, None),
            after=size_of(graph, model_info(whole, folder), None),
            opset=(graph.opset, graph.opset),
            storage=form.report(files),
            rows=0 if rows is None else rows.rows,
            provider=where,
            notices=[*notices, *told],
            options={"provider": provider, "seed": seed},
            versions=versions(),
            seconds=time.perf_counter() - started,
        ).as_dict(),
        folder,
        (scratch,),
    )


def _random_rows(graph: Graph, provider: str, seed: int, notices: list[str]) -> Batches | None:
    """Rows that the model can be run on; None, and a notice, where it takes no random ones."""
    session = Session(graph.model, provider, graph.folder)
    try:
        rows = open_batches(f"random:{ROWS}", input_specs(graph.model), seed=seed)
        session.run(next(iter(rows)))
    except DataError as error:
        notices.append(f"The model was loaded but not run, since it takes no random rows: {error}")
        return None
    return rows


def _check(form: Form, graph: Graph, provider: str, rows: Batches | None) -> None:
    flaw = flaw_of(form, graph, provider, None if rows is None else next(iter(rows)))
    if flaw is not None:
        raise ModelError(f"The packed model is not what its dense form is, and is not written: {flaw}")


def _rounded(graph: Graph, form: Form, provider: str, rows: Batches) -> list[str]:
    """How far the answers move since values are rounded."""
    before, after = (Session(model, provider, graph.folder) for model in (graph.model, form.dense))
    try:
        worst = differences(
            before, after, rows, random_values=graph.random_values, counting_values=graph.counting_values
        ).worst
    except (ModelError, DataError):  # nothing hangs on it
        return []
    if math.isnan(worst):
        return []
    return [f"Values are rounded to float16: the worst output moves by {worst:.3g} (relative L2) on random rows."]


def _converted(graph: Graph, opset: int, provider: str, rows: Batches | None) -> Graph:
    """The model in another version of the ONNX operators, proven on random rows."""
    result = Graph(in_order(converted(graph.model, opset)), graph.folder)
    told = f"Converted to opset {opset}, the model is not what it was: "
    before, after = (Session(part.model, provider, part.folder) for part in (graph, result))
    try:
        check_interface(before, after)
        if rows is None:
            raise ModelError("it takes no random rows, so that nothing proves it.")
        worst = differences(before, after, rows, random_values=graph.random_values, finite=True).worst
    except (DataError, ModelError) as error:
        raise ModelError(f"{told}{error}") from error
    if math.isnan(worst):
        raise ModelError(f"{told}it has no output that can be compared, so that nothing proves it.")
    if worst > CLOSE:
        raise ModelError(f"{told}its worst output is off by {worst:.3g} (relative L2) on random rows.")
    return result
