"""How many calibration rows are enough: the answers on test rows, by how many rows were pruned with.

    python samples/rows.py FOLDER... [--rows N ...] [--keep F ...] [--out TABLE.md]

FOLDERs are those of `benchmark.py`. Rows are evenly spaced; neurons are pruned, all else is at its default. The table
goes to stdout and to `--out` (default rows.md beside this script).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benchmark import Case, evaluate, lines_of, without_places
from machine import machine_line

import onnxdpp

ROWS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 60000)
KEEPS = (0.5, 0.1)


def entries(case: Case, keep: float, count: int) -> list[str]:
    """Accuracy, where there are labels, and discrepancy."""
    model = onnxdpp.prune(case.model, case.calib, keep=keep, max_rows=count, provider="cpu").model
    found = evaluate(case, model)
    print(f"{case.name}: keep {keep:g}, {count} rows: {found['discrepancy']:.2f}", file=sys.stderr, flush=True)
    return [f"{found['accuracy']:.2f}" if "accuracy" in found else "", f"{found['discrepancy']:.2f}"]


def table(case: Case, arguments: argparse.Namespace) -> Iterator[str]:
    """One network."""
    with np.load(case.calib) as arrays:
        available = len(arrays[arrays.files[0]])
    counts = sorted({min(count, available) for count in arguments.rows})
    head = ["rows", *(f"keep {keep:g}: {figure}" for keep in arguments.keep for figure in ("accuracy", "discrepancy"))]
    rows = (
        [f"{count:,}", *(entry for keep in arguments.keep for entry in entries(case, keep, count))] for count in counts
    )
    yield from ("", f"## {case.name}")
    yield from lines_of(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many calibration rows are enough.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="+", help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, metavar="F")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    lines = [
        "# How many rows are enough",
        "",
        f"- command: `python samples/rows.py {without_places(sys.argv[1:])}`",
        machine_line(),
        "- accuracy and discrepancy in per cent, on test rows",
    ]
    for folder in arguments.folder:
        lines += table(Case.of(folder), arguments)
    text = "\n".join(lines) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
