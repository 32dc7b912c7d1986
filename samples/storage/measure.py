"""What packed weights cost and save: a network on MNIST, one large weight, models of others, graph simplifiers.

    python samples/storage/measure.py mnist build/mnist
    python samples/storage/measure.py large
    python samples/storage/measure.py real ../shared/models
    python samples/storage/measure.py simplifiers build/mnist --bin FOLDER_OF_EXECUTABLES

- *mnist*: all edges pruned to keep 0.2, 0.5 and 0.7; bytes beside those of the dense weights, whether 10,000 answers
  are the same to the bit, what the optimized graph of onnxruntime holds, and latency beside the dense file.
- *large*: one weight of 4096 x 4096 in every form: bytes, load time, peak memory of loading.
- *real*: models of other people, pruned to half of their edges on random rows where that can be (by importance, without
  a refit), else cut to half by magnitude; packed; run. Where their operators are too old to unpack, converted.
- *simplifiers*: what onnxsim and onnxslim make of a packed file.

Each writes a table, `NAME.md` beside this script.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark import lines_of, without_places
from machine import machine_line

import onnxdpp
from onnxdpp.footprint import Memory, peak_memory
from onnxdpp.graph.batches import Batch
from onnxdpp.graph.calibration import Session
from onnxdpp.latency import interleaved
from onnxdpp.report import FORMS

KEEPS = (0.2, 0.5, 0.7)
DENSITIES = (0.05, 0.2, 0.5)
SIDE = 4096
LOADS = 3
RATIOS = 5
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# mnist


def mnist(arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of a network whose edges are pruned."""
    folder = arguments.folder
    with np.load(folder / "test.npz") as arrays:
        rows = arrays["input"]
        labels = arrays["labels"]
    yield "- bytes: of the file, in units of the bytes of the dense weights; bound: keep + 0.04"
    yield f"- answers: of the packed and of the dense file on {len(rows):,} test rows"
    yield "- optimized: operators that onnxruntime runs, as it writes them (`optimized_model_filepath`)"
    yield "- latency: packed / dense, interleaved, one thread, without spinning (`onnxdpp.latency`), by the time that"
    yield f"  the thread has on the processor: the median of {RATIOS} evaluations, and their range"
    head = ("keep", "bytes", "bound", "answers", "accuracy", "optimized", "latency, 1 row", "latency, 256 rows")
    table = []
    for keep in arguments.keep:
        dense = edges(folder, keep, arguments.cache)
        packed = onnxdpp.pack(dense, provider="cpu").model
        whole = sum(len(numpy_helper.to_array(part).tobytes()) for part in dense.graph.initializer)
        old, new = (answers(model, rows) for model in (dense, packed))
        ratios = [latencies(dense, packed, rows[:count]) for count in (1, 256)]
        size = len(packed.SerializeToString(deterministic=True))
        same = "same bits" if old.tobytes() == new.tobytes() else "DIFFER"
        accuracy = f"{100 * np.mean(new.argmax(1) == labels):.2f}"
        row = [f"{keep:g}", f"{size / whole:.4f}", f"{keep + 0.04:.2f}", same, accuracy, optimized(packed)]
        table.append([*row, *ratios])
        tell(" | ".join(table[-1]))
    yield from lines_of(head, table)


def edges(folder: Path, keep: float, cache: Path | None) -> ModelProto:
    """The network with this fraction of its edges, dense; taken from the cache where it is there."""
    path = None if cache is None else cache / f"{folder.name}-{keep:g}.onnx"
    if path is not None and path.exists():
        return onnx.load(path)
    options = {"unit": "edge", "keep": keep, "storage": "dense"}
    result = onnxdpp.prune(folder / "model.onnx", folder / "calib.npz", provider="cpu", **options)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        result.save(path)
    return result.model


def answers(model: ModelProto, rows: NDArray[Any]) -> NDArray[Any]:
    """The first output for all rows at once."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return result


def optimized(model: ModelProto) -> str:
    """The operators of the optimized graph, with their numbers."""
    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = f"{place}/optimized.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return ", ".join(f"{count} {name}" for name, count in found.items())


def latencies(dense: ModelProto, packed: ModelProto, rows: NDArray[Any]) -> str:
    """Latency of a packed model in units of the dense one's: the median of several, and their range."""
    found = sorted(latency(dense, packed, rows) for _ in range(RATIOS))
    return f"{found[RATIOS // 2]:.3f} ({found[0]:.3f} to {found[-1]:.3f})"


