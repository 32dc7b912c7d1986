"""Model files: read, decode and check them; save them whole or not at all.

Reading refuses whatever is no sound ONNX model, with a `ModelError` of one line that names the file and
guesses what it is instead. External data are mapped, and each file that holds some must lie inside of the
model's folder, be regular and be long enough.

A model that has external data, or that one file cannot hold, is saved as two files (`packing`). The data file has its
final name, which no older file has, before the ``.onnx`` that names it appears: that swap is the commit, and a crash
at any time leaves the old pair or the new one. The data file of a replaced model stays: it may serve copies of that
model, or somebody who reads it at this moment.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from onnxdpp.errors import MachineError, ModelError, UsageError
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.decoding import NotAModelError, decode
from onnxdpp.graph.external import check_external_data, data_files, has_external_data
from onnxdpp.graph.packing import DataFile, packed
from onnxdpp.graph.walking import quoted
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
        Lower-case hexadecimal digest of the ``.onnx`` file.
    bytes : int
        Length of it and of its data files.
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
        With all unknown fields; external data stay where they are.

    Raises
    ------
    ModelError
        Whatever is wrong with the file or with the model in it.

    Notes
    -----
    Takes memory for twice the ``.onnx`` file while decoding, once afterwards.
    """
    try:
        model = decode(_read(path))
    except NotAModelError as error:
        raise ModelError(f"Model file {_shown(path)} {error}.") from error.__cause__
    check_model(model, os.fspath(path))
    try:
        check_external_data(model, Path(path).parent)
    except ModelError as flaw:
        raise ModelError(f"Model file {_shown(path)}: {flaw}") from flaw.__cause__
    return model


def save_model(
    model: onnx.ModelProto, path: StrPath, *, folder: StrPath | None = None, force: bool = False
) -> FileInfo:
    """Write a model atomically: one file or, with external data or above 2 GiB, two of them.

    Parameters
    ----------
    model : ModelProto
        Serialized deterministically: equal models give equal bytes.
    path : str or path
        Where. A link there is replaced, not followed. The data file lies beside it.
    folder : str or path, optional
        Where the model's external data lie now. They are copied, never written to.
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
        If the folder or the disk does not take the files, or the external data change meanwhile; a model that was
        there is untouched.
    ModelError
        If the model is larger than protobuf can encode even so, or its external data cannot be read.
    """
    encoded, data = _encoded(model, folder)
    check_output(path, inputs=(), force=force)
    fresh = None if data is None else _write_data(path, data)
    try:
        _write(path, [encoded])
    except BaseException:
        if fresh is not None:
            with contextlib.suppress(OSError):
                fresh.unlink()
        raise
    return _info(encoded, data)


def file_info(path: StrPath, data: Iterable[Path] = ()) -> FileInfo:
    """Of a model file and of the `data` files that belong to it."""
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(digest, file.tell() + sum(part.stat().st_size for part in data))


def model_info(model: onnx.ModelProto, folder: StrPath | None = None) -> FileInfo:
    """Of what `save_model` would write."""
    return _info(*_encoded(model, folder))


def stored_data(path: StrPath) -> list[Path]:
    """The data files that a model file names; none where it cannot be decoded."""
    try:
        return data_files(decode(_read(path)), Path(path).parent)
    except (NotAModelError, ModelError):
        return []


def write_text(path: StrPath, text: str) -> None:
    """Write or replace a text file in UTF-8, atomically.

    Raises
    ------
    MachineError
        If the folder or the disk does not take the file; one that was there is untouched.
    """
    write_bytes(path, text.encode())


def write_bytes(path: StrPath, content: bytes) -> None:
    """Write or replace a file, atomically; see `write_text`."""
    _write(path, [content])


def check_input(path: StrPath) -> None:
    """Refuse a model file that cannot be opened, with the ModelError that `load_model` would raise."""
    with _opened(path):
        pass


def check_output(path: StrPath, *, inputs: Sequence[StrPath], force: bool, others: Sequence[StrPath] = ()) -> None:
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
    others : sequence of paths
        Other outputs.

    Raises
    ------
    UsageError
        If `path` is an input or another output, exists without `force`, or is not a regular file.
    MachineError
        If its folder is missing or does not take files.
    """
    target = Path(path)
    for other in others:
        if _same_file(target, Path(other)):
            raise UsageError(f"Two outputs are the same file {_shown(path)}. Name another one.")
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


# Writing


def _write(path: StrPath, blocks: Iterable[bytes], owner: Path | None = None) -> None:
    try:
        write_atomically(Path(path), blocks, owner)
    except (OSError, ValueError) as error:
        raise MachineError(f"Cannot write {_shown(path)}: {_reason(error)}.") from error


def _write_data(model_path: StrPath, data: DataFile) -> Path | None:
    """Write a data file beside a model; its path, or None where it stands there already."""
    target = Path(model_path).with_name(data.name)
    if _holds(target, data):
        return None
    _write(target, _unchanged(data), owner=Path(model_path))
    return target


def _holds(path: Path, data: DataFile) -> bool:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != data.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == data.sha256
    except OSError:
        return False


def _unchanged(data: DataFile) -> Iterator[bytes]:
    """The bytes of a data file, as long as they are those that it is named after."""
    digest = hashlib.sha256()
    for block in data.blocks():
        digest.update(block)
        yield block
    if digest.hexdigest() != data.sha256:
        raise MachineError("The external data changed while they were copied. Nothing was written.")


def _encoded(model: onnx.ModelProto, folder: StrPath | None) -> tuple[bytes, DataFile | None]:
    """The bytes of the ``.onnx`` file, and the data file that goes with it, if one does."""
    outside = has_external_data(model)
    if not outside:
        with contextlib.suppress(EncodeError, ValueError):  # too large for one file
            return _serialized(model), None
    try:
        light, data = packed(model, None if folder is None else Path(folder), all_large=not outside)
    except OSError as error:
        raise ModelError(f"The model's external data cannot be read: {_reason(error)}.") from error
    try:
        return _serialized(light), data
    except (EncodeError, ValueError) as error:
        raise ModelError(f"The model cannot be encoded, it is larger than {MAX_BYTES} bytes.") from error


def _serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _info(encoded: bytes, data: DataFile | None) -> FileInfo:
    return FileInfo(hashlib.sha256(encoded).hexdigest(), len(encoded) + (data.size if data else 0))


def _same_file(target: Path, source: Path) -> bool:
    try:
        return target.samefile(source)
    except (OSError, ValueError):  # one of them does not exist
        return target.resolve() == source.resolve()


def _shown(path: StrPath) -> str:
    return quoted(os.fspath(path), limit=300)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
