"""A model and the form in which its weights are written: made, proven, weighed.

What `graph.storage` writes is not taken on trust: a packed model is checked as any other, must load, and must answer
the first rows as its dense form does, bit for bit. With float16 values the dense form is the one with rounded weights,
so that what a report says of answers holds for the file that is written.

What a file takes to load is measured on files, dense and stored, each in a process of its own.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxdpp.errors import DataError, MachineError, ModelError
from onnxdpp.footprint import compressed, peak_memory
from onnxdpp.graph.batches import Batch
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.decoders import OPSET
from onnxdpp.graph.external import has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import save_model
from onnxdpp.graph.rewriting import in_order
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.storage import Stored, is_packed, pack, unpack
from onnxdpp.graph.walking import quoted

LATER = (
    "Packed weights are unpacked by onnxruntime when it loads the model. Other runtimes may refuse the operators for "
    "that, or run them every time, and graph simplifiers write the weights dense again: pack last."
)


@dataclass(frozen=True)
class Form:
    """How the weights of a model are stored.

    Attributes
    ----------
    dense : ModelProto
        What the file stands for.
    model : ModelProto
        What is written; `dense` itself where nothing is smaller.
    tensors : list of Stored
        Every weight with zeros enough, whether it is dense or not.
    asked : str
        The storage that was asked for.
    values : {"same", "float16"}
    scratch : tuple of Scratch
        Where arrays of `dense` and `model` may lie, which must stay as long as they are used.
    """

    dense: ModelProto
    model: ModelProto
    tensors: list[Stored]
    asked: str
    values: str
    scratch: tuple[Scratch, ...] = ()

    @property
    def smaller(self) -> bool:
        """Whether some weight is stored in a form other than dense."""
        return any(part.form != "dense" for part in self.tensors)

    @property
    def notices(self) -> list[str]:
        """What who ships the file must know."""
        return [LATER] if any(part.form in ("packed", "gaps") for part in self.tensors) else []

    def report(self, files: Mapping[str, Any] | None) -> dict[str, Any]:
        """The ``storage`` of a report; `files` is what `weighed` gives."""
        tensors = [{**asdict(part), "shape": list(part.shape)} for part in self.tensors]
        totals = {key: sum(part[key] for part in tensors) for key in ("nonzero", "dense_bytes", "bytes")}
        return {"asked": self.asked, "values": self.values, "tensors": tensors, "totals": totals, "files": files}


def form_of(model: ModelProto, folder: Path | None, storage: str, values: str) -> Form:
    """A dense model and what it is written as.

    Parameters
    ----------
    model : ModelProto
        Without packed weights.
    folder : path or None
        Where its external data lie.
    storage : {"dense", "packed", "sparse", "auto"}
    values : {"same", "float16"}
    """
    if storage == "dense":
        return Form(model, model, [], storage, values)
    scratch = tuple(Scratch(active=has_external_data(model)) for _ in range(2))
    written, tensors = pack(model, folder, storage=storage, values=values, scratch=scratch[0])
    if all(part.form == "dense" for part in tensors):
        return Form(model, model, tensors, storage, values)
    rounded = any(part.values != "same" for part in tensors)
    whole = unpack(written, folder, scratch=scratch[1])[0] if rounded else model
    return Form(whole, written, tensors, storage, values, scratch)


def answering_form(model: ModelProto, folder: Path | None, storage: str, values: str) -> Form:
    """What tells how a dense model will answer once it is written: itself, unless values are rounded."""
    return Form(model, model, [], storage, values) if values == "same" else form_of(model, folder, storage, values)


def proven_form(
    model: ModelProto, folder: Path | None, storage: str, values: str, provider: str, batch: Batch
) -> tuple[Form, list[str]]:
    """As `form_of`; dense, with a notice, where that form does not stand the proof of `flaw_of`."""
    form = form_of(model, folder, storage, values)
    graph = Graph(in_order(form.dense), folder)
    if not form.smaller:
        old = form.tensors and graph.opset < OPSET
        told = f"Its operators are of opset {graph.opset}, too old to unpack weights: they are stored dense. "
        if old:
            return form, [f"{told}`onnxdpp pack --opset 13` converts the file that is written."]
        return form, ["No weight is packed, so that float16 values change none."] if values != "same" else []
    flaw = flaw_of(form, graph, provider, batch)
    if flaw is None:
        return form, form.notices
    told = f"All weights are stored dense, since the packed model is not what it was: {flaw}"
    return form_of(model, folder, "dense", "same"), [told]


def flaw_of(form: Form, graph: Graph, provider: str, batch: Batch | None) -> str | None:
    """Why the model as stored is not the dense one; None if it is.

    Parameters
    ----------
    form : Form
    graph : Graph
        Of its dense model.
    provider : {"cpu", "cuda"}
    batch : Batch or None
        What both must answer with the same bits; None: they are only loaded.
    """
    try:
        check_model(form.model, "as packed")
        before, after = (Session(model, provider, graph.folder) for model in (form.dense, form.model))
        if (before.inputs, before.outputs) != (after.inputs, after.outputs):
            return "it has other inputs or outputs."
        if batch is None:
            return None
        answers = zip(before.outputs, before.run(batch), after.run(batch), strict=True)
    except (ModelError, DataError) as error:
        return str(error)
    for (name, kind, _), old, new in answers:
        if kind.startswith("tensor(") and name not in graph.random_values and not _same(old, new):
            return f"output {quoted(name)} differs."
    return None


def _same(old: Any, new: Any) -> bool:
    """Whether two tensors are equal to the bit."""
    if old.dtype != new.dtype or old.shape != new.shape:
        return False
    return np.array_equal(old, new) if old.dtype.kind == "O" else old.tobytes() == new.tobytes()


def grown(given: ModelProto, before: int, after: int, *, neurons: bool = False) -> list[str]:
    """A notice where a packed file of `before` bytes became one of more bytes, and what would have helped."""
    if after <= before or not is_packed(given):
        return []
    why = "a refit of neurons writes no zeros, so prune neurons first, then edges"
    why = why if neurons else "if its values were rounded to float16, values float16 stores them so again"
    return [f"The packed file that was given has {before:,} bytes, this one {after:,}: {why}."]


def weighed(form: Form, folder: Path | None, provider: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Bytes, gzip bytes, load time and memory of the dense file and of the stored one, and notices.

    None where all is dense, or where the temporary files cannot be written.
    """
    if not form.smaller:
        return None, []
    try:
        with tempfile.TemporaryDirectory(prefix="onnxdpp-") as place:
            sides = {
                name: _side(model, folder, Path(place) / name, provider)
                for name, model in (("dense", form.dense), ("stored", form.model))
            }
    except (OSError, MachineError) as error:
        return None, [f"What the packed file takes to load cannot be measured: {' '.join(str(error).split())}"]
    return sides, []


def _side(model: ModelProto, folder: Path | None, place: Path, provider: str) -> dict[str, Any]:
    place.mkdir()
    save_model(model, place / "model.onnx", folder=folder)
    files = sorted(place.iterdir())
    load = asdict(peak_memory(place / "model.onnx", None, provider, 1))
    return {"bytes": sum(part.stat().st_size for part in files), "gzip_bytes": compressed(files), "load": load}
