"""Small graphs as files, and onnxsim called on them in an environment of its own; for peers.py and peer_defects.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from alone import Run, alone
from onnx import ModelProto
from peer_graphs import Small
from real import session

CALL = Path(__file__).with_name("onnxsim_call.py")
LIMIT = 300  # seconds of a call
REFIT = "apply_pruning_finetune"


@dataclass(frozen=True)
class Given:
    """The files of a graph."""

    small: Small
    model: Path
    calib: Path

    @classmethod
    def stored(cls, small: Small, folder: Path) -> "Given":
        """Write them."""
        folder.mkdir(parents=True, exist_ok=True)
        given = cls(small, folder / "model.onnx", folder / "calib.npz")
        onnx.save(small.model(), given.model)
        np.savez(given.calib, x=small.rows())
        return given

    def distance(self, model: ModelProto) -> float:
        """Relative L2 of the worst output, on the calibration rows; infinite where onnxruntime does not run it."""
        rows = {"x": self.small.rows()}
        before = session(onnx.load(self.model)).run(None, rows)
        try:
            after = session(model).run(None, rows)
        except Exception:  # onnxruntime has no class of its own for all of them
            return np.inf
        pairs = [(a.astype(float), b.astype(float)) for a, b in zip(before, after, strict=True)]
        return max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs)


class Peer:
    """onnxsim in its own environment."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._count = 0

    def version(self) -> str:
        """Of onnxsim."""
        code = "import importlib.metadata as m; print(m.version('onnxsim'))"
        return alone([self._python, "-c", code], LIMIT).said.strip()

    def call(self, given: Given, *steps: str, options: Sequence[str] = ()) -> tuple[Run, Path]:
        """Call functions, one after the other; the file is there where all went well."""
        self._count += 1
        out = given.model.with_name(f"{self._count}.onnx")  # where its external data, if any, are found
        run = alone([self._python, CALL, given.model, out, given.calib, *steps, *options], LIMIT)
        return run, out


def half(function: str) -> str:
    """A step that prunes half."""
    return f"{function}:{json.dumps({'sparsity': 0.5})}"


def percent(error: float) -> str:
    """With two digits; nothing where there is no number."""
    return "" if np.isnan(error) else "does not run" if np.isinf(error) else f"{100 * error:.2f}"
