"""onnxdpp and onnxsim beside each other: accuracy lost at the same size, with the same calibration rows, and the price.

    python samples/peer.py [FOLDER] [--models DIR --data DIR --only GLOB] --peer RUN_ONNXSIM.py --peer-python PYTHON
        [--neurons F ...] [--edges F ...] [--rows N] [--polish N] [--long N] [--peer-limit S] [--peer-folder DIR]
        [--out TABLE.md]

FOLDER holds ``model.onnx``, ``calib.npz`` and ``test.npz``, as the make.py of each sample writes them; DIR are those of
real.py, and `--only` names some of its networks. Calibration rows are evenly spaced, the same for both, without labels.

*Ours* is ``onnxdpp prune`` with nothing but ``--keep``, ``--unit`` and ``--polish`` (and the weights stored dense, to
be counted). *onnxsim* is run in all modes that remove channels, with two rankings and two norms each, or in all modes
that put masks on weights; then with Adam after each, as the script has it and for `--long` iterations over the whole
network (see onnxsim_driver.py). The best of all by *test* accuracy is shown. Its keep is searched such that as many
parameters, or weights that are not zero, stay as with ours: for neurons next above and next below, for edges as near as
it comes.

Each run of either is a process of its own, from start to exit, one after the other. onnxsim's models and their prices
are kept in `--peer-folder` and not made again; ours always are.

The table goes to stdout and, rewritten after each keep, to `--out` (default peer.md beside this script).
"""

import argparse
import csv
import fnmatch
import json
import math
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from alone import alone
from machine import processor
from onnx import ModelProto
from onnxsim_peer import CRITERIA, NORMS, Made, Peer, around, ranking
from real import Case, Images, answers, inputs, lines_of, note, percent

from onnxdpp.evaluation import parameters

SERIOUS = 0.005  # a loss of accuracy above which ours may be half of it at most
REMOVING = ("structured", "structured+finetune", "structured+seqft")
MASKS = ("magnitude", "wanda", "sparsegpt")
COLUMNS = {"": "no refit", "finetune": "ridge", "seqft": "ridge by chains", "blockft": "Adam", "long": "long Adam"}


@dataclass
class Network:
    """A model with one input, calibration rows, and test rows with their labels."""

    name: str
    dense: ModelProto
    input: str
    calib: np.ndarray
    test: np.ndarray
    labels: np.ndarray

    @classmethod
    def of_folder(cls, folder: Path, rows: int) -> "Network":
        """Read a sample."""
        model = onnx.load(folder / "model.onnx")
        name = inputs(model)[0].name
        with np.load(folder / "calib.npz") as arrays:
            calib = arrays[name]
        with np.load(folder / "test.npz") as arrays:
            test, labels = arrays[name], arrays["labels"]
        return cls(folder.name, model, name, calib[np.linspace(0, len(calib) - 1, rows).astype(int)], test, labels)

    @classmethod
    def of_case(cls, case: Case) -> "Network":
        """One of the networks of real.py."""
        return cls(case.name, case.dense, case.input, case.calib, case.test, case.images.labels)

    def right(self, model: ModelProto) -> np.ndarray:
        """Which test rows a model names rightly."""
        return answers(model, self.input, self.test).argmax(-1) == self.labels


@dataclass(frozen=True)
class Way:
    """One way to use onnxsim: where it stands in the table of ways, its mode and options, and a label for its files."""

    row: str
    column: str
    mode: str
    options: tuple[str, ...]
    label: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row}, {COLUMNS[self.column]}"

    def prune(self, peer: Peer, keep: float) -> Made | str:
        """The model, or why there is none; a way that ran out of time is not tried again."""
        if self.name in peer.hopeless:
            return f"over {peer.limit:g} s"
        made = peer.prune(keep, self.mode, self.label, *self.options)
        if isinstance(made, str) and made.startswith("over"):
            peer.hopeless.add(self.name)
        return made


@dataclass(frozen=True)
class Entry:
    """A pruned network: size, keep, test rows that it names rightly, its price as `Made` has it, and onnxsim's way."""

    size: int
    keep: float
    right: np.ndarray
    process: float
    work: float
    peak: float
    how: str = ""

    @property
    def accuracy(self) -> float:
        """Fraction of test rows."""
        return float(self.right.mean())

    @property
    def seconds(self) -> str:
        """From start to exit, and of pruning alone."""
        return f"{self.process:.1f} ({self.work:.1f})"

    @property
    def megabytes(self) -> str:
        """Largest resident set."""
        return f"{self.peak / 1e6:.0f}"

    @property
    def price(self) -> str:
        """Seconds from start to exit, and megabytes."""
        return f"{self.process:.1f} s, {self.megabytes} MB"


