"""What onnxsim and onnxdpp take hold of, graph by graph, and what of onnxsim's ways onnxdpp was made to do better.

    python samples/peers.py --peer-python PYTHON [--only GLOB] [--out TABLE.md]

PYTHON has onnxsim 0.8.1 in an environment of its own. The graphs are those of peer_graphs.py: half of each hidden layer
goes (onnxsim: ``sparsity=0.5``; onnxdpp: ``keep=0.5``, all else at its default).

*onnxsim* ranks by weights alone or by weights and activations, on the graph as it is and after its own ``simplify``,
with and without its ridge refit (its default and two weaker ones): shown are the least parameters that any of these
leaves, and the smallest error at that size. Errors are the relative L2 of the worst output on the calibration rows,
which both tools were given.

The second part runs again what went wrong with onnxsim when it was first looked at, each beside onnxdpp. Every call of
onnxsim is a process of its own, and so is what is timed.
"""

import argparse
import fnmatch
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from machine import machine_line
from peer_calls import REFIT, Given, Peer, half, percent
from peer_defects import defects
from peer_graphs import GRAPHS
from real import lines_of, note

import onnxdpp
from onnxdpp.errors import NothingToPrune
from onnxdpp.evaluation import parameters

RANKINGS = {"weights": "apply_structured_pruning", "activations": "apply_structured_wanda_pruning"}
STRENGTHS = (1e-2, 1e-4, 1e-6)  # the first is its default
HEADS = {"weights": "apply_attention_head_pruning", "activations": "apply_attention_head_wanda_pruning"}


def of_onnxsim(given: Given, peer: Peer) -> list[str]:
    """What it takes hold of as the graph is, and after `simplify`; parameters; errors without and with its refit."""
    whole = parameters(onnx.load(given.model))[0]
    functions = HEADS if "Attention" in given.small.name else RANKINGS
    holds: dict[str, list[str]] = {"": [], "simplify": []}
    made: list[tuple[int, float, float]] = []
    for first, names in holds.items():
        for ranking, function in functions.items():
            before = [first] if first else []
            run, out = peer.call(given, *before, half(function))
            if run.code != 0:
                names.append(f"{ranking}: {run.reason[:60]}")
                continue
            bare = onnx.load(out)
            left = parameters(bare)[0]
            if left >= (whole if not first else _simplified(given, peer)):
                continue
            names.append(ranking)
            made.append((left, given.distance(bare), _refitted(given, peer, [*before, half(function)])))
    told = ["yes" if len(names) == 2 else f"by {names[0]} only" if names else "untouched" for names in holds.values()]
    if not made:
        return [*told, "", "", ""]
    least = min(left for left, _, _ in made)
    best = [(bare, error) for left, bare, error in made if left == least]
    return [*told, f"{least:,}", percent(min(b for b, _ in best)), percent(min(e for _, e in best))]


def _refitted(given: Given, peer: Peer, steps: Sequence[str]) -> float:
    """The smallest error after its ridge refit, of several strengths; NaN where none goes through."""
    errors = []
    for strength in STRENGTHS:
        run, out = peer.call(given, *steps, f'{REFIT}:{{"reg_param": {strength}}}')
        if run.code == 0:
            errors.append(given.distance(onnx.load(out)))
    return min(errors, default=np.nan)


def _simplified(given: Given, peer: Peer) -> int:
    """Parameters after `simplify` alone."""
    _, out = peer.call(given, "simplify")
    return parameters(onnx.load(out))[0]


def of_onnxdpp(given: Given) -> list[str]:
    """Parameters and error, or the reason why nothing goes."""
    try:
        result = onnxdpp.prune(given.model, given.calib, keep=0.5, provider="cpu")
    except NothingToPrune as error:
        reasons = sorted({reason for _, reason in error.refusals if not reason.startswith("its value 'y' ")})
        return [f"untouched: {'; '.join(reasons)}", ""]
    return [f"{result.report['model']['after']['parameters']:,}", percent(given.distance(result.model))]


def main() -> None:
    parser = argparse.ArgumentParser(description="onnxsim and onnxdpp, graph by graph.", allow_abbrev=False)
    parser.add_argument("--peer-python", required=True, metavar="PYTHON", help="has onnxsim 0.8.1")
    parser.add_argument("--only", default="*", metavar="GLOB", help="graphs by name; then without the second part")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = Peer(arguments.peer_python)
        rows = []
        for number, small in enumerate(GRAPHS):
            if fnmatch.fnmatch(small.name, arguments.only):
                given = Given.stored(small, folder / f"graph{number}")
                whole = f"{parameters(onnx.load(given.model))[0]:,}"
                rows.append([small.name, whole, *of_onnxsim(given, peer), *of_onnxdpp(given)])
                note(" | ".join(rows[-1]))
        words = ["--peer-python", "PYTHON", *(["--only", arguments.only] if arguments.only != "*" else [])]
        head = [
            "graph", "parameters", "onnxsim: as it is", "after simplify", "parameters", "error", "with its ridge",
            "onnxdpp: parameters", "error",
        ]  # fmt: skip
        lines = [
            "# What onnxsim and onnxdpp take hold of",
            "",
            f"- command: `python samples/peers.py {shlex.join(words)}`",
            f"{machine_line()}; onnxsim {peer.version()}",
            f"- drawn weights, {len(GRAPHS[0].rows())} drawn rows (seeds 0 and 1); half of every layer goes; errors: "
            "relative L2 of the worst output in per cent, on the calibration rows",
            "- onnxsim: the least parameters of its two rankings, as it is and after `simplify`, and the smallest "
            f"error there; its ridge: the best of {', '.join(f'{part:g}' for part in STRENGTHS)}; *untouched* is said "
            "by us: onnxsim returns the model without a word",
            *lines_of(head, rows),
        ]
        if arguments.only == "*":
            lines += ["", "## What was found before, run again", *defects(peer, folder)]
        text = "\n".join(lines) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
