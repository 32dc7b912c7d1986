"""Which weights are stored smaller, and in which form: the smallest that pays, else dense with the reason.

A weight is looked at where it has `SMALLEST` bytes and a share of `ZEROS` of its entries is zero, which means that all
their bits are. A form pays where it saves a share of `MARGIN` of its bytes, and `LEAST` bytes. A sparse initializer,
which onnxruntime turns dense as it loads, has eight bytes of index per value; it is taken instead of operators that
decode only where that, too, saves `MARGIN`. Weights in an N:M pattern stay dense unless packing is asked for: hardware
that knows the pattern wants to see it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.attributes import Array
from onnxdpp.graph.codes import CODES, bits_of, coded_bytes
from onnxdpp.graph.decoders import MAX_FOLDED, OPSET, ROLES, TABLE, decoder, largest_output, own_constants
from onnxdpp.graph.external import tensor_array
from onnxdpp.graph.index import ONNX_DOMAINS, Graph
from onnxdpp.graph.names import Names
from onnxdpp.graph.patterns import pattern, weights_of
from onnxdpp.graph.records import TYPES, Record
from onnxdpp.graph.unpacking import too_large
from onnxdpp.graph.walking import all_graphs, quoted

FORMS = {"dense": (), "packed": CODES, "sparse": ("sparse",), "auto": (*CODES, "sparse")}
"""The forms that each storage may take."""

SMALLEST = 1024
ZEROS = 0.1
MARGIN = 0.1
LEAST = 1024

TABLE_BYTES = TABLE.nbytes + 200
"""What packed tensors share: the table, and three numbers with their names."""

BFLOAT16_OPSET = 13
SPARSE_IR = 5


@dataclass(frozen=True)
class Stored:
    """How one weight with zeros in it is stored.

    Attributes
    ----------
    name : str
        Of the initializer.
    form : {"dense", "packed", "gaps", "sparse"}
    shape : tuple of int
    dtype : str
        The type of the elements in numpy.
    nonzero : int
        Entries with a bit that is not zero; -0.0 is one.
    dense_bytes : int
    bytes : int
        That it takes in this form, with the operators and the metadata that go with it, but without the table that
        packed tensors share.
    reason : str
        Why it stays dense. Else empty, but where its values were to become float16 and do not: why.
    pattern : str
        "2:4" or another N:M that every output keeps to along its inputs; else empty.
    values : {"same", "float16"}
    max_error : float
        The largest change of an entry by float16; else 0.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    dtype: str
    nonzero: int
    dense_bytes: int
    bytes: int
    reason: str = ""
    pattern: str = ""
    values: str = "same"
    max_error: float = 0.0


@dataclass(frozen=True)
class Choice:
    """What is to become of one weight; `record` is None where it stays dense."""

    stored: Stored
    record: Record | None = None


def choose(graph: Graph, storage: str, values: str) -> tuple[list[Choice], str]:
    """A choice for each weight with zeros, in the order of the model, and what names of shared constants begin with.

    Parameters
    ----------
    graph : Graph
        Of a model in which nothing is packed.
    storage : {"dense", "packed", "sparse", "auto"}
    values : {"same", "float16"}

    Raises
    ------
    ModelError
        If a weight lies in external data and the graph does not know where.
    """
    chooser = _Chooser(graph, storage, values)
    choices = chooser.choices(CODES)
    saved = [c.stored.dense_bytes - c.stored.bytes for c in choices if c.stored.form == "packed"]
    if saved and sum(saved) < TABLE_BYTES + LEAST:
        choices = chooser.choices(("gaps",))
    return choices, chooser.shared


def rounded(array: Array) -> tuple[Array, str]:
    """The entries as float16 holds them, in their own type; or themselves, and the reason why not."""
    if array.dtype not in (np.float32, np.float64):
        return array, "" if array.dtype == np.float16 else f"{array.dtype.name} is not narrowed to float16"
    if not np.isfinite(array).all():
        return array, "it holds NaN or infinity, so that it keeps its type"
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float16)
    if not np.isfinite(narrow).all():
        return array, f"{np.abs(array).max():.5g} does not fit into float16, so that it keeps {array.dtype.name}"
    return narrow.astype(array.dtype), ""


