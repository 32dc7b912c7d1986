"""Call public functions of onnxsim 0.8.1 on a file, one after the other, as its users would.

    PYTHON samples/onnxsim_call.py MODEL OUT CALIB.npz STEP ... [--batch N] [--by-path]

PYTHON has onnxsim, and needs nothing else of this repository. A STEP is ``name`` or ``name:{"option": value}``; what
takes calibration data gets the rows, `--batch` of them at a time (default: all at once), and what compares a pruned
model with the one before gets that as it was before anything but ``simplify``. `--by-path` hands the first step the
path, not the model. Prints a JSON line with the seconds that the steps took.
"""

import argparse
import inspect
import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim

TWO_MODELS = ("apply_pruning_finetune", "apply_block_finetune_all_blocks")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("steps", nargs="+")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--by-path", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.calib) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(rows.values())))
    size = arguments.batch or count
    batches = [{name: array[at : at + size] for name, array in rows.items()} for at in range(0, count, size)]
    model = str(arguments.model) if arguments.by_path else onnx.load(arguments.model)
    before = model
    began = time.perf_counter()
    for step in arguments.steps:
        name, _, options = step.partition(":")
        function = getattr(onnxsim, name)
        given = json.loads(options) if options else {}
        if "calibration_data" in inspect.signature(function).parameters:
            given["calibration_data"] = batches
        made = function(before, model, **given) if name in TWO_MODELS else function(model, **given)
        model = made[0] if isinstance(made, tuple) else made
        if name == "simplify":
            before = model
    seconds = time.perf_counter() - began
    onnx.save(model, arguments.out)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
