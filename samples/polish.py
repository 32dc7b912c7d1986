"""What `--polish` brings: accuracy and discrepancy after none, one and three rounds, beside `random`.

    python samples/polish.py FOLDER [--unit U] [--keep F ...] [--max-rows N] [--out TABLE.md]

FOLDER holds ``model.onnx``, ``calib.npz`` and ``test.npz``. All layers are pruned to the same keep, all else is at its
default, with seed 0. Figures are of the test rows, which play no other part; seconds are those of the whole of `prune`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark import Case, evaluate, lines_of, without_places
from machine import machine_line

import onnxdpp

KEEPS = (0.25, 0.1, 0.05, 0.02)
TRIED = (("auto", 0), ("auto", 1), ("auto", 3), ("random", 0), ("random", 3))


def rows(case: Case, arguments: argparse.Namespace) -> Iterator[list[str]]:
    for keep in arguments.keep:
        for method, rounds in TRIED:
            result = onnxdpp.prune(
                case.model,
                case.calib,
                keep=keep,
                unit=arguments.unit,
                method=method,
                polish=rounds,
                max_rows=arguments.max_rows,
                provider="cpu",
            )
            found = evaluate(case, result.model)
            accuracy = f"{found['accuracy']:.2f}" if "accuracy" in found else ""
            row = [f"{keep:g}", method, f"{rounds}", accuracy, f"{found['discrepancy']:.2f}"]
            row.append(f"{result.report['seconds']:.0f}")
            print(case.name, *row, file=sys.stderr, flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description="What polishing brings.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--unit", default="neuron", choices=("neuron", "edge"))
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, metavar="F")
    parser.add_argument("--max-rows", type=int, metavar="N", help="calibrate on so many rows, evenly spaced")
    parser.add_argument("--out", type=Path, help="default: polish-NETWORK.md in selection/ beside this script")
    arguments = parser.parse_args()
    case = Case.of(arguments.folder)
    lines = [
        f"# Polishing: {case.name}, {arguments.unit}s",
        "",
        f"- command: `python samples/polish.py {without_places(sys.argv[1:])}`",
        machine_line(),
        "- seed 0; accuracy and discrepancy in per cent, on the test rows",
        *lines_of(("keep", "method", "rounds", "accuracy", "discrepancy", "seconds"), rows(case, arguments)),
    ]
    text = "\n".join(lines) + "\n"
    out = arguments.out or Path(__file__).with_name("selection") / f"polish-{case.name}.md"
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
