"""Methods side by side: the runs, the same numbers in every form, matched parameters, the picture, what is refused."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jsonschema
import numpy as np
import pytest
from invoking import DIGITS, Outcome, data, invoke, mlp, refusal, run, stored
from models import model as built
from onnx import ModelProto

import onnxdpp
from onnxdpp.comparing import DRAWN, KEEPS
from onnxdpp.evaluation import parameters
from onnxdpp.options import count_to_keep
from onnxdpp.report import schema, to_json

Run = Callable[..., Outcome]
FEW: dict[str, Any] = {"keeps": (0.75, 0.25), "methods": ["dpp", "dpp-sample"], "repeat": 3, "provider": "cpu"}


def compared(model: ModelProto | None = None, calib: Any = None, **options: Any) -> dict[str, Any]:
    """Findings on the network 8-16-12-3, as JSON holds them."""
    found = onnxdpp.compare_methods(
        mlp() if model is None else model, {"x": data()} if calib is None else calib, **{**FEW, **options}
    )
    jsonschema.validate(found, schema("comparison"))
    parsed: dict[str, Any] = json.loads(to_json(found))
    return parsed


def labelled(rows: int = 40) -> dict[str, Any]:
    """Other rows, with the class that the network 8-16-12-3 tells."""
    x = data(rows, seed=2)
    return {"x": x, "truth": run(mlp(), {"x": x})[0].argmax(1)}


def errors(found: dict[str, Any], unit: str, method: str) -> list[float]:
    return [part["error"] for part in found["runs"] if (part["unit"], part["method"]) == (unit, method)]


def without_biases() -> ModelProto:
    """The network 8-16-12-3 of matrices alone. Layers: fc1 (16), fc2 (12)."""
    return mlp(
        """mlp (float[N, 8] x) => (float[N, 3] y) {
            [fc1] a = MatMul(x, w1)  p = Relu(a)
            [fc2] c = MatMul(p, w2)  q = Tanh(c)
            [fc3] y = MatMul(q, w3)
        }"""
    )


# The runs


def test_runs_repeat_only_methods_that_draw_and_random_is_among_them() -> None:
    found = compared(unit="both")
    seeds: dict[tuple[str, str, float], list[int]] = {}
    for part in found["runs"]:
        seeds.setdefault((part["unit"], part["method"], part["keep"]), []).append(part["seed"])
    assert seeds == {
        (unit, method, keep): [0, 1, 2] if method in DRAWN else [0]
        for unit in ("neuron", "edge")
        for method in ("dpp", "dpp-sample", "random")
        for keep in (0.75, 0.25)
    }


def test_runs_of_the_same_question_are_the_same() -> None:
    first, second = compared(), compared()
    for part in first["runs"] + second["runs"]:
        del part["seconds"]
    assert first["runs"] == second["runs"]


@pytest.mark.parametrize("biases", [True, False])
def test_runs_that_keep_everything_change_nothing(biases: bool) -> None:
    """Without biases, too, which the refit puts in: they count as parameters, but no neuron goes for them."""
    text = "mlp (float[N, 8] x) => (float[N, 3] y) { [fc1] a = Gemm(x, w, b) p = Relu(a) [fc2] y = Gemm(p, v, c) }"
    text = text if biases else text.replace(", b)", ")").replace(", c)", ")")
    network = built(text, w=(8, 16), v=(16, 3), **({"b": (16,), "c": (3,)} if biases else {}))
    found = compared(network, keeps=[1.0], unit="both", match="parameters")
    kept = {"neuron": {"fc1": 16}, "edge": {"fc1": 8, "fc2": 16}}
    assert all(part["kept"] == kept[part["unit"]] for part in found["runs"])
    assert max(part["error"] for part in found["runs"]) < 1e-5


def test_runs_are_what_prune_makes() -> None:
    """Judged on other data, all calibration rows are fitted, as `prune` fits them."""
    other = {"x": data(seed=2)}
    found = compared(methods=["obs"], keeps=[0.5], data=other)
    pruned = onnxdpp.prune(mlp(), {"x": data()}, keep=0.5, method="obs", provider="cpu").model
    before, after = (run(each, other)[0].astype(np.float64) for each in (mlp(), pruned))
    distance = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert errors(found, "neuron", "obs") == pytest.approx([distance], rel=1e-14, abs=0)
    assert found["runs"][0]["parameters"] == parameters(pruned)[1]


@pytest.mark.parametrize("method", ["importance", "auto"])
def test_runs_never_see_the_rows_that_they_are_judged_on(method: str) -> None:
    """Every fifth row is moved far off: the error grows, the choice and the fit of the others do not change."""
    calib = data(100)
    far = calib.copy()
    far[4::5] *= 3
    on_others = {"x": np.delete(calib, np.s_[4::5], axis=0)}
    found = compared(calib={"x": far}, methods=[method], keeps=[0.5])
    expected = compared(calib=on_others, data={"x": far[4::5]}, methods=[method], keeps=[0.5])
    assert errors(found, "neuron", method) == errors(expected, "neuron", method)
    assert (found["judged_rows"], found["rows"]) == (20, 100)


def test_runs_of_which_some_fail_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdpp import comparing

    execute = comparing.execute

    def failing(job: Any, todo: Any, **others: Any) -> Any:
        if job.options.method == "random" and job.options.seed == 1:
            raise onnxdpp.ModelError("It is not finite.")
        return execute(job, todo, **others)

    monkeypatch.setattr(comparing, "execute", failing)
    found = compared(keeps=[0.5])
    assert found["notices"] == ["The run neuron random keep 0.5 seed 1 failed: It is not finite."]
    assert [part["runs"] for curve in found["curves"] for part in curve["points"]] == [1, 3, 2]


def test_runs_that_all_fail_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise onnxdpp.ModelError("It is not finite.")

    monkeypatch.setattr("onnxdpp.comparing.execute", failing)
    with pytest.raises(onnxdpp.ModelError, match="It is not finite"):
        compared()


# Labels


def test_labels_that_the_model_tells_make_an_error_of_zero() -> None:
    found = compared(data=labelled(), labels="truth", keeps=[1.0, 0.1])
    assert (found["measure"], found["unpruned"], found["judged_rows"]) == ("classification error", 0.0, 40)
    assert errors(found, "neuron", "dpp")[0] == 0.0
    assert errors(found, "neuron", "dpp")[1] > 0.0


def test_labels_that_are_all_wrong_make_an_error_of_one() -> None:
    rows = labelled()
    rows["truth"] = (rows["truth"] + 1) % 3
    assert compared(data=rows, labels="truth")["unpruned"] == 1.0


def test_labels_of_a_model_with_a_fixed_batch() -> None:
    fixed = mlp()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert compared(fixed, data=labelled(), labels="truth")["unpruned"] == 0.0


def test_labels_of_a_model_that_tells_the_class() -> None:
    classes = mlp("""
        mlp (float[N, 8] x) => (int64[N] y) {
            [fc1] a = Gemm(x, w1, b1)
            p = Relu(a)
            [fc2] c = Gemm(p, w2, b2)
            q = Tanh(c)
            [fc3] s = Gemm(q, w3, b3)
            y = ArgMax<axis=1, keepdims=0>(s)
        }""")
    assert compared(classes, data=labelled(), labels="truth")["unpruned"] == 0.0


@pytest.mark.parametrize(
    ("declared", "last"),
    [
        ("float[N, 1, 3] y", "y = Unsqueeze(s, one)"),
        ("float[N, 3] y", "t = Mul(s, never)  y = Sub(s, t)"),
        ("bool[N] k, float[N, 3, 1] y", "k = Cast <to = 9> (f)  y = Unsqueeze(s, two)"),
        ("float[N, 3] r, float[N, 3] y", "r = RandomNormalLike(s)  y = Identity(s)"),
    ],
    ids=["two axes", "infinite", "of floats first", "random"],
)
def test_errors_are_those_that_evaluate_counts(declared: str, last: str) -> None:
    """Whatever the classes of an output look like."""
    proto = mlp(
        f"""mlp (float[N, 8] x) => ({declared}) {{
            [fc1] a = Gemm(x, w1, b1)  p = Relu(a)  [fc2] s = Gemm(p, w2, b2)
            f = ReduceMax <axes = [1], keepdims = 0> (s)  {last}
        }}""",
        w2=(16, 3), b2=(3,), one=np.int64([1]), two=np.int64([2]), never=np.float32([0, -np.inf, 0]),
    )  # fmt: skip
    rows = {"x": data(40, seed=3), "truth": np.arange(40) % 3}
    found = onnxdpp.evaluate(proto, proto, rows, labels="truth", provider="cpu", latency=False, memory=False)
    given = {"keeps": [1.0], "methods": ["random"], "repeat": 1}
    assert compared(proto, data=rows, labels="truth", **given)["unpruned"] == 1 - found["accuracy"]["y"]["before"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "truth"}, r"Labels belong to data .* Add --data"),
        (
            {"labels": "truht", "data": labelled()},
            r"has no array 'truht' \(--labels\); it has 'x', 'truth'\. Did you mean 'truth'\?$",
        ),
        ({"labels": "truth", "data": {"x": data(2), "truth": [0.0, 1.0]}}, r"array 'truth' \(--labels\) wants int64"),
        ({"labels": "x", "data": labelled()}, "The labels 'x' are an input of the model"),
        ({"labels": "truth", "data": "random:9"}, "Random data have no labels"),
        ({"labels": "truth", "data": {"x": data(3), "truth": [0, 1, 3]}}, "go from 0 to 3, but the model tells 3"),
        ({"labels": "truth", "data": {"x": data(3), "truth": [0, 1]}}, "different numbers of rows: x 3, truth 2"),
    ],
)
def test_labels_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxdpp.OnnxdppError, match=message):
        compared(**options)


# Matched parameters


@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
@pytest.mark.parametrize("biases", [True, False])
def test_match_gives_neurons_what_edges_have(refit: str, biases: bool) -> None:
    """Hidden layers of 120 and 90: the most neurons, the same share of both, that weigh no more than the edges."""
    shapes = {"w1": (30, 120), "b1": (120,), "w2": (120, 90), "b2": (90,), "w3": (90, 10), "b3": (10,)}
    text = """
        mlp (float[N, 30] x) => (float[N, 10] y) {
            a = Gemm(x, w1, b1)
            p = Relu(a)
            c = Gemm(p, w2, b2)
            q = Tanh(c)
            y = Gemm(q, w3, b3)
        }"""
    if not biases:
        text = re.sub(", b.", "", text)
    network = built(text, **{name: shape for name, shape in shapes.items() if name in text})
    found = compared(
        network, {"x": data(50, 30)}, unit="both", match="parameters", methods=["importance"], refit=refit, repeat=1,
        keeps=[0.8, 0.5, 0.3],
    )  # fmt: skip

    def weight(share: float) -> int:
        first, second = count_to_keep(share, 120), count_to_keep(share, 90)
        whole = first * (30 + biases) + second * (first + 10)
        return whole + (second + 10) * (biases or refit == "affine")  # the refit puts intercepts into the consumers

    sizes = {(part["unit"], part["keep"]): part["parameters"] for part in found["runs"]}
    for keep in (0.8, 0.5, 0.3):
        fitting = [size for size in map(weight, np.linspace(0.001, 1, 1000)) if size <= sizes["edge", keep]]
        assert sizes["neuron", keep] == max(fitting)


def test_match_of_one_layer_is_the_formula_of_the_papers() -> None:
    """k_e = k_n (d_in + h_2) / h_1 - h_2, with biases, as `onnxdpp.matching` says."""
    found = compared(
        mlp(), unit="both", match="parameters", methods=["importance"], layers="fc1", keeps=[0.75, 0.5, 0.25], repeat=1
    )
    kept = {(part["unit"], part["keep"]): part["kept"]["fc1"] for part in found["runs"]}
    for keep in (0.75, 0.5, 0.25):
        k_e = kept["edge", keep]
        assert k_e == 8 * keep
        assert kept["neuron", keep] == int((k_e + 12 + 1) * 16 / (8 + 1 + 12))


def test_match_of_all_edges_is_all_neurons() -> None:
    """Though biases that a refit would put in make them weigh more."""
    found = compared(without_biases(), unit="both", match="parameters", methods=["importance"], keeps=[1.0], repeat=1)
    kept = [part["kept"] for part in found["runs"] if part["unit"] == "neuron"]
    assert kept == [{"fc1": 16, "fc2": 12}] * 2


def test_match_of_edges_that_may_outweigh_the_model_leaves_neurons_that_do_not() -> None:
    """Of its 356 weights 15 go, and the refit may put 31 biases in, of which 15 are needed."""
    proto = without_biases()
    found = compared(proto, unit="both", match="parameters", methods=["importance"], keeps=[0.95], repeat=1)
    size = {part["unit"]: part["parameters"] for part in found["runs"]}
    assert size["edge"] == 356
    assert 0.9 * 356 < size["neuron"] <= 356


def test_match_that_cannot_be_is_said_before_any_run() -> None:
    """Two neurons with 100 readers: one edge for each leaves 4 + 200, one neuron 9 + 200."""
    text = "mlp (float[N, 8] x) => (float[N, 100] y) { a = Gemm(x, w, b) p = Relu(a) y = Gemm(p, v, c) }"
    network = built(text, w=(8, 2), b=(2,), v=(2, 100), c=(100,))
    with pytest.raises(onnxdpp.UsageError, match="can be reached has 209 parameters, and the goal is 204"):
        compared(network, unit="both", match="parameters", keeps=[0.01])


# The forms of the findings


def test_curves_are_the_means_and_deviations_of_the_runs() -> None:
    found = compared(unit="both")
    for curve in found["curves"]:
        for point in curve["points"]:
            same = [
                part["error"]
                for part in found["runs"]
                if all(part[key] == where[key] for key, where in (("unit", curve), ("method", curve), ("keep", point)))
            ]
            assert point["error"] == fmean(same)
            assert point["deviation"] == (stdev(same) if curve["method"] in DRAWN else None)


@pytest.fixture
def compare(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`onnxdpp compare` of the network 8-16-12-3 on 64 rows, by dpp and random at two keeps, and what else is given."""
    model = stored(mlp(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=data())
    np.savez(tmp_path / "test.npz", **labelled())
    usual = {"--keep": "0.75,0.25", "--method": "dpp", "--repeat": 3, "--provider": "cpu"}

    def run(*more: object) -> Outcome:
        given = [part for name, value in usual.items() if name not in more for part in (name, value)]
        return invoke(capfd, "compare", model, "--calib", tmp_path / "calib.npz", *given, *more)

    return run


def test_csv_is_the_table(compare: Run, tmp_path: Path) -> None:
    outcome = compare("--csv", tmp_path / "a.csv", "--data", tmp_path / "test.npz", "--labels", "truth")
    assert (outcome.code, outcome.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(rows) == 2 * (1 + 3)
    for method in ("dpp", "random"):
        cells = []
        for keep in ("0.75", "0.25"):
            same = [100 * float(row["error"]) for row in rows if (row["method"], row["keep"]) == (method, keep)]
            cells.append(f"{fmean(same):.2f}" + (f" ± {stdev(same):.2f}" if method == "random" else ""))
        line = next(line for line in outcome.out.splitlines() if line.startswith(method))
        assert re.split(r"\s{2,}", line.strip()) == [method, *cells]


def test_csv_holds_every_digit(compare: Run, tmp_path: Path) -> None:
    outcome = compare("--csv", tmp_path / "a.csv", "--json")
    rows = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text()))
    runs = json.loads(outcome.out)["runs"]
    assert [float(row["error"]) for row in rows] == [part["error"] for part in runs]