class _Chooser:
    """What choices for the weights of one model have in common."""

    def __init__(self, graph: Graph, storage: str, values: str) -> None:
        self.graph, self.storage, self.values = graph, storage, values
        self.names = Names(graph)
        self.shared = _stem("onnxdpp/packed", self.names, ROLES["shared"])
        self.stems: dict[str, str] = {}
        self.projections = weights_of(graph)
        self.reserved = _reserved(graph.model)

    def choices(self, codes: tuple[str, ...]) -> list[Choice]:
        """A choice for each weight; of the codes, only these may be taken."""
        result = []
        for place, name, tensor, why in _tensors(self.graph.model):
            array = tensor_array(tensor, self.graph.folder)
            if array is None:
                raise ModelError(
                    f"Initializer {quoted(name)} lies in external data, and nothing says in which folder. Name it."
                )
            if not _worth_it(array):
                continue
            dtype = array.dtype.name
            stored = Stored(name, "dense", array.shape, dtype, _nonzero(array), array.nbytes, array.nbytes)
            left = "dense was asked for" if self.storage == "dense" else why or self._why_dense(tensor)
            result.append(Choice(replace(stored, reason=left)) if left else self._best(place, stored, array, codes))
        return result

    def _why_dense(self, tensor: TensorProto) -> str:
        name, graph = tensor.name, self.graph
        if tensor.data_type not in TYPES.values():
            return f"{TensorProto.DataType.Name(tensor.data_type).lower()} is not packed"
        if name in {value.name for value in graph.model.graph.input}:
            if graph.model.ir_version < 4:
                return f"IR version {graph.model.ir_version} lists it among the graph inputs: convert the model first"
            return "it is also a graph input, so that callers may override it"
        if name in graph.outputs:
            return "it is a graph output"
        if name in self.reserved:
            return self.reserved[name]
        if name not in graph.uses and name not in graph.captured:
            return "nobody reads it"
        return ""

    def _best(self, place: int, stored: Stored, array: Array, codes: tuple[str, ...]) -> Choice:
        """The smallest form that pays."""
        projection = self.projections.get(stored.name)
        if projection is not None:
            stored = replace(stored, pattern=pattern(_kept(array), projection))
        if stored.pattern and self.storage == "auto":
            why = f"its pattern {stored.pattern} is left to hardware that knows it; storage packed packs it"
            return Choice(replace(stored, reason=why))
        coarse, note = rounded(array) if self.values == "float16" else (array, "")
        found: list[tuple[int, Record]] = []
        why_not: dict[str, str] = {}
        for form in FORMS[self.storage]:
            if why := self._why_not(form, array, codes):
                why_not[form] = why
            else:
                found.append(
                    self._sized(form, place, stored, array if form == "sparse" else coarse, coarse is not array)
                )
        if not found:
            return Choice(replace(stored, reason=next(iter(why_not.values()))))
        limit = (1 - MARGIN) * min((size for size, record in found if record.form != "sparse"), default=np.inf)
        found = [(size, record) for size, record in found if record.form != "sparse" or size < limit]
        size, record = min(found, key=lambda pair: pair[0])
        saved = stored.dense_bytes - size
        if saved < MARGIN * stored.dense_bytes or saved < LEAST:
            least = f"{LEAST} bytes" if saved >= MARGIN * stored.dense_bytes else f"{MARGIN:.0%}"
            why = f"{record.form} would take {size} of its {stored.dense_bytes} bytes, which saves less than {least}"
            return Choice(replace(stored, reason=why_not.get("packed", why)))
        stored = replace(stored, form=record.form, bytes=size, reason=note)
        if record.narrow:
            error = float(np.abs(coarse.astype(np.float64) - array).max())
            stored = replace(stored, nonzero=_nonzero(coarse), values="float16", max_error=error)
        elif coarse is not array:
            stored = replace(stored, reason="a sparse initializer keeps its type")
        return Choice(stored, record)

    def _why_not(self, form: str, array: Array, codes: tuple[str, ...]) -> str:
        """The reason why a weight cannot be stored in this form; empty where it can."""
        ir_version, opset, dtype = self.graph.model.ir_version, self.graph.opset, array.dtype
        if form == "sparse":
            if ir_version < SPARSE_IR:
                return f"IR version {ir_version} has no sparse initializers; they came with {SPARSE_IR}"
            stored = _nonzero(array) * (8 + dtype.itemsize)
            return f"{stored} bytes are too few for so large a weight" if too_large(array.nbytes, stored) else ""
        if opset < OPSET:
            return f"opset {opset} is too old for the decode, which needs {OPSET}: convert the model first"
        if dtype.name == "bfloat16" and opset < BFLOAT16_OPSET:
            needed = f"the decode of bfloat16, which needs {BFLOAT16_OPSET}"
            return f"opset {opset} is too old for {needed}: convert the model first"
        if any(domain in ONNX_DOMAINS for domain, _ in self.graph.functions):
            return "the model has functions under the names of ONNX's own operators"
        if (largest := largest_output(form, array.size, dtype.itemsize)) > MAX_FOLDED:
            return f"its decode takes {largest} bytes at once, and onnxruntime folds {MAX_FOLDED}"
        if form not in codes:
            return f"packing would save less than the table takes that it needs, {TABLE_BYTES} bytes, and {LEAST} more"
        if form == "gaps" and dtype.name == "bfloat16":
            return "ConstantOfShape knows no bfloat16"
        return ""

    def _sized(self, form: str, place: int, stored: Stored, array: Array, narrow: bool) -> tuple[int, Record]:
        """A record for one form, and what it takes in the file, to a few bytes."""
        if form == "sparse":
            record = Record(stored.name, form, stored.dtype, stored.shape, position=place)
            size = _nonzero(array) * (8 + array.dtype.itemsize)
            return size + len(record.as_json()) + len(record.name) + 41, record
        record = Record(stored.name, form, stored.dtype, stored.shape, self._stem(stored.name), narrow)
        size = coded_bytes(form, bits_of(array), 2 if narrow else array.dtype.itemsize)
        around = len(record.as_json()) + 1 + sum(node.ByteSize() + 3 for node in decoder(record, self.shared))
        around += sum(len(f"{record.stem}/{role}".encode()) + 20 for role in ("codes", "values"))
        for role, constant in own_constants(record).items():
            around += numpy_helper.from_array(constant, f"{record.stem}/{role}").ByteSize() + 2
        return size + around, record

    def _stem(self, name: str) -> str:
        if name not in self.stems:
            self.stems[name] = _stem(f"{name}/packed", self.names, (*ROLES["own"], *ROLES["written"]))
        return self.stems[name]


