"""Prune ONNX models with determinantal point processes and a least-squares refit.

>>> import onnxdpp
>>> result = onnxdpp.prune("model.onnx", "calib.npz", keep=0.7)  # doctest: +SKIP
>>> result.save("model.pruned.onnx")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from onnxdpp.errors import DataError, MachineError, ModelError, NothingToPrune, OnnxdppError, UsageError

if TYPE_CHECKING:
    from onnxdpp.api import PruneResult, compare_methods, inspect, prune
    from onnxdpp.evaluating import evaluate
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


def __getattr__(name: str) -> Any:
    # onnxruntime and SciPy are loaded when they are needed: `onnxdpp --help` needs neither.
    if name in ("PruneResult", "compare_methods", "inspect", "prune"):
        from onnxdpp import api

        return getattr(api, name)
    if name == "evaluate":
        from onnxdpp.evaluating import evaluate

        return evaluate
    if name in ("PackResult", "pack", "unpack"):
        from onnxdpp import storing

        return getattr(storing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
