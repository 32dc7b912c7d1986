"""Single methods from end to end beside the contest of each layer."""

from typing import Any

import numpy as np
import pytest
from models import model, normal
from onnx import ModelProto

import onnxdpp
from onnxdpp import pruning, rivals
from onnxdpp.errors import DataError, ModelError, OnnxdppError
from onnxdpp.graph.batches import Batches, input_specs, open_batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.rewriting import reweighted
from onnxdpp.job import Job
from onnxdpp.judging import Judge, Judgement
from onnxdpp.pruning import execute
from onnxdpp.rivals import CLEAR, NARROW, RIVALS

X = normal(400, 10)


def network(width: int = 16) -> ModelProto:
    """Two hidden layers. Layers: fc1 (`width`), fc2 (12)."""
    return model(
        """g (float[N, 10] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, W1, b1)  h = Relu(a)
            [fc2] c = Gemm(h, W2, b2)  k = Relu(c)
            [fc3] y = Gemm(k, W3, b3)
        }""",
        W1=(10, width), b1=(width,), W2=(width, 12), b2=(12,), W3=(12, 3), b3=(3,),
    )  # fmt: skip


def report(proto: ModelProto, **options: Any) -> dict[str, Any]:
    return onnxdpp.prune(proto, {"x": X}, **{"keep": 0.25, "provider": "cpu", **options}).report


@pytest.mark.parametrize("clear", [CLEAR, 0.0])
def test_one_is_taken_and_it_is_the_contest_unless_another_is_clearly_nearer(
    clear: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "CLEAR", clear)
    found = report(network())
    runs = found["rivals"]
    assert [run["method"] for run in runs] == ["auto", *(method for method, _ in RIVALS)]
    assert [run["kernel"] for run in runs] == [None, "linear", None, None, None]
    (taken,) = (run for run in runs if run["taken"])
    nearest = min(run["discrepancy"] for run in runs)
    if runs[0]["discrepancy"] <= clear * nearest:
        assert taken is runs[0]
    else:
        assert taken["discrepancy"] == nearest
    assert taken is runs[0] or {layer["method"] for layer in found["layers"]} == {taken["method"]}
    assert found["options"]["method"] == "auto"


def test_what_is_taken_is_what_that_method_makes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "CLEAR", 0.0)
    monkeypatch.setattr(rivals, "RIVALS", (("wanda", "rbf"),))
    distances = iter([Judgement(0.5, None), Judgement(0.4, None)])

    class Decided(Judge):
        def judge(self, model: ModelProto) -> Judgement:
            return next(distances)

    monkeypatch.setattr(rivals, "Judge", Decided)
    result = onnxdpp.prune(network(), {"x": X}, keep=0.25, provider="cpu")
    monkeypatch.undo()
    alone = onnxdpp.prune(network(), {"x": X}, keep=0.25, method="wanda", provider="cpu")
    assert alone.model.SerializeToString() == result.model.SerializeToString()
    assert [run["discrepancy"] for run in result.report["rivals"]] == [0.5, 0.4]
    assert all(layer["method"] == "wanda" and layer["contest"] is None for layer in result.report["layers"])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "obs"},
        {"unit": "edge"},
        {"target_discrepancy": 0.3, "keep": None},
        {"keep": "auto"},
        {"keep": 1.0},
        {"max_rows": 4},
        {"method": "auto", "refit": "none"},
        {"apply": {"layers": [{"name": "fc1", "width": 16, "keep": [0, 3]}]}, "keep": None},
    ],
)
def test_no_whole_runs_where_they_are_not_asked(options: dict[str, Any]) -> None:
    assert report(network(), **options)["rivals"] is None


def test_whole_runs_are_made_where_some_layers_stay_whole() -> None:
    assert report(network(), layers=["fc1=1.0", "fc2=0.5"])["rivals"] is not None


def test_whole_runs_are_of_a_few_rows_and_fit_none_that_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(job: Job, *args: Any, **options: Any) -> Any:
        seen.append((job.batches.rows, options))
        return execute(job, *args, **options)

    monkeypatch.setattr(rivals, "ROWS", 100)
    monkeypatch.setattr(rivals, "execute", watched)
    report(network())
    assert seen == [(100, {"hold_out": True})] * (1 + len(RIVALS))