def latency(dense: ModelProto, packed: ModelProto, rows: NDArray[Any]) -> float:
    """Latency of a packed model in units of the dense one's, once."""
    batch = Batch({"input": rows}, 0, len(rows))

    def pair(second_first: bool) -> tuple[Callable[[], object], Callable[[], object]]:
        made = [Session(model, "cpu", threads=1) for model in ((packed, dense) if second_first else (dense, packed))]
        old, new = reversed(made) if second_first else made
        return lambda: old.run(batch), lambda: new.run(batch)

    # The processor's time: on a machine that does other things too, a batch is interrupted in every run.
    return interleaved(pair, len(rows), clock=time.thread_time).ratio


# large


def large(arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of one large weight in every form."""
    yield f"- one MatMul with a float32 weight of {SIDE} x {SIDE}, entries at random places; loaded on one thread"
    yield f"- load, memory: the least of {LOADS} processes; memory: peak less what the process had before loading"
    head = ("density", "form", "file bytes", "of dense", "load", "memory of loading")
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        for density in arguments.density:
            model = one_weight(density)
            whole = len(model.SerializeToString())
            for name, options in (
                ("dense", None),
                ("sparse_initializer", {"storage": "sparse"}),
                ("packed", {"storage": "packed"}),
                ("packed, float16", {"storage": "packed", "values": "float16"}),
            ):
                entries = form(model, path, options)
                if entries is not None:
                    size, form_name, memory = entries
                    told = name if name == "dense" else f"{name}: {form_name}"
                    row = [f"{density:g}", told, f"{size:,}", f"{size / whole:.3f}"]
                    mebibytes = (memory.peak - memory.start) / 2**20
                    table.append([*row, f"{memory.load_seconds:.2f} s", f"{mebibytes:,.0f} MiB"])
                    tell(" | ".join(table[-1]))
    yield from lines_of(head, table)


def one_weight(density: float) -> ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((SIDE, SIDE), np.float32)
    weight[rng.random((SIDE, SIDE)) >= density] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIDE])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def form(model: ModelProto, path: Path, options: dict[str, str] | None) -> tuple[int, str, Memory] | None:
    """Bytes, form and what loading takes; None where this form is not smaller than dense."""
    told = ""
    if options is not None:
        try:
            result = onnxdpp.pack(model, provider="cpu", **options)
        except onnxdpp.NothingToPrune as reason:
            tell(f"{options}: {reason.refusals}")
            return None
        model = result.model
        told = FORMS[result.report["storage"]["tensors"][0]["form"]]
    path.write_bytes(model.SerializeToString())
    taken = [peak_memory(path, None, "cpu", 1) for _ in range(LOADS)]
    best = min(taken, key=lambda part: part.load_seconds)
    least = min(part.peak - part.start for part in taken)
    return path.stat().st_size, told, replace(best, peak=best.start + least)


# real


def real(arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of models of others."""
    yield "- masked: *edges*, pruned to half on 64 random rows, by importance, without refit; *weights*, where that"
    yield "  cannot be, the smaller half of every float initializer of 1,024 bytes and more is zero"
    yield "- bytes: of the file, packed / dense; rows: random rows with the same bits in every output"
    head = ("model", "opset", "masked", "weights packed", "types", "bytes", "rows", "load, dense", "load, packed")
    table = []
    for path in sorted(arguments.folder.rglob("*.onnx")):
        row = real_row(path)
        table.append([path.stem.rpartition("__")[2] or path.stem, *row])
        tell(" | ".join(table[-1]))
    yield from lines_of(head, table)


def real_row(path: Path) -> list[str]:
    try:
        opset = next(part.version for part in onnx.load(path, load_external_data=False).opset_import if not part.domain)
        told, model = masked(path)
    except (onnx.checker.ValidationError, StopIteration, ValueError, OSError):
        return ["", "", "cannot be read, its external data are missing or it has no opset", *[""] * 5]
    begin = [f"{opset}", told]
    try:
        try:
            result = onnxdpp.pack(model, provider="cpu")
        except onnxdpp.NothingToPrune as error:
            if "--opset" not in str(error):
                raise
            result = onnxdpp.pack(model, provider="cpu", opset=13)
            begin[0] += " → 13"
    except onnxdpp.OnnxdppError as error:
        reasons = {reason for _, reason in getattr(error, "refusals", ())}
        said = "; ".join(sorted(reasons)) if reasons and len(reasons) < 3 else str(error)
        return [*begin, " ".join(said.split())[:160], *[""] * 5]
    report = result.report
    stored = [part for part in report["storage"]["tensors"] if part["form"] != "dense"]
    files = report["storage"]["files"]
    types = ", ".join(sorted({part["dtype"] for part in stored}))
    ratio = f"{files['stored']['bytes'] / files['dense']['bytes']:.3f}"
    loads = (f"{1e3 * files[side]['load']['load_seconds']:.1f} ms" for side in ("dense", "stored"))
    number = f"{len(stored)} of {len(report['storage']['tensors'])}"
    return [*begin, number, types, ratio, str(report["rows"]) if report["rows"] else "not run", *loads]


def whole(path: Path) -> ModelProto | Path:
    """The model with its external data in it, where it has some."""
    listed = onnx.load(path, load_external_data=False)
    outside = any(part.data_location == TensorProto.EXTERNAL for part in listed.graph.initializer)
    return onnx.load(path) if outside else path


def masked(path: Path) -> tuple[str, ModelProto]:
    """The model with half of its edges, or of its weights, gone."""
    try:
        options = {"unit": "edge", "keep": 0.5, "method": "importance", "refit": "none", "storage": "dense"}
        return "edges", onnxdpp.prune(whole(path), "random:64", provider="cpu", **options).model
    except onnxdpp.OnnxdppError:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type in FLOATS and len(tensor.dims) > 1:
                array = numpy_helper.to_array(tensor).copy()
                if array.nbytes >= 1024:
                    array[np.abs(array) < np.median(np.abs(array))] = 0
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return "weights", model


# simplifiers


def simplifiers(arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of what tools make of a packed file."""
    head = ("file", "bytes", "operators", "still packed")
    table = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "packed.onnx"
        result = onnxdpp.prune(
            arguments.folder / "model.onnx", arguments.folder / "calib.npz", unit="edge", keep=0.2, provider="cpu",
            method="importance", max_rows=2000,
        )  # fmt: skip
        result.save(source)
        for tool in ("", "onnxsim", "onnxslim"):
            out = Path(place) / f"{tool}.onnx" if tool else source
            if tool:
                command: Sequence[Path | str] = [arguments.bin / tool, source, out]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if not out.exists():
                    table.append([tool, (done.stderr.strip().splitlines() or ["failed"])[-1][:100], "", ""])
                    continue
            model = onnx.load(out)
            found = Counter(node.op_type for node in model.graph.node)
            largest = max(len(part.raw_data) for part in model.graph.initializer)
            told = ", ".join(f"{count} {name}" for name, count in found.items())
            still = "yes" if largest < 784 * 500 * 2 else "no: dense weights again"
            table.append([tool or "as packed", f"{out.stat().st_size:,}", told, still])
    words = (
        "from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in ('onnxsim', 'onnxslim')))"
    )
    said = subprocess.run([arguments.bin / "python", "-c", words], capture_output=True, text=True, check=True).stdout
    yield f"- tools: {said.strip()}; other runtimes were not tried"
    yield "- the network on MNIST, edges at keep 0.2 (importance), packed; then as the tool writes it, at its defaults"
    yield from lines_of(head, table)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Iterable[str]], str]] = {
    "mnist": (mnist, "Edges of a network on MNIST, packed"),
    "large": (large, "One large weight in every form"),
    "real": (real, "Models of others, half of their weights gone, packed"),
    "simplifiers": (simplifiers, "What graph simplifiers make of a packed file"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What packed weights cost and save.", allow_abbrev=False)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("folder", type=Path, nargs="?", help="of the network, or of the models")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, metavar="F")
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES, metavar="F")
    parser.add_argument("--bin", type=Path, help="where onnxsim and onnxslim are installed")
    parser.add_argument("--cache", type=Path, help="where pruned models are kept from run to run")
    parser.add_argument("--out", type=Path, help="default: NAME.md beside this script")
    arguments = parser.parse_args()
    run, title = COMMANDS[arguments.what]
    words = without_places(sys.argv[1:])
    head = [f"# {title}", "", f"- command: `python samples/storage/measure.py {words}`", machine_line()]
    text = "\n".join([*head, *run(arguments)]) + "\n"
    out = arguments.out or Path(__file__).with_name(f"{arguments.what}.md")
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