def test_json_is_as_its_schema_says(compare: Run) -> None:
    found = json.loads(compare("--json", "--quiet").out)
    jsonschema.validate(found, schema("comparison"))
    assert list(found) == schema("comparison")["required"]


def test_table_of_many_keeps_is_folded(compare: Run) -> None:
    outcome = compare("--keep", ",".join(f"0.{i}" for i in range(1, 10)), "--repeat", 2)
    assert outcome.out.count("--unit neuron") == 2
    assert max(map(len, outcome.out.splitlines())) <= 120
    assert "…" not in outcome.out


def test_quiet_prints_nothing(compare: Run) -> None:
    assert compare("--quiet") == Outcome(0, "", "")


def test_help_tells_the_keeps(capfd: pytest.CaptureFixture[str]) -> None:
    assert ",".join(f"{keep:g}" for keep in KEEPS) in invoke(capfd, "compare", "--help").out


# The picture


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_plot_is_a_picture_and_the_same_again(compare: Run, tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    assert compare("--plot", tmp_path / name).code == 0
    first = (tmp_path / name).read_bytes()
    assert first.startswith(magic)
    assert compare("--plot", tmp_path / name, "--force").code == 0
    assert (tmp_path / name).read_bytes() == first
    assert b"<dc:date>" not in first


def test_plot_shows_the_curves_and_the_unpruned() -> None:
    pytest.importorskip("matplotlib")
    from onnxdpp.plotting import figure

    found = compared(unit="both", data=labelled(), labels="truth")
    (axes,) = figure(found).axes
    *lines, unpruned = axes.lines
    whole = found["model"]["nonzero"]
    for curve, line in zip(found["curves"], lines, strict=True):
        assert line.get_xdata().tolist() == [100 * point["parameters"] / whole for point in curve["points"]]
        assert line.get_ydata().tolist() == [100 * point["error"] for point in curve["points"]]
    assert list(unpruned.get_ydata()) == [100 * found["unpruned"]] * 2
    legend = [text.get_text() for text in figure(found).legends[0].texts]
    assert legend == ["dpp", "dpp-sample", "random", " ", "neurons", "edges", "unpruned"]


@pytest.mark.parametrize(
    ("errors", "scale", "bottom"),
    [((0.0, 0.0), "linear", 0), ((0.0, 0.9), "linear", 0), ((0.2, 0.3), "linear", 0), ((0.001, 0.3), "log", None)],
)
def test_plot_of_errors_is_logarithmic_where_they_span_much(
    errors: tuple[float, float], scale: str, bottom: float | None
) -> None:
    pytest.importorskip("matplotlib")
    from onnxdpp.plotting import figure

    found = compared(methods=[], repeat=1)
    for point, error in zip(found["curves"][0]["points"], errors, strict=True):
        point["error"] = error
    (axes,) = figure(found).axes
    low, high = axes.get_ylim()
    assert (axes.get_yscale(), axes.get_xscale()) == (scale, "linear")
    assert low == bottom or (bottom is None and 0 < low < 100 * min(errors))
    assert high > 100 * max(errors)


def test_plot_leaves_out_runs_that_failed() -> None:
    pytest.importorskip("matplotlib")
    from onnxdpp.plotting import figure

    found = compared(methods=[], repeat=1)
    found["curves"][0]["points"][1].update(error=None, parameters=None, runs=0)
    (axes,) = figure(found).axes
    assert len(axes.lines[0].get_xdata()) == 1


def test_plot_has_a_look_for_every_method() -> None:
    from onnxdpp.algebra.selection import METHODS
    from onnxdpp.plotting import LOOKS

    assert set(LOOKS) == {"auto", *METHODS}
    assert len({look.colour for look in LOOKS.values()}) == len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_plot_without_matplotlib_is_refused_at_once(
    compare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = refusal(compare("--plot", tmp_path / "a.png"), 5)
    assert "A plot needs matplotlib" in message
    assert "Run: pip install 'matplotlib>=3.9'" in message
    assert not (tmp_path / "a.png").exists()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", "0.5,x"), "keep is '0.5,x'; it must be fractions with commas between"),
        (("--keep", ""), "keep is ''; it must be fractions"),
        (("--keep", "0.5,,0.1"), "keep is '0.5,,0.1'"),
        (("--keep", "0.5,1.5"), "keep has 1.5 in it; each must be above 0 and at most 1"),
        (("--keep", "nan"), "keep has nan in it"),
        (("--method", "dpp,best"), "method has 'best' in it; each can be auto, dpp,"),
        (("--unit", "filter"), "unit is 'filter'; it can be neuron, edge, both."),
        (("--repeat", "0"), "repeat is 0; it must be a whole number of at least 1."),
        (("--match", "bytes"), "match is 'bytes'; it can be parameters."),
        (("--match", "parameters"), "Add --unit both"),
        (("--layer", "fc1=0.5"), "All layers are pruned to the same keep here."),
        (("--labels", "truth"), "Add --data, or leave --labels out."),
        (("--max-rows", "4"), "Of 4 calibration rows, none can be held out"),
        (("--plot", "a.pdf"), "The plot 'a.pdf' is neither .png nor .svg."),
    ],
)
def test_options_that_cannot_be_are_refused(compare: Run, options: tuple[str, ...], message: str) -> None:
    assert message in refusal(compare(*options), 2)