@dataclass
class Match:
    """Ours and all of onnxsim's at one keep."""

    network: str
    dense: float
    unit: str
    ours: Entry
    theirs: dict[float, dict[Way, Entry | str]] = field(default_factory=dict)  # by their keep

    @property
    def best(self) -> Entry | None:
        """The best of theirs by test accuracy."""
        found = (entry for runs in self.theirs.values() for entry in runs.values() if isinstance(entry, Entry))
        return max(found, key=lambda entry: entry.accuracy, default=None)


def removing(long: int) -> list[Way]:
    """All ways to remove channels."""
    ways = []
    for criterion in CRITERIA:
        for norm in NORMS:
            row, options = f"{criterion}-{norm}", ranking(criterion, norm)
            ways += [Way(row, mode.partition("+")[2], mode, options, row) for mode in REMOVING]
            ways += adam(row, "structured", options, long)
    return ways


def masking(long: int) -> list[Way]:
    """All ways to put masks on weights."""
    return [way for mode in MASKS for way in (Way(mode, "", mode, (), mode), *adam(mode, mode, (), long))]


def adam(row: str, mode: str, options: tuple[str, ...], long: int) -> list[Way]:
    """As the script has it, and longer over the whole network."""
    mode += "+blockft"
    much = (*options, "--whole", "--iters", f"{long}")
    return [Way(row, "blockft", mode, options, row), *([Way(row, "long", mode, much, f"{row}-{long}")] if long else [])]


def size(model: ModelProto, unit: str) -> int:
    """Parameters, or for edges those that are not zero."""
    total, nonzero = parameters(model)
    return total if unit == "neuron" else nonzero


def ours(network: Network, peer: Peer, unit: str, keep: float, polish: int, folder: Path) -> Entry:
    """Prune the peer's files by our command line, all else but polishing at its default."""
    out, report = folder / "ours.onnx", folder / "ours.json"
    files = (peer.model_file, "--calib", peer.calib_file, "-o", out, "--report", report)
    options = ("--keep", f"{keep:g}", "--unit", unit, "--provider", "cpu", "--force", "--quiet")
    options += ("--polish", f"{polish}", "--storage", "dense")
    run = alone([sys.executable, "-m", "onnxdpp", "prune", *files, *options], limit=0)
    if run.code:
        sys.exit(f"{network.name}: onnxdpp: {run.reason}")
    said, model = json.loads(report.read_text(encoding="utf-8")), onnx.load(out)
    entry = Entry(size(model, unit), keep, network.right(model), run.seconds, said["seconds"], run.peak)
    note(f"{network.name}: {unit}s at {keep:g}: {percent(entry.accuracy)} in {entry.price}, {entry.size:,} stay")
    return entry


def theirs(network: Network, peer: Peer, unit: str, keep: float, ways: Sequence[Way]) -> dict[Way, Entry | str]:
    """Prune by every way that there is."""
    found: dict[Way, Entry | str] = {}
    for way in ways:
        made = way.prune(peer, keep)
        if isinstance(made, str):
            found[way] = made
            note(f"{network.name}: onnxsim {keep:g}, {way.name}: {made}")
            continue
        right, count = network.right(made.model), size(made.model, unit)
        found[way] = entry = Entry(count, keep, right, made.process, made.work, made.peak, way.name)
        note(f"{network.name}: onnxsim {keep:g}, {way.name}: {percent(entry.accuracy)} in {entry.price}")
    return found


def neurons(network: Network, peer: Peer, mine: Entry, ways: Sequence[Way]) -> dict[float, dict[Way, Entry | str]]:
    """Their runs at the keeps whose numbers of parameters are next to ours; those that prune less do not count."""
    found: dict[float, dict[Way, Entry | str]] = {}
    for criterion in CRITERIA:
        if peer.count(criterion, mine.keep) >= 0.999 * peer.count(criterion, 1):
            note(f"{network.name}: onnxsim ({criterion}) removes nothing, and does not say so")
            continue
        own = [way for way in ways if way.row.startswith(criterion)]
        keeps = around(partial(peer.count, criterion), mine.size, mine.keep)
        for keep in sorted({keep for keep in keeps if keep is not None}):
            most = 1.01 * peer.count(criterion, keep)
            for way, entry in theirs(network, peer, "neuron", keep, own).items():
                less = isinstance(entry, Entry) and entry.size > most
                found.setdefault(keep, {})[way] = "prunes less" if less else entry
    return found


