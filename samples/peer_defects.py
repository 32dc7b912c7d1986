"""What went wrong with onnxsim 0.8.1 when it was first looked at, run again beside onnxdpp; for peers.py."""

import gzip
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from alone import Run, alone
from onnx import numpy_helper
from peer_calls import LIMIT, Given, Peer, half, percent
from peer_graphs import GRAPHS, Small, mlp
from real import lines_of

MASKS = ("apply_magnitude_pruning", "apply_wanda_pruning", "apply_sparsegpt_pruning")
NETWORK = (784, 500, 500, 10)
LONG = 4096
"""Rows of what is timed."""


class _Long(Small):
    def rows(self) -> np.ndarray:
        """More of them."""
        return np.random.default_rng(1).standard_normal((LONG, *self.row)).astype(self.dtype)


def defects(peer: Peer, folder: Path) -> Iterator[str]:
    """Lines of Markdown."""
    network = Given.stored(mlp(*NETWORK), folder / "network")
    yield from ("", f"The network of the following is {network.small.name}, Gemm and Sigmoid, drawn weights.")
    yield from _masks(peer, network, folder)
    yield from _by_path(peer, network, folder)
    yield from _tied(peer, folder)
    yield from _training(peer, network)
    yield from _silence(peer, network, folder)
    yield from _small_batches(peer, folder)


def _masks(peer: Peer, given: Given, folder: Path) -> Iterator[str]:
    """Half of the weights become zero: bytes of the file."""
    rows = [["the model", *_bytes(given.model), ""]]
    for function in MASKS:
        run, out = peer.call(given, half(function))
        rows.append([f"onnxsim `{function}`", *_bytes(out), _seconds(run)])
    run, out = peer.call(given, half(MASKS[0]), "simplify")
    rows.insert(2, [f"onnxsim `{MASKS[0]}`, `simplify`", *_bytes(out), _seconds(run)])
    out = folder / "edges.onnx"
    edges = ("--unit", "edge", "--method", "importance", "--storage", "dense")
    run = _onnxdpp(given, "--keep", "0.5", *edges, "-o", str(out))
    rows.append(["onnxdpp `--unit edge --method importance --storage dense`", *_bytes(out), _seconds(run)])
    yield from ("", "### Bytes of the file, where half of the weights become zero")
    yield from lines_of(["", "bytes", "gzip", "zeros, %", "s (whole process)"], rows)


def _by_path(peer: Peer, given: Given, folder: Path) -> Iterator[str]:
    """A model with external data, handed over by its path."""
    outside = replace(given, model=folder / "outside" / "model.onnx")
    outside.model.parent.mkdir()
    onnx.save(onnx.load(given.model), outside.model, save_as_external_data=True, location="model.data")
    rows, first = [], []
    for function in ("apply_structured_pruning", "apply_structured_pruning_cpp", *MASKS[::2]):
        cells = []
        for options in ((), ("--by-path",)):
            run, out = peer.call(outside, half(function), options=options)
            cells.append(_outcome(outside, run, out))
        rows.append([f"onnxsim `{function}`", *cells])
        if function.endswith("cpp") and run.code == 0:
            first = [f"{w:.2g}" for path in (outside.model, out) for w in _weights(path)["w1"].ravel()[:3]]
    out = folder / "outside" / "pruned.onnx"
    run = _onnxdpp(outside, "--keep", "0.5", "-o", str(out))
    rows.append(["onnxdpp", "", _outcome(outside, run, out)])
    yield from ("", "### A model with external data: error of the outputs in per cent, by how it is handed over")
    yield from lines_of(["", "as a ModelProto", "by its path"], rows)
    yield from (
        "",
        "0.00: nothing was pruned, without a word. "
        + (f"The first weights were {', '.join(first[:3])} and became {', '.join(first[3:])}." if first else ""),
    )


def _tied(peer: Peer, folder: Path) -> Iterator[str]:
    """One weight that two layers share."""
    given = Given.stored(next(small for small in GRAPHS if small.name == "one weight for two Gemms"), folder / "tied")
    run, out = peer.call(given, half("apply_structured_pruning"))
    assert run.code == 0
    before, after = _weights(given.model), _weights(out)
    kept = _places(before["w1"].T, after["w1"].T)
    shared, left = before["w3"], after["w3"]
    inputs = [i for i, row in enumerate(shared) if any(_inside(part, row) for part in left)]
    outputs = [j for j, column in enumerate(shared.T) if any(_inside(part, column) for part in left.T)]
    right = kept == inputs == outputs
    yield from (
        "",
        "### One weight for two layers",
        "",
        f"onnxsim `apply_structured_pruning` keeps the neurons {kept} of the first layer, and of the shared weight the "
        f"rows {inputs} and the columns {outputs}. It is read twice, one behind the other, so that all three would "
        f"have to be the same: they are{'' if right else ' not'}. onnxdpp leaves both layers alone and says why.",
    )


