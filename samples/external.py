"""Make a model whose weights lie in external data, of any size, and measure the memory that pruning it takes.

    python samples/external.py FOLDER [--gib 2.5] [--width 1024] [--depth 8] [--rows 1024] [--measure [--keep F]]

FOLDER gets ``model.onnx``, its weights ``model.onnx.data`` and ``calib.npz``; what is there already is kept if the
weights are as large as they would become. The model is an ensemble, as of the heads of a multi-task network: towers
of `--depth` dense layers, `--width` wide, with ReLU between them, over one input, each with outputs of its own. Their
number follows from the size. So single layers are modest, as they are in large models, and what runs before a layer
is its own tower: pruning takes time in proportion to the size. Weights are random (He), written one at a time.

`--measure` prunes it (to `--keep`, default 0.25) with the command line in a process of its own, and asks Linux for
that process's memory every few milliseconds (``/proc/PID/status``): RssAnon is what it holds itself; RssFile are pages
of mapped files, which the system takes back as it needs them; VmHWM is the largest resident set, both together.
"""

import argparse
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from machine import processor
from onnx import ModelProto, TensorProto, helper

INTERVAL = 0.005  # seconds
OUTPUTS = 16


def make(folder: Path, gib: float, width: int, depth: int, rows: int) -> Path:
    """Write model, weights and calibration data; the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [width] * depth + [OUTPUTS]
    tower = sum(4 * (n * m + m) for n, m in pairwise(sizes))
    towers = max(1, round(gib * 2**30 / tower))
    rng = np.random.default_rng(0)
    np.savez(folder / "calib.npz", input=rng.standard_normal((rows, width), np.float32))
    model = ModelProto(ir_version=8, producer_name="onnxdpp samples/external.py")
    model.opset_import.append(helper.make_opsetid("", 17))
    graph = model.graph
    graph.name = "towers"
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", width]))
    data, end = folder / "model.onnx.data", 0
    whole = data.exists() and data.stat().st_size == towers * tower
    with data.open("rb" if whole else "wb") as file:
        for number in range(towers):
            value = "input"
            for layer, (n, m) in enumerate(pairwise(sizes)):
                name, last = f"tower{number}/layer{layer}", layer == depth - 1
                for kind, shape in (("weight", (n, m)), ("bias", (m,))):
                    tensor = graph.initializer.add(name=f"{name}/{kind}", data_type=TensorProto.FLOAT, dims=shape)
                    length = 4 * int(np.prod(shape))
                    tensor.data_location = TensorProto.EXTERNAL
                    for key, entry in (("location", data.name), ("offset", end), ("length", length)):
                        tensor.external_data.add(key=key, value=str(entry))
                    end += length
                    if not whole:
                        scale = np.float32((2 / n) ** 0.5 if kind == "weight" else 0.1)
                        file.write((scale * rng.standard_normal(shape, np.float32)).tobytes())
                hidden = f"answer{number}" if last else f"{name}/value"
                graph.node.append(
                    helper.make_node("Gemm", [value, f"{name}/weight", f"{name}/bias"], [hidden], name=name)
                )
                if last:
                    graph.output.append(helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["rows", OUTPUTS]))
                else:
                    value = f"{name}/relu"
                    graph.node.append(helper.make_node("Relu", [hidden], [value]))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def memory(pid: int) -> dict[str, int]:
    """Return what Linux says of a process's memory, in bytes; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("Rss", "VmHWM")))
    return {name.rstrip(":"): 1024 * int(kib) for name, kib, _ in fields}


def measure(model: Path, keep: float) -> dict[str, float]:
    """Prune the model in a process of its own: the largest of each figure of `memory`, and the seconds it took."""
    command = [
        *(sys.executable, "-m", "onnxdpp", "prune", model, "--calib", model.with_name("calib.npz")),
        *("--keep", f"{keep:g}", "--provider", "cpu", "--quiet", "--force"),
        *("--method", "dpp", "-o", model.with_name("pruned.onnx"), "--report", model.with_name("report.json")),
    ]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    began = time.perf_counter()
    peak: dict[str, float] = {}
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            for name, value in memory(process.pid).items():
                peak[name] = max(peak.get(name, 0), value)
            time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(f"onnxdpp ended with {process.returncode}")
    return {**peak, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A model with external data, and the memory of pruning it.", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=2.5, metavar="G", help="size of the weights (default 2.5)")
    parser.add_argument("--width", type=int, default=1024, metavar="N", help="default 1024")
    parser.add_argument("--depth", type=int, default=8, metavar="N", help="dense layers of a tower (default 8)")
    parser.add_argument("--rows", type=int, default=1024, metavar="N", help="of calibration data (default 1024)")
    parser.add_argument("--measure", action="store_true", help="prune it and print the memory that this takes")
    parser.add_argument("--keep", type=float, default=0.25, metavar="F", help="default 0.25")
    arguments = parser.parse_args()

    model = make(arguments.folder, arguments.gib, arguments.width, arguments.depth, arguments.rows)
    size = sum(model.with_name(name).stat().st_size for name in (model.name, f"{model.name}.data"))
    print(f"{model}: {size} bytes with its data")
    if arguments.measure:
        figures = measure(model, arguments.keep)
        print(f"pruned to {arguments.keep:g} of its neurons in {figures['seconds']:.0f} s ({processor()})\n")
        print("| peak of | MB | share of the model |\n|---|---:|---:|")
        for name in ("RssAnon", "RssFile", "RssShmem", "VmHWM"):
            print(f"| {name} | {figures[name] / 1e6:.0f} | {figures[name] / size:.3f} |")


if __name__ == "__main__":
    main()
