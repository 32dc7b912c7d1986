"""Figure 1 of arXiv:2006.16617 again, from what `reproduce.py` found.

    python samples/papers/figure.py --mnist RESULTS.jsonl --cifar10 RESULTS.jsonl [--out FIGURE.svg]

Test error against the edges of the first layer that are left, or nodes that leave as many parameters: A and B without
refit, C and D with the papers' own; A and C MNIST, B and D CIFAR-10. A point is the mean over the repeats, its bar one
sample standard deviation either way; a point without a bar is a single draw, or a choice that does not draw. Colours
and markers are those of `onnxdpp.plotting`: solid lines are nodes, dashed ones with hollow markers edges. In C and D
the black lines are onnxdpp's default at the same counts: a contest of methods, and a refit with an intercept.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from results import METHODS, PERCENTS, Points, read_results, summaries

from onnxdpp.plotting import LOOKS, SPAN, STYLE, UNPRUNED

SIZE = (10.0, 8.0)  # inches
PANELS = (
    ("A", "mnist", "MNIST, no refit", ("none",)),
    ("B", "cifar10", "CIFAR-10, no refit", ("none",)),
    ("C", "mnist", "MNIST, refit", ("linear", "affine")),
    ("D", "cifar10", "CIFAR-10, refit", ("linear", "affine")),
)
ROOM = 0.06  # of the range, above and below
APART = 0.5  # per cent to the side, so that bars do not hide each other


def look(name: str) -> dict[str, Any]:
    """How the line of a method looks."""
    method = METHODS[name]
    style = LOOKS[method.method]
    line: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 5.5, "linewidth": 1.5}
    if method.unit == "edge":
        line |= {"linestyle": (0, (4, 2)), "markerfacecolor": "white"}
    return line


def draw(axes: Axes, points: Points, refits: tuple[str, ...], unpruned: float) -> None:
    """One panel: a line for each method that was run with one of the refits."""
    ends = [unpruned]
    for place, name in enumerate(METHODS):
        for refit in refits:
            found = [(percent, points.get((name, refit, percent))) for percent in PERCENTS]
            there = [(percent, summary) for percent, summary in found if summary is not None]
            if not there:
                continue
            means = [summary.mean for _, summary in there]
            bars = [0.0 if math.isnan(summary.deviation) else summary.deviation for _, summary in there]
            left = [percent + APART * (place - (len(METHODS) - 1) / 2) for percent, _ in there]
            order = 4 if METHODS[name].method == "auto" else 3
            axes.errorbar(left, means, bars, elinewidth=1.0, zorder=order, **look(name))
            ends += [mean + sign * bar for mean, bar in zip(means, bars, strict=True) for sign in (-1, 1)]
    axes.axhline(unpruned, zorder=2, **UNPRUNED)
    low, high = min(ends), max(ends)
    if high > SPAN * low > 0:
        axes.set_yscale("log")
        ticks = [step * 10**power for power in range(-1, 3) for step in (1, 2, 5)]
        axes.set_yticks([tick for tick in ticks if low <= tick <= 1.3 * high], minor=False)
        axes.set_yticks([], minor=True)
        axes.set_ylim(low * (low / high) ** ROOM, high * (high / low) ** ROOM)
    else:
        axes.set_ylim(low - ROOM * (high - low), high + ROOM * (high - low))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(PERCENTS)


def figure(found: dict[str, tuple[float, Points]]) -> Figure:
    """All four panels.

    Parameters
    ----------
    found : dict
        Of each dataset the test error of the unpruned network and the points; without one its panels stay empty.
    """
    result = Figure(figsize=SIZE, layout="constrained")
    for axes, (letter, dataset, title, refits) in zip(result.subplots(2, 2).flat, PANELS, strict=True):
        axes.set_title(f"{letter}   {title}", loc="left", fontsize=11)
        axes.set_xlabel("edges left in the first layer, % (nodes: as many parameters)")
        axes.set_ylabel("test error, %")
        if dataset in found:
            unpruned, points = found[dataset]
            draw(axes, points, refits, unpruned)
    entries = [Line2D([], [], label=method.title, **look(name)) for name, method in METHODS.items()]
    entries.append(Line2D([], [], label="unpruned", **UNPRUNED))
    result.legend(handles=entries, loc="outside lower center", ncols=3, handlelength=3.0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the papers' Figure 1, again.", allow_abbrev=False)
    parser.add_argument("--mnist", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--cifar10", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("figure1.svg"), help=".svg or .png")
    arguments = parser.parse_args()
    found = {}
    for dataset in ("mnist", "cifar10"):
        path = getattr(arguments, dataset)
        if path is None:
            continue
        head, results = read_results(path)
        if head.get("dataset") != dataset:
            sys.exit(f"{path} has no results of {dataset}. Run reproduce.py first.")
        found[dataset] = head["unpruned"], summaries(results)
    with context(["default", STYLE]):
        metadata = {"Date": None} if arguments.out.suffix == ".svg" else None
        figure(found).savefig(arguments.out, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