def test_whole_runs_are_judged_on_the_same_few_rows_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(Judge):
        def __init__(self, graph: Graph, batches: Batches, provider: str, mask: str | None = None) -> None:
            super().__init__(graph, batches, provider, mask)
            seen.append((batches.rows, mask))

    monkeypatch.setattr(rivals, "ROWS", 100)
    monkeypatch.setattr(rivals, "Judge", Watched)
    report(network(), mask="x")
    assert seen == [(100, "x")]


def test_candidate_of_a_contest_whose_weights_do_not_fit_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise ModelError("They do not fit into float16.")
        return reweighted(*args)

    monkeypatch.setattr(pruning, "reweighted", failing)
    found = report(network(NARROW + 1), layers="fc1")["layers"][0]
    judged = [run for run in found["contest"] if run["divergence"] is not None]
    assert len(calls) > 2
    assert found["method"] in {run["method"] for run in judged}


def test_wide_layers_are_left_to_the_contest() -> None:
    assert report(network(NARROW))["rivals"] is not None
    assert report(network(NARROW + 1))["rivals"] is None


def test_wide_consumers_are_left_to_the_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "INPUTS", 16)
    assert report(network(16))["rivals"] is not None
    assert report(network(17))["rivals"] is None


def test_rows_that_are_too_few_for_a_contest_are_told() -> None:
    few = {"x": X[:4]}
    told = "No rows could be held out for 'fc1', 'fc2': the DPP's mode chose, without a contest."
    found = onnxdpp.prune(network(), few, keep=0.5, provider="cpu").report
    assert [part["contest"] for part in found["layers"]] == [None, None]
    assert told in found["notices"]
    assert told not in onnxdpp.prune(network(), few, keep=0.5, method="dpp", provider="cpu").report["notices"]
    assert told not in onnxdpp.prune(network(), few, keep=1.0, provider="cpu").report["notices"]


def test_thinned_batches_are_evenly_spaced_and_of_the_same_data() -> None:
    batches = open_batches({"x": X}, input_specs(network()), batch_size=32)
    few = batches.thinned(100)
    rows = np.concatenate([batch.feeds["x"] for batch in few])
    np.testing.assert_array_equal(rows, X[::4])
    assert batches.thinned(400) is batches


@pytest.mark.parametrize(("used", "few"), [(300, 250), (400, 399), (37, 10), (7, 1)])
def test_thinned_batches_are_of_the_rows_that_are_used(used: int, few: int) -> None:
    x = np.arange(400 * 10, dtype=np.float32).reshape(400, 10)
    batches = open_batches({"x": x}, input_specs(network()), max_rows=used)
    rows, thinned = (np.concatenate([batch.feeds["x"] for batch in part]) for part in (batches, batches.thinned(few)))
    np.testing.assert_array_equal(thinned, rows[np.arange(few) * used // few])


def test_thinned_batches_of_several_shapes_and_a_fixed_size() -> None:
    proto = model(
        """g (float[8, T] x) => (float[8, 3] y) {
            s = ReduceMean <axes = [1]> (x)
            [fc1] a = Gemm(s, W1, b1)  h = Relu(a)
            [fc2] y = Gemm(h, W2, b2)
        }""",
        W1=(1, 20), b1=(20,), W2=(20, 3), b2=(3,),
    )  # fmt: skip
    parts = [{"x": np.full((16, 3 + number % 2), number, np.float32)} for number in range(10)]
    batches = open_batches(parts, input_specs(proto))
    assert [batch.feeds["x"][0, 0] for batch in batches.thinned(80)] == list(range(10))
    assert batches.thinned(40) is batches  # of each shape there would be half a batch


@pytest.mark.parametrize("error", [ModelError("It does not fit into float16."), DataError("It is not finite.")])
def test_method_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch, error: OnnxdppError) -> None:
    def failing(job: Job, *args: Any, **options: Any) -> Any:
        if job.options.method == failed:
            raise error
        return execute(job, *args, **options)

    monkeypatch.setattr(rivals, "execute", failing)
    failed = "omp"
    runs = report(network())["rivals"]
    assert [run["discrepancy"] is None for run in runs] == [run["method"] == "omp" for run in runs]
    assert not any(run["taken"] for run in runs if run["method"] == "omp")
    failed = "auto"
    assert report(network())["rivals"] is None
