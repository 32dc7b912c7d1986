"""What onnxdpp finds in a folder of models: layers, refusals by reason, and the verdict of `inspect --verify`.

    python samples/coverage.py --models FOLDER [--out TABLE.md]

FOLDER holds ``.onnx`` files and, optionally, ``manifest.csv`` with a row for each ``file``: ``prunable_dense_hidden``
(``784x[500]x10 Relu ; ...``, one for each hidden dense layer) and ``prunable_conv_heuristic`` (a number), as somebody
counted them without onnxdpp. Models run on random rows (seed 0); those that need other rows are named in `SHAPES`.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import onnxdpp

SHAPES: dict[str, dict[str, Any]] = {
    "snakers4__silero-vad__model_micro.onnx": {"input": (2, 4000)},
    "snakers4__silero-vad__silero_vad_16k_op15.onnx": {"input": (4, 512), "state": (2, 4, 128), "sr": 16000},
}
"""Models whose paddings need more samples than random rows have."""

HEAD = """# What is found in models of other people

`python samples/coverage.py --models FOLDER --out samples/coverage.md`: hidden layers that can be pruned beside what the
folder's manifest names, how many have several producers, how many pass both tests of `onnxdpp inspect --verify`, and
why the others are left alone (with how many).

"""

REASONS = {
    "is a graph output": "its value is a graph output",
    "mixes neurons": "an operator mixes its neurons",
    "attention": "attention",
    "joins its neurons with another value": "added to or multiplied with a value that carries none (a residual stream)",
    "how many neurons there are": "their number is computed with",
    "in a way that is not known": "reshaped to sizes that only a run tells",
    "prune before you quantize": "quantized",
    "is not looked into": "in a body or a function",
    "is recurrent": "recurrent",
    "depthwise": "depthwise upon channels that stay",
    "random": "random",
}


def rows_for(file: str) -> Any:
    """Random rows for one model."""
    if file not in SHAPES:
        return "random:10"
    rng = np.random.default_rng(0)
    return [
        {
            name: rng.standard_normal(shape).astype(np.float32) if isinstance(shape, tuple) else np.array(shape)
            for name, shape in SHAPES[file].items()
        }
    ]


def reason(text: str) -> str:
    """The kind of a refusal."""
    return next((kind for part, kind in REASONS.items() if part in text), text)


def row(folder: Path, file: str, known: dict[str, str]) -> tuple[str, int]:
    """A line of the table, and how many layers failed."""
    try:
        found = onnxdpp.inspect(folder / file, verify=True, calib=rows_for(file), provider="cpu")
    except onnxdpp.OnnxdppError as error:
        return f"| {file} | - | - | - | - | {str(error).split(': ', 1)[-1]} |", 0
    layers = [layer for layer in found["layers"] if layer["unit"] == "neuron"]
    dense = [layer for layer in layers if layer["operator"] in ("Gemm", "MatMul")]
    named = known.get("prunable_dense_hidden", "").count("[") if known else None
    failed = sum(not layer["verdict"]["passed"] for layer in layers)
    reasons = Counter(reason(part["reason"]) for part in found["refusals"] if part["unit"] == "neuron")
    told = "; ".join(f"{kind} ({count})" for kind, count in reasons.most_common()) or "-"
    heuristic = known.get("prunable_conv_heuristic", "") if known else "-"
    return (
        f"| {file} | {len(dense)} / {'-' if named is None else named} | {len(layers) - len(dense)} / {heuristic or 0} "
        f"| {sum(len(layer['producers']) > 1 for layer in layers)} "
        f"| {'all' if not failed else len(layers) - failed} of {len(layers)} | {told} |"
    ), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    manifest = options.models / "manifest.csv"
    known = {}
    if manifest.exists():
        known = {line["file"]: line for line in csv.DictReader(manifest.read_text(encoding="utf-8").splitlines())}
    files = sorted(str(path.relative_to(options.models)) for path in options.models.rglob("*.onnx"))
    lines = [
        "| model | dense layers / named | convolutional / heuristic | of several producers | sound | left alone |",
        "|---|---|---|---|---|---|",
    ]
    failed = 0
    for file in files:
        line, bad = row(options.models, file, known.get(file, {}))
        failed += bad
        lines.append(line)
        print(line, flush=True)
    if options.out:
        options.out.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