def _stem(wish: str, names: Names, roles: Iterable[str]) -> str:
    """`wish`, or `wish` with a number, so that with a slash and each role behind it is a name that nothing uses."""
    stem, number = wish, 1
    while any(f"{stem}/{role}" in names.taken for role in roles):
        number += 1
        stem = f"{wish}_{number}"
    names.taken.update(f"{stem}/{role}" for role in roles)
    return stem


def _tensors(model: ModelProto) -> Iterator[tuple[int, str, TensorProto, str]]:
    """All that could be a weight: its place among the initializers, name, tensor, and why it is out of the question."""
    for place, tensor in enumerate(model.graph.initializer):
        yield place, tensor.name, tensor, ""
    for graph in islice(all_graphs(model), 1, None):
        for tensor in graph.initializer:
            yield -1, tensor.name, tensor, "it lies in the body of a node"
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            for entry in node.attribute:
                if entry.name == "value":
                    yield -1, node.output[0], entry.t, "it stands in a Constant node, and only initializers are packed"


def _worth_it(array: Array) -> bool:
    if array.nbytes < SMALLEST or array.dtype.kind == "O" or array.dtype.itemsize not in (1, 2, 4, 8):
        return False
    return array.size - _nonzero(array) >= ZEROS * array.size


def _kept(array: Array) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = bits_of(array) != 0
    return kept.reshape(array.shape)


def _nonzero(array: Array) -> int:
    return int(np.count_nonzero(bits_of(array)))


def _reserved(model: ModelProto) -> Mapping[str, str]:
    """Initializers that something else than nodes and outputs names, and why they stay as they are."""
    result: dict[str, str] = {}
    for note in model.graph.quantization_annotation:
        for name in (note.tensor_name, *(entry.value for entry in note.quant_parameter_tensor_names)):
            result[name] = "a quantization annotation names it"
    for training in model.training_info:
        for binding in (*training.initialization_binding, *training.update_binding):
            result[binding.key] = "training information names it"
    return result
