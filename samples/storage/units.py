"""Edges packed against neurons, at equal bytes of the file: which unit loses less.

    python samples/storage/units.py build/mnist [--share F ...] [--edges METHOD] [--max-rows N] [--out TABLE.md]

The network is pruned to each share of its file's bytes by `--target-bytes`: its neurons, and its edges with packed
weights; all else at its defaults, but for the method of edges where one is named. Accuracy and discrepancy on the test
rows, which play no other part. Rows that were measured are kept beside the table, in `.cache.jsonl`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark import Case, evaluate, lines_of, without_places
from machine import machine_line

import onnxdpp

SHARES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)


def measured(case: Case, unit: str, share: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prune one unit to a share of the bytes; what that gives."""
    goal = int(share * case.model.stat().st_size)
    method = arguments.edges if unit == "edge" else "auto"
    key = {"case": case.name, "unit": unit, "share": share, "method": method, "max_rows": arguments.max_rows}
    cache = arguments.out.with_suffix(".cache.jsonl")
    if cache.exists():
        for line in cache.read_text(encoding="utf-8").splitlines():
            found: dict[str, Any] = json.loads(line)
            if found["key"] == key:
                return found
    began = time.perf_counter()
    result = onnxdpp.prune(
        case.model, case.calib, unit=unit, target_bytes=goal, method=method, provider="cpu", max_rows=arguments.max_rows
    )
    figures = evaluate(case, result.model)
    found = {
        "key": key,
        "bytes": result.report["model"]["after"]["bytes"],
        "kept": result.report["model"]["after"]["nonzero"] / result.report["model"]["before"]["nonzero"],
        "accuracy": figures["accuracy"],
        "discrepancy": figures["discrepancy"],
        "hits": figures["hits"],
        "rows": figures["rows"],
        "seconds": time.perf_counter() - began,
    }
    with cache.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    shown = {name: value for name, value in found.items() if name != "hits"}
    print(shown, file=sys.stderr, flush=True)
    return found


def rows(case: Case, arguments: argparse.Namespace) -> Iterator[list[str]]:
    for share in arguments.share:
        edge, neuron = (measured(case, unit, share, arguments) for unit in ("edge", "neuron"))
        yield [
            f"{100 * share:g} %",
            *(f"{part['kept']:.3f}" for part in (edge, neuron)),
            *(f"{part['accuracy']:.2f}" for part in (edge, neuron)),
            gap(edge["hits"], neuron["hits"], edge["rows"]),
            *(f"{part['discrepancy']:.2f}" for part in (edge, neuron)),
            *(f"{part['seconds']:.0f}" for part in (edge, neuron)),
        ]


def gap(edge: str, neuron: str, count: int) -> str:
    """What edges are ahead in points, with the standard error over the test rows that differ."""
    packed = (np.frombuffer(bytes.fromhex(part), np.uint8) for part in (edge, neuron))
    one, other = (np.unpackbits(part, count=count).astype(float) for part in packed)
    difference = one - other
    error = difference.std() / np.sqrt(len(difference))
    return f"{100 * difference.mean():+.2f} ± {100 * error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Edges against neurons at equal bytes.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--share", type=float, nargs="+", default=SHARES, metavar="F", help="of the file's bytes")
    parser.add_argument("--edges", default="auto", metavar="METHOD", help="the method for edges")
    parser.add_argument("--max-rows", type=int, help="calibrate on so many rows, evenly spaced")
    parser.add_argument("--out", type=Path, help="default: units-NETWORK.md beside this script")
    arguments = parser.parse_args()
    case = Case.of(arguments.folder)
    arguments.out = arguments.out or Path(__file__).with_name(f"units-{case.name}.md")
    head = (
        "bytes", "edges left", "of neurons left", "accuracy, edges", "neurons", "edges ahead by", "discrepancy, edges",
        "neurons", "seconds, edges", "neurons",
    )  # fmt: skip
    lines = [
        f"# Edges packed against neurons, at equal bytes: {case.name}",
        "",
        f"- command: `python samples/storage/units.py {without_places(sys.argv[1:])}`",
        machine_line(),
        f"- edges by {arguments.edges}, neurons by auto; left: non-zeros, of those in the original",
        "- accuracy and discrepancy in per cent, on test rows; ± one standard error over them",
        *lines_of(head, rows(case, arguments)),
    ]
    text = "\n".join(lines) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
