"""Running models in onnxruntime: what enters a projection, in the original and in the model as pruned so far.

For the taps of a layer, the part of each model that leads up to them is cut out and run, batch by batch. Where the
two parts are the same, one of them runs. Blocks of activations are handed on at once and never stored.

Sessions run with TF32 off and telemetry off, and onnxruntime never writes to stdout.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxdpp.errors import DataError, MachineError, ModelError
from onnxdpp.graph.batches import Batch, Batches
from onnxdpp.graph.external import has_external_data, rooted
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.walking import quoted, read_names

# Before the first import, so that no other module of onnxdpp imports onnxruntime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError as missing:  # pragma: no cover - only where it is not installed
    raise MachineError("onnxruntime is not installed. Run: pip install onnxruntime") from missing

import numpy as np

log = logging.getLogger(__name__)
onnxruntime.set_default_logger_severity(4)

RUNTIME_VERSION: str = onnxruntime.__version__
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
Providers = list[str | tuple[str, dict[str, str]]]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_provider(wish: str) -> tuple[str, list[str]]:
    """Where models will run.

    Parameters
    ----------
    wish : {"auto", "cpu", "cuda"}
        ``auto`` takes CUDA where a session really runs on it, else the CPU.

    Returns
    -------
    str, list of str
        ``cpu`` or ``cuda``, and what there is to say of the choice: one line for ``auto``.

    Raises
    ------
    MachineError
        If `wish` is ``cuda`` and no session runs on it.
    """
    if wish == "cpu":
        return "cpu", []
    reason = _why_no_cuda()
    if wish == "cuda":
        if reason is not None:
            raise MachineError(f"No onnxruntime session runs on CUDA: {reason}. Use --provider cpu, or auto.")
        return "cuda", []
    return ("cuda", ["Runs on CUDA."]) if reason is None else ("cpu", [f"Runs on the CPU: {reason}."])


@cache
def _why_no_cuda() -> str | None:
    """The reason why CUDA cannot be used; None if a tiny model ran on it and was right."""
    if CUDA not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} is built without CUDA"
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8])],
    )
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    with _quiet_stdout():
        try:
            onnxruntime.preload_dlls()
            session = onnxruntime.InferenceSession(
                probe.SerializeToString(), _options(), providers=_providers("cuda"), enable_fallback=False
            )
            if CUDA not in session.get_providers():
                return "its CUDA libraries could not be loaded (CUDA and cuDNN of the right versions?)"
            if not np.allclose(session.run(None, {"x": x})[0], x @ x):
                return "a small product came out wrong on it"
        except Exception as error:
            return first_line(error)
    return None


def _providers(kind: str) -> Providers:
    return [(CUDA, {"use_tf32": "0"}), CPU] if kind == "cuda" else [CPU]


def _options(threads: int | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or cores()
    options.use_deterministic_compute = True
    # Waiting threads would take the cores from the moments that are summed meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Onnxruntime reports some failures by print, some on file descriptor 1; keep them off our results."""
    with redirect_stdout(StringIO()), ExitStack() as restore:
        with suppress(OSError):  # descriptor 1 is closed: nothing to keep clean
            saved = os.dup(1)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, 1)
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), 1)
        yield


class Session:
    """One model in onnxruntime.

    Parameters
    ----------
    model : ModelProto
    provider : {"cpu", "cuda"}
    folder : path, optional
        Where the model's external data lie. They are mapped, and not copied on the CPU.
    threads : int, optional
        As it will be deployed: on so many threads, and with weights copied into the form that is fastest. By default
        as many threads as there are cores.

    Raises
    ------
    ModelError
        If onnxruntime cannot load the model.
    MachineError
        If it would have to run elsewhere than on `provider`.
    """

    def __init__(
        self, model: ModelProto, provider: str, folder: Path | None = None, *, threads: int | None = None
    ) -> None:
        options = _options(threads)
        if has_external_data(model):
            model, root = rooted(model, folder)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
            if threads is None:
                options.add_session_config_entry("session.disable_prepacking", "1")  # it copies all weights
        try:
            with _quiet_stdout() if provider == "cuda" else nullcontext():
                self._session = onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=_providers(provider), enable_fallback=False
                )
        except EncodeError as error:
            raise ModelError(
                "The model is larger than protobuf can encode. Save it with external data and give its path."
            ) from error
        except Exception as error:
            raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}") from error
        if provider == "cuda" and CUDA not in self._session.get_providers():
            raise MachineError("onnxruntime no longer gets a CUDA session for this model. Use --provider cpu.")
        self.inputs = tuple((value.name, value.type, tuple(value.shape)) for value in self._session.get_inputs())
        self.outputs = tuple((value.name, value.type, tuple(value.shape)) for value in self._session.get_outputs())

    def run(self, batch: Batch) -> list[Array]:
        """The outputs for one batch, in the order of the model's outputs."""
        feeds = {name: batch.feeds[name] for name, *_ in self.inputs}
        try:
            outputs: list[Array] = self._session.run(None, feeds)
        except Exception as error:
            rows = f"rows {batch.first} to {batch.first + batch.rows - 1}" if batch.rows > 1 else f"row {batch.first}"
            raise DataError(f"onnxruntime fails on {rows} of the data: {first_line(error)}") from error
        return outputs


