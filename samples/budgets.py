"""Targets instead of a keep: what is reached, and whether the measured allocation over layers beats an even one.

    python samples/budgets.py FOLDER... [--fraction F ...] [--discrepancy D ...] [--max-rows N] [--out TABLE.md]

FOLDERs are those of `benchmark.py`. For each fraction of the parameters, neurons are pruned to it by the measured and
the uniform allocation, and by `auto`, which tries both, all else at its default; beside the discrepancy of the answers
on the test rows (and the accuracy, where there are labels) stands how near the parameters come to the goal. The same
goal in bytes; and for each discrepancy, the smallest model that keeps it on the calibration rows that are set aside for
it, how near it comes there, and what it has on the test rows.
The table goes to stdout and to `--out` (default budgets.md beside this script).
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import Case, Result, evaluate, lines_of, without_places
from machine import machine_line

import onnxdpp

FRACTIONS = (0.5, 0.25, 0.1)
DISCREPANCIES = (0.05, 0.2)
HEAD = ("goal", "allocation", "reached", "of the goal", "accuracy", "discrepancy", "seconds")


def row(case: Case, goal: str, options: dict[str, Any], max_rows: int | None) -> tuple[Result, list[str]]:
    """Prune to one goal; the entries of its row but for what was reached."""
    began = time.perf_counter()
    result = onnxdpp.prune(case.model, case.calib, provider="cpu", max_rows=max_rows, **options)
    seconds = time.perf_counter() - began
    found = {**evaluate(case, result.model), "model": result.report["model"], "held_out": result.report["evaluation"]}
    accuracy = f"{found['accuracy']:.2f}" if "accuracy" in found else ""
    print(f"{case.name}: {goal} {options}: {found['discrepancy']:.2f} in {seconds:.1f} s", file=sys.stderr, flush=True)
    return found, [accuracy, f"{found['discrepancy']:.2f}", f"{seconds:.1f}"]


def rows(case: Case, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """All rows of one network."""
    for fraction in arguments.fraction:
        for allocation in ("auto", "measured", "uniform"):
            goal = f"{fraction:g} of the parameters"
            options = {"target_parameters": fraction, "allocation": allocation}
            found, entries = row(case, goal, options, arguments.max_rows)
            size = found["model"]
            reached = size["after"]["parameters"] / size["before"]["parameters"]
            yield [goal, allocation, f"{reached:.4f}", f"{reached / fraction:.4f}", *entries]
        wanted = int(fraction * case.model.stat().st_size)
        found, entries = row(case, f"{wanted:,} bytes", {"target_bytes": wanted}, arguments.max_rows)
        reached = found["model"]["after"]["bytes"]
        yield [f"{wanted:,} bytes", "auto", f"{reached:,}", f"{reached / wanted:.4f}", *entries]
    for wanted in arguments.discrepancy:
        goal = f"discrepancy {100 * wanted:g} %"
        found, entries = row(case, goal, {"target_discrepancy": wanted}, arguments.max_rows)
        size = found["model"]
        reached = size["after"]["parameters"] / size["before"]["parameters"]
        (judged,) = found["held_out"]["discrepancy"].values()
        near = judged["relative_l2"] / wanted
        yield [goal, "measured", f"{reached:.4f} of the parameters", f"{near:.4f} on rows set aside", *entries]


def document(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, network by network."""
    yield "# Targets: what is reached"
    yield ""
    yield f"- command: `python samples/budgets.py {without_places(sys.argv[1:])}`"
    yield machine_line()
    yield "- accuracy and discrepancy in per cent, on test rows, which play no other part"
    for folder in arguments.folder:
        case = Case.of(folder)
        yield from ("", f"## {case.name}")
        yield from lines_of(HEAD, rows(case, arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description="Targets instead of a keep.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="+", help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--fraction", type=float, nargs="+", default=FRACTIONS, metavar="F")
    parser.add_argument("--discrepancy", type=float, nargs="*", default=DISCREPANCIES, metavar="D")
    parser.add_argument("--max-rows", type=int, help="calibrate on so many rows, evenly spaced")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    text = "\n".join(document(arguments)) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
