"""Every error that onnxdpp raises on purpose, and the exit code that each one means.

::

    OnnxdppError
    ├── UsageError        2   an option or argument that cannot be
    ├── ModelError        3   the model file or its graph
    ├── DataError         3   the calibration data, or others
    ├── NothingToPrune    4   nothing may be pruned, packed or unpacked; ``refusals`` says why
    └── MachineError      5   device, disk, packages

A message is one line: what is wrong with which named thing and with which values, then what to do.
Foreign exceptions (protobuf, onnx, onnxruntime, zipfile) are translated where they arise and never leak.
"""

from collections.abc import Sequence
from typing import ClassVar


class OnnxdppError(Exception):
    """Base of all errors of onnxdpp; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 5


class UsageError(OnnxdppError):
    """An option or argument has a value that cannot be."""

    exit_code = 2


class ModelError(OnnxdppError):
    """The model file, or the graph in it, cannot be used."""

    exit_code = 3


class DataError(OnnxdppError):
    """Calibration data, or others, do not fit the model or cannot be read."""

    exit_code = 3


class NothingToPrune(OnnxdppError):
    """No layer of the model may be pruned; no weight would be smaller packed; or none is packed.

    Attributes
    ----------
    refusals : sequence of (name, reason)
        Why, for each candidate; of `unpack`, none.
    """

    exit_code = 4

    def __init__(self, message: str, refusals: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


class MachineError(OnnxdppError):
    """The machine cannot do it: no such device, a full or read-only disk, a missing package."""

    exit_code = 5