def edges(network: Network, peer: Peer, mine: Entry, ways: Sequence[Way]) -> dict[float, dict[Way, Entry | str]]:
    """Their runs at the keep that leaves as many weights as ours: those that go grow in proportion to 1 - keep."""
    keep, whole = mine.keep, parameters(network.dense)[1]
    made = peer.prune(keep, MASKS[0], MASKS[0])
    if isinstance(made, str):
        sys.exit(f"{network.name}: onnxsim cannot be counted: {made}")
    left = size(made.model, "edge")
    if left != mine.size and left < whole:
        keep = 1 - (1 - keep) * (whole - mine.size) / (whole - left)
    return {keep: theirs(network, peer, "edge", keep, ways)}


def matches(network: Network, peer: Peer, arguments: argparse.Namespace, folder: Path) -> Iterator[Match]:
    """One keep after the other."""
    dense = float(network.right(network.dense).mean())
    peer.give(network)
    for unit, keeps, ways, rivals in (
        ("neuron", arguments.neurons, removing(arguments.long), neurons),
        ("edge", arguments.edges, masking(arguments.long), edges),
    ):
        for keep in keeps:
            mine = ours(network, peer, unit, keep, arguments.polish, folder)
            yield Match(network.name, dense, unit, mine, rivals(network, peer, mine, ways))


def paired(mine: np.ndarray, rival: np.ndarray) -> tuple[float, float]:
    """By how much we are ahead, and the standard error of it: the same rows are put to both."""
    ahead = mine.astype(float) - rival
    return float(ahead.mean()), float(ahead.std() / math.sqrt(len(ahead)))


def verdict(match: Match, best: Entry) -> str:
    """Half its loss at most where that is serious, and nowhere worse beyond noise."""
    ahead, noise = paired(match.ours.right, best.right)
    if ahead < -noise:
        return "**worse**"
    if match.dense - best.accuracy > SERIOUS and match.dense - match.ours.accuracy > (match.dense - best.accuracy) / 2:
        return "**over half**"
    return "level" if abs(ahead) <= noise else "better"


def comparison(match: Match) -> list[str]:
    """A row of the main table."""
    mine, loss = match.ours, match.dense - match.ours.accuracy
    count, accuracy, ahead, its_loss, ratio, said, how, seconds, megabytes = rival_cells(match, loss)
    cells = [match.network, f"{mine.keep:g}", f"{mine.size:,}", count, percent(match.dense), percent(mine.accuracy)]
    cells += [accuracy, ahead, percent(loss), its_loss, ratio, said, how]
    return [*cells, mine.seconds, seconds, mine.megabytes, megabytes]


def rival_cells(match: Match, loss: float) -> list[str]:
    """What onnxsim adds to that row."""
    best = match.best
    if best is None:
        return [*[""] * 5, "it prunes nothing", *[""] * 3]
    ahead, noise = paired(match.ours.right, best.right)
    its_loss = match.dense - best.accuracy
    cells = [f"{best.size:,}", percent(best.accuracy), f"{100 * ahead:+.2f} ± {100 * noise:.2f}", percent(its_loss)]
    cells += [f"{loss / its_loss:.2f}" if its_loss > 0 else "", verdict(match, best), best.how]
    return [*cells, best.seconds, best.megabytes]


def comparison_table(found: Sequence[Match], what: str) -> list[str]:
    head = ["network", "keep", f"{what}: ours", "onnxsim", "dense", "ours", "onnxsim", "ours - onnxsim"]
    head += ["loss: ours", "onnxsim", "ratio", "verdict", "onnxsim's best way"]
    head += ["s: ours", "onnxsim", "MB: ours", "onnxsim"]
    return lines_of(head, [comparison(match) for match in found])


def ways_table(found: Sequence[Match], what: str, ways: Sequence[Way]) -> list[str]:
    columns = list(dict.fromkeys(way.column for way in ways))
    rows = []
    for match in found:
        for keep, runs in match.theirs.items():
            for row in dict.fromkeys(way.row for way in runs):
                own = {way.column: entry for way, entry in runs.items() if way.row == row}
                sizes = sorted({entry.size for entry in own.values() if isinstance(entry, Entry)})
                counts = " to ".join(f"{count:,}" for count in (sizes[:1] + sizes[1:][-1:]))
                cells = [shown(own[column]) if column in own else "" for column in columns]
                rows.append([match.network, row, f"{keep:g}", counts, *cells])
    return lines_of(["network", "way", "keep", what, *(COLUMNS[column] for column in columns)], rows, left=2)


