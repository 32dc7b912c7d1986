"""The papers' samples: pruned as `prune` does, run once and never twice, told as measured, fetched whole."""

import hashlib
import itertools
import json
import math
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.stats import chisquare
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1] / "samples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "samples" / "papers"))
import fetch
import reproduce
import sigmoid_mlp
import tables
import train
from draws import draw_edges
from first_layer import FirstLayer
from results import Cell, Summary, append, gap, read_results, summaries

import onnxdpp
from onnxdpp.algebra.kernels import edge_gram, rbf_kernel

PAPERS = Path(__file__).parents[1] / "samples" / "papers"
WIDTHS = (12, 10, 7, 4)
BETA, EPSILON = 10.0, 0.01


def network(folder: Path, columns: slice | list[int] = slice(None)) -> Path:
    """A small network with rows to calibrate and to test, some inputs of which may be the same."""
    rng = np.random.default_rng(5)
    parameters = sigmoid_mlp.initial(WIDTHS, rng, gain=3.0)
    x = (rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12)) / 3).astype(np.float32)[:, columns]
    labels = sigmoid_mlp.activations(parameters, x)[-1].argmax(1)
    model = sigmoid_mlp.to_onnx(parameters, "small")
    sigmoid_mlp.write(folder, model, x[:300], x[300:], labels[300:], compress=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("small"))


def weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def both(folder: Path, unit: str, k: int, method: str, refit: str, seed: int = 3) -> list[dict[str, NDArray[Any]]]:
    """What the samples make of a network, and what `prune` does."""
    with threadpool_limits(1), ThreadPoolExecutor(2) as executor:
        layer = FirstLayer(folder / "model.onnx", folder / "calib.npz", executor)
        keep = layer.choose(unit, k, method, beta=BETA, epsilon=EPSILON, seed=seed)
        mine = layer.model(unit, keep, refit)[0]
        width = layer.width(unit)
    theirs = onnxdpp.prune(
        folder / "model.onnx", folder / "calib.npz", keep=k / width, unit=unit, method=method, beta=BETA,
        epsilon=EPSILON, refit=refit, layers="fc1", seed=seed, provider="cpu",
    ).model  # fmt: skip
    return [weights(mine), weights(theirs)]


@pytest.mark.parametrize("refit", ["none", "linear"])
@pytest.mark.parametrize("method", ["dpp-sample", "random", "importance"])
@pytest.mark.parametrize(("unit", "k"), [("neuron", 4), ("edge", 5)])
def test_model_is_that_of_prune(folder: Path, unit: str, k: int, method: str, refit: str) -> None:
    mine, theirs = both(folder, unit, k, method, refit)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_model_is_that_of_prune_by_the_dropped_edges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the shortcut was not taken")

    monkeypatch.setattr("first_layer.refit_edges", fail)
    mine, theirs = both(folder, "edge", 9, "random", "linear")
    np.testing.assert_allclose(mine["fc1.weight"], theirs["fc1.weight"], rtol=0, atol=1e-6)
    assert ((mine["fc1.weight"] != 0).sum(1) == 9).all()


def test_model_is_that_of_prune_where_inputs_are_the_same(tmp_path: Path) -> None:
    """Their Gram has no inverse to trust: the package's own way is taken, to the last bit."""
    mine, theirs = both(network(tmp_path, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), "edge", 9, "random", "linear")
    np.testing.assert_array_equal(mine["fc1.weight"], theirs["fc1.weight"])


def test_draws_together_have_the_law_of_the_dpp() -> None:
    """Of each output and repeat: how often each set is drawn, against determinants."""
    rng = np.random.default_rng(2)
    n, k, repeats, rounds = 5, 2, 4, 500
    x = rng.standard_normal((40, n))
    gram, column = x.T @ x / 40, np.array([0.1, 0.3, -0.2, 0.4, 0.25])
    kernel = rbf_kernel(edge_gram(gram, column), BETA) + EPSILON * np.eye(n)
    sets = list(itertools.combinations(range(n), k))
    expected = np.array([np.linalg.det(kernel[np.ix_(chosen, chosen)]) for chosen in sets])
    expected /= expected.sum()
    with ThreadPoolExecutor(2) as executor:
        drawn = [
            draw_edges(
                gram,
                np.stack([column, column], 1),
                k,
                repeats,
                beta=BETA,
                epsilon=EPSILON,
                seed=seed,
                executor=executor,
            )
            for seed in range(rounds)
        ]
    all_sets = np.stack(drawn)  # (rounds, repeats, k, outputs)
    found = np.array([(all_sets == np.array(chosen)[:, None]).all(2).sum((0, 1)) for chosen in sets])
    for output in range(2):
        assert chisquare(found[:, output], expected * repeats * rounds).pvalue > 1e-3
    assert (all_sets[:, 0] != all_sets[:, 1]).any()
    assert (all_sets[..., 0] != all_sets[..., 1]).any()


