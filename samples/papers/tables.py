"""Tables of what `reproduce.py` found: test errors, and the gaps that the papers speak of.

    python samples/papers/tables.py RESULTS.jsonl ... [--out TABLES.md]

Errors are means over the repeats ± the sample standard deviation. A gap is the difference of two means ± its standard
error, ``sqrt(s1² / n1 + s2² / n2)``: what other draws would change. It says nothing of other test rows, training rows
or networks, of which there is one each. **Bold** is a gap of more than two standard errors. Where nothing draws, or one
side has a single draw, a gap has no standard error and is never bold.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark import lines_of, without_places
from results import METHODS, PERCENTS, REFITS, Points, Summary, counts, gap, read_results, refits, summaries

TITLES = {
    "none": "without refit",
    "linear": "with the papers' refit",
    "affine": "onnxdpp's default (not the papers')",
}
PAIRS = (
    ("divnet", "random-node"),
    ("divnet", "importance-node"),
    ("random-edge", "divnet"),
    ("dpp-edge", "divnet"),
    ("dpp-edge", "random-edge"),
    ("dpp-edge", "importance-edge"),
    ("importance-edge", "importance-node"),
)
OWN = (
    ("auto-node", "divnet"),
    ("auto-node", "importance-node"),
    ("auto-edge", "dpp-edge"),
    ("auto-edge", "importance-edge"),
)
BEYOND = 2  # standard errors


def error_entry(summary: Summary | None) -> str:
    """A mean, and the deviation of several draws."""
    if summary is None:
        return ""
    return f"{summary.mean:.2f} ± {summary.deviation:.2f}" if summary.count > 1 else f"{summary.mean:.2f}"


def gap_entry(first: Summary | None, second: Summary | None) -> str:
    """By how much the first errs more, and the standard error."""
    if first is None or second is None:
        return ""
    points, error = gap(first, second)
    if not error > 0:
        return f"{points:+.2f}"
    text = f"{points:+.2f} ± {error:.2f}"
    return f"**{text}**" if abs(points) > BEYOND * error else text


def error_rows(points: Points, refit: str) -> Iterator[list[str]]:
    """A row for each method that was run with a refit."""
    for name, method in METHODS.items():
        found = [points.get((name, refit, percent)) for percent in PERCENTS]
        there = [summary for summary in found if summary is not None]
        if there and refit in refits(name):
            yield [method.title, counts(there), *map(error_entry, found)]


def gap_rows(points: Points, refit: str) -> Iterator[list[str]]:
    """A row for each pair of methods; those of the default are beside the papers' refit."""
    pairs = OWN if refit == "affine" else PAIRS
    for first, second in pairs:
        beside = "linear" if refit == "affine" else refit
        entries = [
            gap_entry(points.get((first, refit, percent)), points.get((second, beside, percent)))
            for percent in PERCENTS
        ]
        if any(entries):
            yield [f"{METHODS[first].title} - {METHODS[second].title}", *entries]


def tables(head: dict[str, Any], points: Points) -> Iterator[str]:
    """All of one dataset."""
    columns = [f"{percent} %" for percent in PERCENTS]
    yield from ("", f"## {head['dataset']}: unpruned {head['unpruned']:.2f}", "", f"- machine: {head['machine']}")
    for refit in (*REFITS, "affine"):
        yield from ("", f"### Test error in per cent, {TITLES[refit]}")
        yield from lines_of(["method", "repeats", *columns], error_rows(points, refit))
    for refit in (*REFITS, "affine"):
        title = "the default - others with the papers' refit" if refit == "affine" else TITLES[refit]
        yield from ("", f"### Gaps in points, {title}")
        yield from lines_of(["pair", *columns], gap_rows(points, refit))


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of the papers' Figure 1, again.", allow_abbrev=False)
    parser.add_argument("results", type=Path, nargs="+", help="from reproduce.py, one for each dataset")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    lines = [
        "# The papers' Figure 1, again",
        "",
        f"- command: `python samples/papers/tables.py {without_places(sys.argv[1:])}`",
        "- mean ± sample standard deviation over the repeats; a gap ± its standard error, bold beyond two of them",
    ]
    for path in arguments.results:
        head, results = read_results(path)
        if not head:
            sys.exit(f"{path} is no file of results. Run reproduce.py first.")
        lines += tables(head, summaries(results))
    text = "\n".join(lines) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