def first_line(error: Exception) -> str:
    """What a foreign exception says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclass(frozen=True)
class Seen:
    """A value for one batch.

    Attributes
    ----------
    now : array
        In the model as pruned so far.
    original : array or None
        In the original; None where nothing upstream differs, so that it is the same.
    """

    now: Array
    original: Array | None


def part_before(graph: Graph, taps: Sequence[tuple[str, int | None]]) -> ModelProto:
    """The part of a model that computes `taps`, (name, element type if known) each, and nothing else."""
    needed = set[int]().union(*(graph.upstream(name) for name, _ in taps))
    nodes = [graph.nodes[index] for index in sorted(needed)]
    # A tap may be an initializer, which no node needs to read here.
    read = {name for name, _ in taps}.union(*map(read_names, nodes))
    old = graph.model
    part = ModelProto(ir_version=old.ir_version)
    part.opset_import.extend(old.opset_import)
    part.functions.extend(old.functions)
    part.graph.name = old.graph.name
    part.graph.node.extend(nodes)
    part.graph.input.extend(value for value in old.graph.input if value.name in read)
    part.graph.initializer.extend(tensor for tensor in old.graph.initializer if tensor.name in read)
    part.graph.sparse_initializer.extend(
        tensor for tensor in old.graph.sparse_initializer if tensor.values.name in read
    )
    part.graph.output.extend(
        ValueInfoProto(name=name) if kind is None else helper.make_tensor_value_info(name, kind, None)
        for name, kind in taps
    )
    return part


class Observer:
    """Observes values in the original model and in the model as pruned so far.

    Parameters
    ----------
    original, current : Graph
        Of the same nodes and value names.
    values : sequence of (name, element type)
    batches : Batches
    provider : {"cpu", "cuda"}

    Attributes
    ----------
    paired : bool
        Whether the two models differ upstream of the values, so that both run.
    """

    def __init__(
        self,
        original: Graph,
        current: Graph,
        values: Sequence[tuple[str, int]],
        batches: Batches,
        provider: str,
    ) -> None:
        self._names = tuple(name for name, _ in values)
        fed = {value.name for value in current.inputs}
        computed = [value for value in values if value[0] not in fed]
        self._computed = tuple(name for name, _ in computed)
        self._batches = batches
        before, now = part_before(original, computed), part_before(current, computed)
        self.paired = before != now
        self._now = Session(now, provider, current.folder) if computed else None
        self._before = Session(before, provider, original.folder) if self.paired else None

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Seen]]]:
        """Every batch, and what each value was in it."""
        for batch in self._batches:
            now = self._observe(self._now, batch)
            before = self._observe(self._before, batch) if self._before else {}
            yield batch, {name: Seen(now[name], before.get(name)) for name in self._names}

    def _observe(self, session: Session | None, batch: Batch) -> dict[str, Array]:
        values = dict(zip(self._computed, session.run(batch), strict=True)) if session else {}
        for name in self._names:
            value = values[name] if name in values else batch.feeds[name]
            values[name] = value
            if not np.isfinite(value).all():
                raise DataError(
                    f"The value {quoted(name)} is not finite (NaN or infinity) for rows {batch.first} to "
                    f"{batch.first + batch.rows - 1} of the data. Leave these rows out, or skip its layers."
                )
        return values
