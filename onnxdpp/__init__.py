"""Prune ONNX models with determinantal point processes and a least-squares refit.

>>> import onnxdpp
>>> result = onnxdpp.prune("model.onnx", "calib.npz", keep=0.7)  # doctest: +SKIP
>>> result.save("model.pruned.onnx")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxdpp.errors import DataError, MachineError, ModelError, NothingToPrune, OnnxdppError, UsageError

if TYPE_CHECKING:
    from onnxdpp.api import PruneResult, prune
    from onnxdpp.comparing import compare_methods
    from onnxdpp.evaluating import evaluate
    from onnxdpp.inspecting import inspect
    from onnxdpp.storing import PackResult, pack, unpack

__all__ = [
    "DataError",
    "MachineError",
    "ModelError",
    "NothingToPrune",
    "OnnxdppError",
    "PackResult",
    "PruneResult",
    "UsageError",
    "compare_methods",
    "evaluate",
    "inspect",
    "pack",
    "prune",
    "unpack",
]


_HOMES = {
    "PackResult": "storing",
    "PruneResult": "api",
    "compare_methods": "comparing",
    "evaluate": "evaluating",
    "inspect": "inspecting",
    "pack": "storing",
    "prune": "api",
    "unpack": "storing",
}


def __getattr__(name: str) -> Any:
    # onnxruntime and SciPy are loaded when they are needed: `onnxdpp --help` needs neither.
    if name in _HOMES:
        return getattr(import_module(f"onnxdpp.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