def test_outputs_never_replace_a_file_unasked(compare: Run, tmp_path: Path) -> None:
    for name in ("calib.npz", "test.npz", "net.onnx"):
        given = ("--csv", tmp_path / name, "--data", tmp_path / "test.npz", "--labels", "truth", "--force")
        assert "is the input" in refusal(compare(*given), 2)
    (tmp_path / "a.csv").write_text("mine")
    assert "exists. Use --force" in refusal(compare("--csv", tmp_path / "a.csv"), 2)
    assert (tmp_path / "a.csv").read_text() == "mine"
    same = ("--plot", tmp_path / "a.svg", "--csv", tmp_path / "a.svg")
    assert "Two outputs are the same file" in refusal(compare(*same), 2)


# The sample


def test_digits_by_importance(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(
        capfd, "compare", DIGITS / "model.onnx", "--calib", DIGITS / "calib.npz", "--data", DIGITS / "test.npz",
        "--labels", "labels", "--keep", 0.1, "--method", "importance", "--repeat", 1, "--provider", "cpu",
    )  # fmt: skip
    assert re.search(r"^parameters +2\.2 %$", outcome.out, re.MULTILINE), outcome
    assert re.search(r"^importance +1\.\d\d$", outcome.out, re.MULTILINE)
    assert "unpruned 1.80, 288,010 parameters (1,297 calibration rows, judged on 500 rows of" in outcome.out