def _training(peer: Peer, given: Given) -> Iterator[str]:
    """Adam after channels are gone."""
    yield from ("", "### Adam after channels are gone", "")
    steps = (
        '{"num_iterations": 20, "batch_size": 128}',
        '{"num_iterations": 20, "batch_size": 128, "max_layers_per_block": 99}',
    )
    for name, options in zip(("at its default, blocks of two layers", "all layers in one block"), steps, strict=True):
        run, _ = peer.call(given, half("apply_structured_pruning"), f"apply_block_finetune_all_blocks:{options}")
        yield f"- {name}: " + ("it runs" if run.code == 0 else f"`{run.reason[:150]}`")


def _silence(peer: Peer, given: Given, folder: Path) -> Iterator[str]:
    """What is said where something is amiss."""
    two = replace(given, calib=folder / "two.npz")
    np.savez(two.calib, x=given.small.rows()[:2])
    untouched = Given.stored(GRAPHS[9], folder / "untouched")
    rows = []
    for name, here in (
        ("two calibration rows for 500 neurons", two),
        (f"nothing to prune ({GRAPHS[9].name})", untouched),
    ):
        run, _ = peer.call(here, half("apply_structured_wanda_pruning"))
        ours = _onnxdpp(here, "--keep", "0.5", "-o", str(folder / "silence.onnx"), "--force")
        rows.append([name, _said(run), _said(ours)])
    yield from ("", "### What is said, and the exit code")
    yield from lines_of(["", "onnxsim", "onnxdpp"], rows, left=3)


def _small_batches(peer: Peer, folder: Path) -> Iterator[str]:
    """The same rows, one at a time."""
    small = mlp(*NETWORK)
    given = Given.stored(_Long(small.name, small.text, small.weights, row=small.row), folder / "long")
    rows = []
    for each in (LONG, 1):
        run, _ = peer.call(given, half("apply_structured_wanda_pruning"), options=("--batch", str(each)))
        ours = _onnxdpp(given, "--keep", "0.5", "-o", str(folder / "long.onnx"), "--force", "--batch-size", str(each))
        rows.append([f"{each:,}", *(cell for part in (run, ours) for cell in (_seconds(part), _megabytes(part)))])
    yield from ("", f"### {LONG:,} calibration rows, by how many run at once (seconds and MB of the whole process)")
    yield from lines_of(
        ["rows at once", "onnxsim (activations, no refit): s", "MB", "onnxdpp (`auto`, refit): s", "MB"], rows
    )


def _onnxdpp(given: Given, *options: str) -> Run:
    words = [
        sys.executable,
        "-m",
        "onnxdpp",
        "prune",
        given.model,
        "--calib",
        given.calib,
        "--provider",
        "cpu",
        *options,
    ]
    return alone([str(word) for word in words], LIMIT)


def _outcome(given: Given, run: Run, out: Path) -> str:
    if run.code != 0:
        return f"`{run.reason[:100]}`"
    error = given.distance(onnx.load(out))
    return "not finite" if np.isnan(error) else percent(error)


def _said(run: Run) -> str:
    lines = [
        line
        for line in (*run.said.splitlines(), *run.complained.splitlines())
        if line.startswith(("note", "onnxdpp:", "Warn"))
    ]
    return f"{run.code}: " + ("nothing" if not lines else " ".join(lines))


def _bytes(path: Path) -> list[str]:
    data = path.read_bytes()
    weights = list(_weights(path).values())
    zeros = sum(int((array == 0).sum()) for array in weights) / sum(array.size for array in weights)
    return [f"{len(data):,}", f"{len(gzip.compress(data, mtime=0)):,}", f"{100 * zeros:.1f}"]


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _places(whole: np.ndarray, part: np.ndarray) -> list[int]:
    """Which rows of `whole` the rows of `part` are."""
    return [next(i for i, row in enumerate(whole) if np.array_equal(row, other)) for other in part]


def _inside(part: np.ndarray, whole: np.ndarray) -> bool:
    """Whether all numbers of `part` are among those of `whole`."""
    return bool(np.isin(part, whole).all())


def _seconds(run: Run) -> str:
    return f"{run.seconds:.1f}" if run.code is not None else f"over {LIMIT}"


def _megabytes(run: Run) -> str:
    return f"{run.peak / 1e6:.0f}"
