"""Model files: read, decode and check them; save them whole or not at all.

Reading refuses whatever is no sound ONNX model, with a `ModelError` of one line that names the file and
guesses what it is instead. External data are not read, but each file that holds some must lie inside of the
model's folder, be regular and be long enough.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PureWindowsPath

import onnx
from google.protobuf.message import EncodeError

from onnxdpp.errors import MachineError, ModelError, UsageError
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.decoding import NotAModelError, decode
from onnxdpp.graph.walking import all_tensors, is_external, quoted, raw_bytes
from onnxdpp.graph.writing import write_atomically

StrPath = str | os.PathLike[str]

MAX_BYTES = 2**31 - 1
"""What protobuf can encode in one message."""


@dataclass(frozen=True)
class FileInfo:
    """Identity of a model's bytes.

    Attributes
    ----------
    sha256 : str
        Lower-case hexadecimal digest.
    bytes : int
        Length.
    """

    sha256: str
    bytes: int


def load_model(path: StrPath) -> onnx.ModelProto:
    """Read, decode and check a model file.

    Parameters
    ----------
    path : str or path
        The model file, or a link to it. External data are looked for in the folder of this name.

    Returns
    -------
    ModelProto
        With all unknown fields; external data are not read.

    Raises
    ------
    ModelError
        Whatever is wrong with the file or with the model in it.

    Notes
    -----
    Takes memory for twice the file while decoding, once afterwards.
    """
    try:
        model = decode(_read(path))
    except NotAModelError as error:
        raise ModelError(f"Model file {_shown(path)} {error}.") from error.__cause__
    check_model(model, os.fspath(path))
    _check_external_data(model, path)
    return model


def save_model(model: onnx.ModelProto, path: StrPath, *, force: bool = False) -> FileInfo:
    """Write a model file atomically.

    Parameters
    ----------
    model : ModelProto
        Serialized deterministically: equal models give equal bytes.
    path : str or path
        Where. A link there is replaced, not followed.
    force : bool, default False
        Whether an existing file may be replaced.

    Returns
    -------
    FileInfo
        Of the bytes written.

    Raises
    ------
    UsageError
        If `path` exists and `force` is not set, or `path` is not a regular file.
    MachineError
        If the folder or the disk does not take the file; one that was there is untouched.
    ModelError
        If the model is larger than protobuf can encode.
    """
    data = _serialize(model)
    check_output(path, inputs=(), force=force)
    _write(path, data)
    return FileInfo(hashlib.sha256(data).hexdigest(), len(data))


def file_info(model_or_path: onnx.ModelProto | StrPath) -> FileInfo:
    """Digest and length of a file's bytes, or of the bytes that `save_model` would write."""
    if isinstance(model_or_path, onnx.ModelProto):
        data = _serialize(model_or_path)
        return FileInfo(hashlib.sha256(data).hexdigest(), len(data))
    with _opened(model_or_path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(digest, file.tell())


def write_text(path: StrPath, text: str) -> None:
    """Write or replace a text file in UTF-8, atomically.

    Raises
    ------
    MachineError
        If the folder or the disk does not take the file; one that was there is untouched.
    """
    _write(path, text.encode())


def check_input(path: StrPath) -> None:
    """Refuse a model file that cannot be opened, with the ModelError that `load_model` would raise."""
    with _opened(path):
        pass


def check_output(path: StrPath, *, inputs: Sequence[StrPath], force: bool) -> None:
    """Refuse an output that cannot or must not be written, before the long work starts.

    Parameters
    ----------
    path : str or path
        The output.
    inputs : sequence of paths
        Files, and folders of files, that must stay as they are. `path` is one of them if it names the same file:
        through links, or in another case where the file system does not tell cases apart.
    force : bool
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        If `path` is an input, exists without `force`, or is not a regular file.
    MachineError
        If its folder is missing or does not take files.
    """
    target = Path(path)
    for source in inputs:
        if _same_file(target, Path(source)):
            raise UsageError(f"Output {_shown(path)} is the input {_shown(source)}. Name another output.")
        if Path(source).is_dir() and Path(source).resolve() == target.resolve().parent:
            raise UsageError(f"Output {_shown(path)} lies in the input folder {_shown(source)}. Name another place.")
    if target.is_dir():
        raise UsageError(f"Output {_shown(path)} is a folder. Name a file in it.")
    if target.exists() and not target.is_file():
        raise UsageError(f"Output {_shown(path)} is not a regular file.")
    if os.path.lexists(target) and not force:
        raise UsageError(f"Output {_shown(path)} exists. Use --force to replace it.")
    try:
        # Has no name, or has lost it at once: nothing to clean up.
        tempfile.TemporaryFile(dir=target.parent).close()
    except (OSError, ValueError) as error:
        raise MachineError(f"Cannot write into the folder of {_shown(path)}: {_reason(error)}.") from error


# Reading


@contextlib.contextmanager
def _opened(path: StrPath) -> Iterator[BufferedReader]:
    try:
        mode = Path(path).stat().st_mode  # before open, which would wait at a FIFO
        if stat.S_ISDIR(mode):
            raise ModelError(f"Model file {_shown(path)} is a folder. Name the .onnx file in it.")
        if not stat.S_ISREG(mode):
            raise ModelError(f"Model file {_shown(path)} is not a regular file.")
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ModelError(f"Model file {_shown(path)} does not exist.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"Model file {_shown(path)} cannot be read: {_reason(error)}.") from error


def _read(path: StrPath) -> bytes:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ModelError(
                f"Model file {_shown(path)} has {size} bytes, protobuf reads {MAX_BYTES}. "
                "Store its weights as external data."
            )
        return file.read()


def _check_external_data(model: onnx.ModelProto, path: StrPath) -> None:
    """The files that hold a model's external data are where it says, inside its folder, and long enough."""
    folder = Path(path).parent
    for label, tensor in all_tensors(model):
        if is_external(tensor):
            try:
                _check_external_tensor(tensor, folder)
            except (ModelError, OSError) as error:
                reason = str(error) if isinstance(error, ModelError) else f"{_reason(error)}."
                raise ModelError(f"Model file {_shown(path)}: {label} has external data. {reason}") from error


def _check_external_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = PureWindowsPath(location)  # knows both separators, and drives
    if not location or parts.anchor or ".." in parts.parts:
        raise ModelError(f"Their location {quoted(location)} is no path inside of the model's folder.")
    file = folder / location
    if not file.exists():
        raise ModelError(f"Their file {quoted(location)} does not exist beside the model.")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"Their file {quoted(location)} is a link that leads out of the model's folder.")
    if not file.is_file():
        raise ModelError(f"Their file {quoted(location)} is not a regular file.")
    needed = raw_bytes(tensor)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
    except ValueError:
        raise ModelError(f"Their offset or length in {quoted(location)} is no number.") from None
    size = file.stat().st_size
    if length != needed or not 0 <= offset <= size - length:
        raise ModelError(
            f"They should be {needed} bytes; the model says {length} at {offset} of {quoted(location)}, "
            f"which has {size}."
        )


# Writing


def _write(path: StrPath, data: bytes) -> None:
    try:
        write_atomically(Path(path), data)
    except (OSError, ValueError) as error:
        raise MachineError(f"Cannot write {_shown(path)}: {_reason(error)}.") from error


def _serialize(model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"The model cannot be encoded, it is larger than {MAX_BYTES} bytes.") from error


def _same_file(target: Path, source: Path) -> bool:
    try:
        return target.samefile(source)
    except (OSError, ValueError):  # one of them does not exist
        return target.resolve() == source.resolve()


def _shown(path: StrPath) -> str:
    return quoted(os.fspath(path), limit=300)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
