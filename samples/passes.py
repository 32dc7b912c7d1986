"""What pruning costs, in plain passes of onnxruntime over the same calibration file, and in memory.

    python samples/passes.py FOLDER [--keep F] [--unit neuron|edge] [--method M] [--repeats N] [--few-rows N]

FOLDER holds ``model.onnx`` and ``calib.npz`` (one array, ``input``). Three things are measured, each in a
fresh process, in turn and `--repeats` times over (default 3), so that a change of the machine's mood meets
all alike:

- *plain pass*: read calib.npz, run the model over it once in batches of 256, on the CPU;
- *prune, all rows*: ``onnxdpp prune`` with the same batch size on the CPU;
- *prune, few rows*: the same with ``--max-rows`` 10000 (or `--few-rows`).

*Process* seconds are from start to exit, interpreter and imports included. *Work* seconds leave these out:
for the pass they include the making of the session and the reading of the file; for onnxdpp they are
``seconds`` of its JSON report. Peak memory is the largest resident set of the process. Medians are compared.

Linux or macOS (``os.wait4``). Nothing is left behind but the table on stdout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import processor

# This process imports nothing large, on purpose: the peak memory of a child counts from the fork, so it is
# never reported below that of its parent.

BATCH = 256

PLAIN_PASS = f"""
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import json, sys, time
import numpy as np
import onnxruntime as ort
began = time.perf_counter()
model, calib, report = sys.argv[1:]
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
with np.load(calib) as arrays:
    rows = arrays["input"]
for start in range(0, len(rows), {BATCH}):
    session.run(None, {{"input": rows[start : start + {BATCH}]}})
seconds = time.perf_counter() - began
with open(report, "w") as file:
    json.dump({{"seconds": seconds, "rows": len(rows)}}, file)
"""


@dataclass(frozen=True)
class Measurement:
    """One process: wall seconds of the process, seconds of work in it, rows, peak resident set in bytes."""

    process: float
    work: float
    rows: int
    peak: int


def measure(command: Sequence[str | Path], report: Path) -> Measurement:
    """Run `command`, which writes the JSON `report` with `seconds` and `rows`."""
    report.unlink(missing_ok=True)
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} ... ended with {process.returncode}: {said.strip()}")
    written = json.loads(report.read_text())
    unit = 1 if sys.platform == "darwin" else 1024
    return Measurement(seconds, written["seconds"], written["rows"], usage.ru_maxrss * unit)


def commands(arguments: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str | Path], Path]]:
    """Return what to measure: name -> (command, the report that it writes into `folder`)."""
    model, calib = arguments.folder / "model.onnx", arguments.folder / "calib.npz"
    report = folder / "report.json"
    prune: list[str | Path] = [
        *(sys.executable, "-m", "onnxdpp", "prune", model, "--calib", calib),
        *("--keep", f"{arguments.keep:g}", "--unit", arguments.unit, "--provider", "cpu", "--storage", "dense"),
        *(("--method", arguments.method) if arguments.method else ()),
        *("--batch-size", f"{BATCH}", "--quiet", "--force", "-o", folder / "out.onnx", "--report", report),
    ]
    return {
        "plain pass": ([sys.executable, "-c", PLAIN_PASS, model, calib, report], report),
        "prune, all rows": (prune, report),
        "prune, few rows": ([*prune, "--max-rows", f"{arguments.few_rows}"], report),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time and memory of pruning against plain passes of onnxruntime.", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="holds model.onnx and calib.npz")
    parser.add_argument("--keep", type=float, default=0.5, metavar="F", help="default 0.5")
    parser.add_argument("--unit", default="neuron", choices=("neuron", "edge"))
    parser.add_argument("--method", metavar="M", help="default: that of onnxdpp")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--few-rows", type=int, default=10000, metavar="N", help="default 10000")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        jobs = commands(arguments, Path(folder))
        found: dict[str, list[Measurement]] = {name: [] for name in jobs}
        for turn in range(arguments.repeats):
            for name, (command, report) in jobs.items():
                print(f"[{turn + 1}/{arguments.repeats}] {name}", file=sys.stderr, flush=True)
                found[name].append(measure(command, report))

    def middle(name: str, field: str) -> float:
        return statistics.median(getattr(each, field) for each in found[name])

    how = f"unit {arguments.unit}, method {arguments.method or 'auto'}, keep {arguments.keep:g}, batches of {BATCH}"
    print(f"{how}; {processor()}; ", end="")
    print(f"medians of {arguments.repeats}\n")
    print("| | rows | process s | work s | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for name, each in found.items():
        figures = [middle(name, field) for field in ("process", "work", "peak")]
        print(f"| {name} | {each[0].rows} | {figures[0]:.2f} | {figures[1]:.2f} | {figures[2] / 1e6:.0f} |")
    process, work = (middle("prune, all rows", field) / middle("plain pass", field) for field in ("process", "work"))
    peak = middle("prune, all rows", "peak") / middle("prune, few rows", "peak")
    print(f"\n- passes: {work:.2f} (work), {process:.2f} (process)")
    print(f"- peak memory, all rows / few rows: {peak:.3f}")


if __name__ == "__main__":
    main()
