"""The picture at the top of the README: test accuracy against the parameters that are left, from the committed tables.

    python samples/picture.py [--out PICTURE.svg]

The network is the MNIST sample, 784-500-500-10, both hidden layers pruned to the same keep, without labels or training.
Accuracies are read from selection/mnist-neurons.md (with the refit) and mnist/neurons.md (without); ± is one standard
deviation of five seeds. Parameters follow from the widths.
"""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter

from onnxdpp.options import count_to_keep
from onnxdpp.plotting import GREY, LOOKS, STYLE

HERE = Path(__file__).parent
REFITTED, BARE = HERE / "selection" / "mnist-neurons.md", HERE / "mnist" / "neurons.md"
WIDTHS = (784, 500, 500, 10)
LOWEST = 48.0  # per cent
DARK = "#2478a8"  # of the one colour that is too light for words
# Words stay words: a fifth of the bytes. Where another font stands in, it is no wider than matplotlib's own.
WORDS = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]}


class Line(NamedTuple):
    """A curve: row and section of a table, the method whose colour it has, what it is called, where that stands."""

    table: Path
    section: str
    row: str
    method: str
    label: str
    place: float


LINES = (
    Line(BARE, "refit none", "importance", "importance", "largest weights, no refit", 0),
    Line(REFITTED, "Test accuracy", "random", "random", "random + refit", 66.3),
    Line(REFITTED, "Test accuracy", "dpp-sample-rbf", "dpp-sample", "the papers' DPP draw + refit", 62.6),
    Line(REFITTED, "Test accuracy", "importance", "importance", "largest weights + refit", 58.6),
    Line(REFITTED, "Test accuracy", "dpp-rbf", "dpp", "the DPP's mode + refit", 72.7),
    Line(REFITTED, "Test accuracy", "auto", "auto", "onnxdpp, default (auto)", 82.4),
)


def parameters(keep: float) -> int:
    """Of the network, where each hidden layer keeps that share."""
    first, *hidden, last = WIDTHS
    sizes = (first, *(count_to_keep(keep, width) for width in hidden), last)
    return sum((n + 1) * m for n, m in pairwise(sizes))


def read(line: Line) -> list[tuple[float, float, float]]:
    """Keep, accuracy and deviation of each cell of a row."""
    lines = line.table.read_text(encoding="utf-8").splitlines()
    head = next(i for i, text in enumerate(lines) if line.section in text)
    table = [text for text in lines[head:] if text.startswith("|")]
    keeps = [float(keep) for keep in re.findall(r"keep ([0-9.]+)", table[0])]
    row = next(text for text in table if text.startswith(f"| {line.row} |"))
    cells = [cell.split("±") for cell in row.strip("| ").split("|")[1:]]
    return [
        (keep, float(cell[0]), float(cell[1]) if len(cell) > 1 else 0.0)
        for keep, cell in zip(keeps, cells, strict=True)
    ]


def dense() -> float:
    """Accuracy of the whole network."""
    found = re.search(r"Dense: ([0-9.]+)", REFITTED.read_text(encoding="utf-8"))
    assert found is not None
    return float(found[1])


def figure(lines: Sequence[Line]) -> Figure:
    """The picture."""
    whole, top = parameters(1.0), dense()
    picture = Figure(figsize=(8.2, 3.9), layout="constrained", facecolor="white")
    axes = picture.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(110, 0.42)  # from the whole network to almost nothing; labels stand in what is left
    axes.set_ylim(LOWEST, 101.5)
    ticks = [100, 50, 20, 10, 5, 2, 1]
    axes.set_xticks(ticks, [f"{tick}%" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.axhline(top, color=GREY, linewidth=1, linestyle=":")
    axes.text(105, top + 1.2, f"unpruned: {top:.2f}%, {whole:,} parameters", color="#444444", fontsize=9)
    for line in lines:
        found = read(line)
        left = [100 * parameters(keep) / whole for keep, _, _ in found]
        means = [accuracy for _, accuracy, _ in found]
        look, bold = LOOKS[line.method], line.method == "auto"
        dashed = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if line.table == BARE else {}
        axes.plot(
            [100, *left], [top, *means], color=look.colour, linewidth=2.6 if bold else 1.5,
            marker=look.marker, markersize=6 if bold else 4.5, markevery=slice(1, None), zorder=3 + bold, **dashed,
        )  # fmt: skip
        low, high = ([mean + sign * spread for _, mean, spread in found] for sign in (-1, 1))
        if low != high:
            axes.fill_between(left, low, high, color=look.colour, alpha=0.15, linewidth=0)
        colour = DARK if line.method == "dpp-sample" else look.colour
        words = {"color": colour, "fontsize": 10, "fontweight": "bold" if bold else "normal", "va": "center"}
        if line.table == BARE:
            axes.text(21, 56, line.label, ha="left", **words)
        else:
            axes.text(left[-1] * 0.93, line.place, line.label, ha="left", **words)
    axes.set_xlabel("parameters left")
    axes.set_title("MNIST: test accuracy, no labels, no retraining", loc="left", fontsize=11)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture at the top of the README.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=HERE / "selection" / "mnist-neurons.svg")
    arguments = parser.parse_args()
    with context(["default", {**STYLE, **WORDS}]):
        metadata = {"Date": None} if arguments.out.suffix == ".svg" else None
        figure(LINES).savefig(arguments.out, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