def shown(entry: Entry | str) -> str:
    return entry if isinstance(entry, str) else f"{percent(entry.accuracy)} ({entry.price})"


def document(arguments: argparse.Namespace, found: Sequence[Match], peer: str) -> str:
    """The whole Markdown file."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxdpp", "onnx", "numpy", "scipy"))
    polish = f" --polish {arguments.polish}" if arguments.polish else ""
    given = (Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:])
    text = [
        "# onnxdpp beside onnxsim: test accuracy in per cent",
        "",
        f"- command: `python samples/peer.py {shlex.join(given)}`",
        f"- machine: {processor()}; Python {platform.python_version()}, {versions}, onnxruntime {ort.__version__}; "
        f"onnxsim {peer}, each run stopped after {arguments.peer_limit:g} s",
        f"- {arguments.rows:,} calibration rows for both, evenly spaced, no labels; ours: `onnxdpp prune{polish}`, all "
        "else at its default; onnxsim: the best of all ways below by *test* accuracy",
        f"- Adam: 500 iterations, as the script has it; long Adam: {arguments.long:,}, over the whole network at once",
        "- ours - onnxsim: ± one standard error of the paired difference over the test rows",
        f"- verdict: *better* or *level* (within that error) meets the mark; where onnxsim loses more than "
        f"{100 * SERIOUS:g} points, only half its loss or less does",
        "- s: the whole process, and in brackets what it says that pruning took; MB: its largest resident set. Those "
        "of onnxsim are of the run that made its model",
    ]
    for unit, what, ways in (
        ("neuron", "parameters", removing(arguments.long)),
        ("edge", "not zero", masking(arguments.long)),
    ):
        own = [match for match in found if match.unit == unit]
        if own:
            text += ["", f"## {unit.capitalize()}s", *comparison_table(own, what)]
        if any(match.theirs for match in own):
            text += ["", f"## {unit.capitalize()}s: every way of onnxsim", *ways_table(own, what, ways)]
    return "\n".join(text) + "\n"


def networks(arguments: argparse.Namespace) -> Iterator[Network]:
    """The sample, then the chosen networks of others."""
    if arguments.folder:
        yield Network.of_folder(arguments.folder, arguments.rows)
    if arguments.models:
        images = Images.of(arguments.data)
        with (arguments.models / "manifest.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["accuracy_data"] == "mnist" and fnmatch.fnmatchcase(row["file"], arguments.only):
                    yield Network.of_case(Case.of(row, arguments.models, images, arguments.rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="onnxdpp and onnxsim beside each other.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="?", help="holds model.onnx, calib.npz and test.npz")
    parser.add_argument("--models", type=Path, metavar="DIR", help="holds manifest.csv and the models")
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds MNIST and datasets.py; for --models")
    parser.add_argument("--only", default="*", metavar="GLOB", help="models whose file's name matches")
    parser.add_argument("--neurons", type=float, nargs="*", default=[0.5, 0.1, 0.05], metavar="F", help="keeps")
    parser.add_argument("--edges", type=float, nargs="*", default=[0.5, 0.2, 0.1, 0.05], metavar="F", help="keeps")
    parser.add_argument("--rows", type=int, default=4000, metavar="N", help="calibration rows (default 4000)")
    parser.add_argument("--long", type=int, default=5000, metavar="N", help="iterations (default 5000; 0: never)")
    parser.add_argument("--polish", type=int, default=0, metavar="N", help="of ours: rounds (default 0)")
    parser.add_argument("--peer", type=Path, required=True, metavar="RUN_ONNXSIM.py", help="runs onnxsim")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="one that has onnxsim")
    parser.add_argument("--peer-limit", type=float, default=300, metavar="S", help="for one run (default 300)")
    parser.add_argument("--peer-folder", type=Path, metavar="DIR", help="keep its models there; made ones are reused")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("peer.md"))
    arguments = parser.parse_args()
    if not (arguments.folder or arguments.models):
        parser.error("a FOLDER, or --models, or both")
    if arguments.models and not arguments.data:
        parser.error("--models needs --data")
    return arguments


def main() -> None:
    arguments = parse()
    found: list[Match] = []
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(arguments.peer, arguments.peer_python, arguments.peer_limit, arguments.peer_folder or Path(folder))
        peer_version = peer.version()
        for network in networks(arguments):
            for match in matches(network, peer, arguments, Path(folder)):
                found.append(match)
                text = document(arguments, found, peer_version)
                arguments.out.write_text(text, encoding="utf-8")
    if not found:
        sys.exit(f"no model with a known MNIST accuracy matches {arguments.only!r}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