@pytest.mark.parametrize(
    ("dataset", "widths"), [("mnist", (784, 500, 500)), ("cifar10", (3072, 1000, 1000))], ids=["mnist", "cifar10"]
)
def test_counts_leave_as_many_parameters(dataset: str, widths: tuple[int, int, int]) -> None:
    """In the two matrices that a neuron is part of; a part of a neuron counts as one."""
    inputs, hidden, after = widths
    for percent, (neurons, edges) in reproduce.COUNTS[dataset].items():
        assert edges == percent * inputs // 100
        assert neurons == math.ceil(hidden * (edges + after) / (inputs + after))


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *words: str) -> None:
    monkeypatch.setitem(reproduce.COUNTS, "mnist", dict.fromkeys(reproduce.PERCENTS, (6, 7)) | {20: (4, 3)})
    places = ["reproduce.py", str(folder), "--dataset", "mnist", "--out", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*places, *words])
    reproduce.main()


def test_reproduce_runs_every_cell_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "small.jsonl"
    run(monkeypatch, folder, out, "--repeats", "2", "--percent", "20", "50", "--limit", "random-edge:linear=1")
    head, results = read_results(out)
    assert head["unpruned"] == 0
    drawing = [(name, refit) for name in ("random-node", "divnet", "dpp-edge") for refit in ("none", "linear")]
    assert len(out.read_text().splitlines()) == 1 + len(results)
    assert len(results) == 2 * (2 * (len(drawing)) + 2 + 1 + 4 + 2)
    assert Cell("random-edge", 20, "none", 1) in results
    assert Cell("random-edge", 20, "linear", 1) not in results
    kept = {cell.method: result["kept"] for cell, result in results.items() if cell.percent == 20}
    assert set(kept.values()) == {3, 4}
    assert {name for name, k in kept.items() if k == 3} == {"importance-edge", "random-edge", "dpp-edge", "auto-edge"}


def test_reproduce_goes_on_where_it_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "small.jsonl"
    words = ("--repeats", "3", "--percent", "20", "--method", "random-node", "divnet")
    run(monkeypatch, folder, out, *words)
    whole = out.read_text()
    out.write_text(whole[: whole.index("\n", len(whole) * 3 // 4) - 20])
    cut = out.read_text().splitlines()
    run(monkeypatch, folder, out, *words)
    after = out.read_text().splitlines()
    assert after[: len(cut)] == cut
    fresh = [json.loads(line)["cell"] for line in after[len(cut) :]]
    assert 0 < len(fresh) < 12
    kept = [json.loads(line).get("cell") for line in cut[:-1]]
    assert not [cell for cell in fresh if cell in kept]
    errors = {cell: result["error"] for cell, result in read_results(out)[1].items()}
    out.write_text(whole)
    assert errors == {cell: result["error"] for cell, result in read_results(out)[1].items()}


def test_reproduce_refuses_results_of_other_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "other.jsonl"
    append(out, {"dataset": "mnist", "files": "0", "unpruned": 1.0})
    with pytest.raises(SystemExit, match="results of other files"):
        run(monkeypatch, folder, out, "--repeats", "1")


def test_summaries_of_draws_and_of_a_choice() -> None:
    errors = {("divnet", 0): 2.0, ("divnet", 1): 4.0, ("importance-node", 0): 5.0, ("dpp-edge", 0): 6.0}
    points = summaries({Cell(name, 20, "none", seed): {"error": error} for (name, seed), error in errors.items()})
    draws, choice, single = (points[name, "none", 20] for name in ("divnet", "importance-node", "dpp-edge"))
    assert draws == Summary(3.0, math.sqrt(2), 2)
    assert choice == Summary(5.0, 0.0, 1)
    assert math.isnan(single.deviation)
    assert gap(draws, choice) == (-2.0, pytest.approx(1.0, abs=1e-15))
    assert tables.error_entry(draws) == "3.00 ± 1.41"
    assert tables.gap_entry(draws, choice) == "-2.00 ± 1.00"
    assert tables.gap_entry(choice, single) == "-1.00"
    assert tables.gap_entry(draws, Summary(5.1, 0.0, 1)) == "**-2.10 ± 1.00**"


def test_tables_show_what_was_run() -> None:
    results = {
        Cell("divnet", 20, "none", 0): {"error": 2.0},
        Cell("divnet", 20, "none", 1): {"error": 4.0},
        Cell("random-node", 20, "none", 0): {"error": 9.5},
    }
    head = {"dataset": "mnist", "unpruned": 1.25, "machine": "a machine"}
    text = "\n".join(tables.tables(head, summaries(results)))
    assert "## mnist: unpruned 1.25" in text
    assert "| Divnet (DPP node) | 2 | 3.00 ± 1.41 |  |" in text
    assert "| random node | 1 | 9.50 |  |" in text
    assert "| Divnet (DPP node) - random node | -6.50 |  |" in text
    assert "DPP edge - random edge" not in text


def test_figure_has_the_means_and_deviations() -> None:
    figure = pytest.importorskip("figure", reason="needs matplotlib")
    results = {
        Cell("divnet", 20, "none", 0): {"error": 2.0},
        Cell("divnet", 20, "none", 1): {"error": 4.0},
        Cell("divnet", 90, "none", 0): {"error": 2.5},
        Cell("auto-edge", 50, "affine", 0): {"error": 1.5},
    }
    panels = figure.figure({"mnist": (1.25, summaries(results))}).axes
    first, third = panels[0], panels[2]
    line, bars = first.containers[0].lines[0], first.containers[0].lines[2][0]
    assert line.get_ydata().tolist() == [3.0, 2.5]
    np.testing.assert_allclose(np.ptp(bars.get_segments()[0][:, 1]), 2 * math.sqrt(2), rtol=1e-15)
    assert third.containers[0].lines[0].get_ydata().tolist() == [1.5]
    assert [len(panel.containers) for panel in panels] == [1, 0, 1, 0]
    assert all(1.25 in panel.lines[-1].get_ydata() for panel in (first, third))


def test_committed_tables_are_those_of_the_committed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [PAPERS / "mnist.jsonl", PAPERS / "cifar10.jsonl"]
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, found), "--out", str(tmp_path / "tables.md")])
    tables.main()
    now, committed = ((place / "tables.md").read_text().splitlines()[3:] for place in (tmp_path, PAPERS))
    assert now == committed


