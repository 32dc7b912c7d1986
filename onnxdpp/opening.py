"""What users hand in, opened and weighed, and what they are given back: a verified model that can be saved."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import ArrayLike
from onnx import ModelProto

from onnxdpp.errors import ModelError, UsageError
from onnxdpp.evaluation import parameters
from onnxdpp.graph.calibration import RUNTIME_VERSION
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.external import data_files, has_external_data
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import FileInfo, file_info, load_model, model_info, save_model
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.storage import is_packed, unpack
from onnxdpp.report import ModelSize

Model: TypeAlias = str | PathLike[str] | ModelProto
Data: TypeAlias = str | PathLike[str] | Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]]
Given: TypeAlias = Mapping[str, Any] | str | PathLike[str]
Progress: TypeAlias = Callable[[str, float], None]


@dataclass
class Outcome:
    """A model that was made, and the report of it."""

    model: ModelProto
    report: dict[str, Any] = field(repr=False)
    folder: Path | None = field(default=None, repr=False)
    _scratch: tuple[Scratch, ...] = field(default=(), repr=False)  # what `model` needs lies in it

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the model, atomically; its external data, if it has any, into a second file beside it.

        Raises
        ------
        UsageError
            If `path` exists and `force` is not given.
        MachineError
            If the disk does not take it; a file that was there before is unharmed.
        """
        save_model(self.model, path, folder=self.folder, force=force)


def opened(model: Model) -> tuple[ModelProto, Path | None, FileInfo]:
    """The model, packed weights unpacked; its folder where it is a path, and what it weighs as it is given."""
    proto, folder, info = as_given(model)
    return dense(proto, folder), folder, info


def dense(model: ModelProto, folder: Path | None) -> ModelProto:
    """The model itself, or what it stands for where its weights are packed."""
    return unpack(model, folder)[0] if is_packed(model) else model


def as_given(model: Model) -> tuple[ModelProto, Path | None, FileInfo]:
    """The model, packed weights and all; its folder where it is a path, and what it weighs."""
    if isinstance(model, ModelProto):
        check_model(model, "the model")
        if has_external_data(model):
            raise ModelError("The model has external data, and a ModelProto does not say where. Give the model's path.")
        return model, None, model_info(model)
    if not isinstance(model, str | PathLike):
        raise UsageError(f"The model is a {type(model).__name__}; it can be a path or an onnx.ModelProto.")
    proto, folder = load_model(model), Path(model).parent.absolute()
    return proto, folder, file_info(model, data_files(proto, folder))


def size_of(graph: Graph, info: FileInfo, macs: int | None) -> ModelSize:
    """What reports say of a model's size."""
    total, nonzero = parameters(graph.model, graph.folder)
    return ModelSize(info.sha256, info.bytes, total, nonzero, macs)


def read_report(report: Given) -> Mapping[str, Any]:
    """A report, or the one in a file.

    Raises
    ------
    UsageError
        If it cannot be read.
    """
    if isinstance(report, Mapping):
        return report
    try:
        read = json.loads(Path(report).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"The report {str(report)!r} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(read, dict):
        raise UsageError(f"The report {str(report)!r} is none of onnxdpp.")
    return read


def named(given: object) -> str:
    """What reports call a model, data or an earlier report: its path; what is in memory has none."""
    return str(given) if isinstance(given, str | PathLike) else "in memory"


def counting(progress: Progress, text: str, total: int) -> Callable[[int], None]:
    """What is told the rows of each batch, and passes on the fraction of all `total` rows."""
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress(text, done / total)

    return count


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    return {
        "python": platform.python_version(),
        "onnxruntime": RUNTIME_VERSION,
        **{name: version(name) for name in ("onnxdpp", "onnx", "numpy", "scipy")},
    }
