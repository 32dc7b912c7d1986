"""onnxsim as a peer: run through a script of its own environment, on the files of one network after the other."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from alone import alone
from onnx import ModelProto

from onnxdpp.evaluation import parameters

DRIVER = Path(__file__).with_name("onnxsim_driver.py")
CRITERIA = ("wanda", "norm")  # rank by weights times activations, or by weights alone; each finds layers of its own
NORMS = ("l2", "l1")
COUNTING_ROWS = 8
STEPS = 200  # keeps that a search looks at


class Network(Protocol):
    """What the peer is given: a model with one input, and calibration rows."""

    name: str
    dense: ModelProto

    @property
    def input(self) -> str:
        """Name of the input."""

    @property
    def calib(self) -> np.ndarray:
        """Rows as the model wants them."""


@dataclass(frozen=True)
class Made:
    """A model and its price; NaN where the file is older than the list of prices."""

    model: ModelProto
    process: float = float("nan")  # seconds from start to exit
    work: float = float("nan")  # of these, seconds of pruning
    peak: float = float("nan")  # bytes


class Peer:
    """onnxsim, run through its script in an environment of its own. What is in the folder is not made again."""

    def __init__(self, script: Path, python: str, limit: float, folder: Path) -> None:
        self.script = script.absolute()
        self.python = python
        self.limit = limit
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stem = ""  # of the files of the present network
        self.hopeless: set[str] = set()  # modes that ran out of time on it

    def version(self) -> str:
        """Of onnxsim."""
        code = "import importlib.metadata as m; print(m.version('onnxsim'))"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    @property
    def model_file(self) -> Path:
        """Of the present network."""
        return self.folder / f"{self.stem}.onnx"

    @property
    def calib_file(self) -> Path:
        """Its calibration rows."""
        return self.folder / f"{self.stem}.npz"

    def give(self, network: Network) -> None:
        """Write the files that the following runs read."""
        self.hopeless.clear()
        self.stem = f"{network.name.replace('/', '-')}-{len(network.calib)}"
        onnx.save(network.dense, self.model_file)
        np.savez(self.calib_file, **{network.input: network.calib})

    def prune(self, keep: float, mode: str, label: str, *options: str) -> Made | str:
        """The model, or why there is none; `label` tells its file from those of other `options`."""
        stem = f"{self.stem}-{keep:g}-{mode}-{label}"
        out, reason, price = (self.folder / f"{stem}{suffix}" for suffix in (".onnx", ".txt", ".json"))
        if not out.exists() and not reason.exists():
            command = [self.python, DRIVER, self.script, self.model_file, "--calib", self.calib_file]
            run = alone([*command, "--keep", f"{keep:g}", "--mode", mode, "-o", out, *options], self.limit)
            if run.code == 0:
                work = json.loads(run.said.splitlines()[-1])["seconds"]
                price.write_text(json.dumps({"process": run.seconds, "work": work, "peak": run.peak}), encoding="utf-8")
            else:
                reason.write_text(run.reason[:120], encoding="utf-8")
        if not out.exists():
            return reason.read_text(encoding="utf-8")
        return Made(onnx.load(out), **(json.loads(price.read_text(encoding="utf-8")) if price.exists() else {}))

    def prune_structured(self, keep: float, mode: str, criterion: str, norm: str) -> Made | str:
        """Remove channels by one ranking."""
        return self.prune(keep, mode, f"{criterion}-{norm}", *ranking(criterion, norm))

    def count(self, criterion: str, keep: float) -> int:
        """How many parameters stay at a keep."""
        keep = min(max(keep, 1 / STEPS), 1 - 1 / STEPS)
        options = (*ranking(criterion, NORMS[0]), "--samples", str(COUNTING_ROWS))
        made = self.prune(keep, "structured", f"{criterion}-{NORMS[0]}-few", *options)
        if isinstance(made, str):
            sys.exit(f"onnxsim cannot be counted: {made}")
        return parameters(made.model)[0]


def ranking(criterion: str, norm: str) -> tuple[str, ...]:
    """Options of the script."""
    return ("--norm", norm, "--criterion", "l2" if criterion == "norm" else criterion)


def around(count: Callable[[float], int], target: int, start: float) -> tuple[float | None, float | None]:
    """Keeps whose counts are next to `target`: from below and from above; both the same where one meets it."""
    if count(start) == target:
        return start, start
    low, high = 0, STEPS  # counts are at most `target` up to low, and above it from high on
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle / STEPS) <= target else (low, middle)
    below, above = low / STEPS if low else None, high / STEPS if high < STEPS else None
    return (below, below) if below is not None and count(below) == target else (below, above)