def source(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes, members: tuple[str, ...] = ()) -> None:
    """One file as a dataset of its own, with its true sum."""
    (folder / "file").write_bytes(content)
    sums = {"file": hashlib.md5(content, usedforsecurity=False).hexdigest()}
    monkeypatch.setitem(fetch.SOURCES, "mnist", fetch.Source((folder.as_uri(),), sums, members))


def fetched(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch.py", "--dataset", "mnist", "--out", str(out), *words])
    fetch.main()


def test_fetch_takes_the_next_place_where_one_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(monkeypatch, tmp_path, b"rows")
    fetched(monkeypatch, tmp_path / "out", "--from", (tmp_path / "none").as_uri(), tmp_path.as_uri())
    assert (tmp_path / "out" / "file").read_bytes() == b"rows"
    (tmp_path / "file").unlink()
    fetched(monkeypatch, tmp_path / "out")  # what is there needs no place


def test_fetch_refuses_a_file_that_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(monkeypatch, tmp_path, b"rows")
    (tmp_path / "file").write_bytes(b"ro")
    with pytest.raises(SystemExit, match=r"file cannot be had.*MD5"):
        fetched(monkeypatch, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_fetch_unpacks_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "cifar"
    inside.mkdir()
    for name in ("a.bin", "b.bin", "notes.txt"):
        (inside / name).write_text(name)
    with tarfile.open(tmp_path / "packed", "w:gz") as archive:
        archive.add(inside, "cifar")
    source(monkeypatch, tmp_path, (tmp_path / "packed").read_bytes(), ("a.bin", "b.bin"))
    fetched(monkeypatch, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bin", "b.bin"]
    assert (tmp_path / "out" / "b.bin").read_text() == "b.bin"


def test_cifar_rows_are_scaled_by_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = {}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        pixels = rng.integers(0, 256, (4, 3, 1024)) // np.array([1, 2, 4])[:, None]
        records[name] = np.hstack([rng.integers(0, 10, (4, 1)), pixels.reshape(4, -1)]).astype(np.uint8)
        (tmp_path / name).write_bytes(records[name].tobytes())
    x, y, x_test, y_test = train.read_cifar10(tmp_path)
    assert (x.shape, x_test.shape) == ((20, 3072), (4, 3072))
    colours = x.reshape(20, 3, 1024).astype(np.float64)
    np.testing.assert_allclose(colours.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(colours.std((0, 2)), 1, atol=1e-5)
    assert y.tolist() == [int(row[0]) for name in records for row in records[name] if name != "test_batch.bin"]
    assert y_test.tolist() == records["test_batch.bin"][:, 0].tolist()


def test_training_begins_at_its_start_and_errs_less() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((256, 12)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    start = sigmoid_mlp.initial((12, 10, 2), rng)
    still = next(train.epochs(start, x, y, 0.0))
    for (weight, bias), (before, zero) in zip(still, start, strict=True):
        np.testing.assert_array_equal(weight, before)
        np.testing.assert_array_equal(bias, zero)
    for _, parameters in zip(range(20), train.epochs(start, x, y, 0.1), strict=False):
        found = sigmoid_mlp.accuracy(parameters, x, y)
    assert found > 0.95
