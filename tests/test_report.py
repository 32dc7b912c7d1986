"""Reports: what the schemas let pass and what they do not, and how tables show them."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from onnxdpp import report as reports
from onnxdpp.report import Evaluation, FoundLayer, Inspection, LayerResult, ModelSize, Report, schema, to_json
from onnxdpp.tables import evaluation_tables, inspection_tables, prune_tables, reasons

SIZE = ModelSize("0" * 64, 1234567, 308, 300, 1000)
LAYER = LayerResult(
    "fc1", ["fc1"], "neuron", 3, 2, [0, 2], "dpp", "rbf", 1.5, "affine", 0.5, 0.25, None, None, "inputs", 99, 0.1
)
EDGES = LayerResult(
    "fc1", ["fc1"], "edge", 3, 2, None, "importance", None, None, "none", None, None, None, None, "inputs", 99, 0.1
)
REPORT = Report(
    before=SIZE,
    after=ModelSize("f" * 64, 1000, 154, 154, None),
    layers=[LAYER],
    refusals=[("fc2", "its value 'y' is a graph output")],
    discrepancy={
        "y": {"relative_l2": 0.5, "max_abs": 1.0, "cosine": 0.25, "agreement": None},
        "label": {"agreement": 0.75},
    },
    evaluation={
        "held_out": True,
        "fitted": False,
        "rows": 2469,
        "discrepancy": {"y": {"relative_l2": 0.625, "max_abs": 2.0, "cosine": 0.5, "agreement": 1.0}},
        "accuracy": {},
        "latency": [],
    },
    provider="cpu",
    seed=0,
    rows=12345,
    random_data=False,
    notices=["something"],
    options={"keep": 0.5},
    versions={"onnx": "1.21.0"},
    seconds=1.25,
    gates=[
        {"gate": "max-discrepancy", "value": 0.625, "limit": 0.625, "passed": True},
        {"gate": "min-agreement", "value": None, "limit": 0.5, "passed": False},
    ],
).as_dict()
FOUND = Inspection(
    model=ModelSize("0" * 64, 10, 1, 1, None),
    opset=17,
    producer="a tool",
    layers=[FoundLayer("fc1", "Gemm", "neuron", 3, 2, ["fc1"], ["fc2"]), FoundLayer("fc1", "Gemm", "edge", 8, 3)],
    refusals=[("fc2", "neuron", "because")],
    notices=["something"],
    versions={},
).as_dict()

EVALUATION = Evaluation(
    before=SIZE,
    after=ModelSize("f" * 64, 1000, 154, 154, None),
    gzip_bytes=(1000000, 900),
    discrepancy={"y": {"relative_l2": 0.5, "max_abs": 1.0, "cosine": 0.25, "agreement": 0.875}},
    accuracy={
        "y": {
            "before": 0.75, "after": 0.5, "change": -0.25, "low": -0.5, "high": 0.125,
            "lost": 3, "gained": 1, "rows": 8,
        }
    },
    latency=[{"rows": 1, "before": 0.002, "after": 0.001, "ratio": 0.5, "disturbed": 0.25, "rounds": 10}],
    memory={
        "before": {"peak": 9000, "start": 1000, "load_seconds": 0.5},
        "after": {"peak": 5000, "start": 1000, "load_seconds": 0.25},
    },
    threads=2,
    provider="cpu",
    rows=12345,
    random_data=False,
    notices=["something"],
    options={"labels": None},
    versions={},
    seconds=1.25,
).as_dict()  # fmt: skip
DATA = {"report": REPORT, "inspection": FOUND, "evaluation": EVALUATION}

Path_ = tuple[str | int, ...]


def changed(data: dict[str, Any], path: Path_, value: object) -> dict[str, Any]:
    """A copy with another value at a path; None of `...` takes the key away."""
    data = copy.deepcopy(data)
    *way, last = path
    place: Any = data
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize("name", [*DATA, "comparison"])
def test_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_schema_version_is_that_of_the_code() -> None:
    assert schema("report")["properties"]["schema"]["const"] == reports.SCHEMA
    assert schema("inspection")["properties"]["schema"]["const"] == reports.INSPECTION_SCHEMA
    assert schema("evaluation")["properties"]["schema"]["const"] == reports.EVALUATION_SCHEMA


@pytest.mark.parametrize("name", [*DATA, "comparison"])
def test_schema_requires_and_allows_the_same_keys(name: str) -> None:
    def look(part: Any) -> None:
        if isinstance(part, dict):
            if "properties" in part:
                assert part["required"] == list(part["properties"])
                assert part["additionalProperties"] is False
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    look(schema(name))


@pytest.mark.parametrize("name", DATA)
def test_schema_has_the_keys_in_the_order_of_the_report(name: str) -> None:
    assert list(DATA[name]) == schema(name)["required"]


@pytest.mark.parametrize("layers", [[], [LAYER], [EDGES], [LAYER, EDGES]])
def test_schema_of_reports(layers: list[LayerResult]) -> None:
    data = {**REPORT, "layers": [dict(vars(layer)) for layer in layers]}
    jsonschema.validate(data, schema("report"))


@pytest.mark.parametrize("name", DATA)
def test_schema_of_data(name: str) -> None:
    jsonschema.validate(DATA[name], schema(name))


@pytest.mark.parametrize(("path", "value"), [(("accuracy",), {}), (("latency",), []), (("memory",), None)])
def test_schema_of_an_evaluation_with_less(path: Path_, value: object) -> None:
    jsonschema.validate(changed(EVALUATION, path, value), schema("evaluation"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "onnxdpp/report/2"),
        (("seconds",), ...),
        (("surprise",), 1),
        (("model", "before", "sha256"), "x"),
        (("model", "after", "bytes"), 0),
        (("model", "after", "parameters"), 1.5),
        (("layers", 0, "kept"), 0),
        (("layers", 0, "keep"), [1, 1]),
        (("layers", 0, "keep"), [-1]),
        (("layers", 0, "unit"), "channel"),
        (("layers", 0, "beta"), 0),
        (("layers", 0, "loss"), -0.1),
        (("layers", 0, "loss"), "nan"),
        (("layers", 0, "seconds"), None),
        (("refusals", 0, "reason"), None),
        (("discrepancy", "y"), {}),
        (("discrepancy", "y", "agreement"), ...),
        (("discrepancy", "y", "cosine"), 1.1),
        (("discrepancy", "label", "max_abs"), 1.0),
        (("discrepancy", "label", "agreement"), 1.1),
        (("evaluation", "latency"), None),
        (("gates", 0, "limit"), None),
        (("provider",), "auto"),
        (("seed",), -1),
        (("rows",), 0),
        (("random_data",), 0),
        (("notices",), "text"),
    ],
)
def test_schema_refuses(path: Path_, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(REPORT, path, value), schema("report"))


def test_json_is_ascii_and_round_trips() -> None:
    data = changed(REPORT, ("layers", 0, "name"), "größe\x1b[2J\udcff\n")
    text = to_json(data)
    assert text.isascii()
    assert text.isprintable() is False  # line ends
    assert "\x1b" not in text
    assert text.endswith("}\n")
    assert json.loads(text) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_what_is_no_json(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(changed(REPORT, ("layers", 0, "loss"), value))


# Tables


def shown(data: dict[str, Any], width: int = 120, out: Path | None = Path("out.onnx"), encoding: str = "utf-8") -> str:
    tables = (
        prune_tables(data, out)
        if "seed" in data
        else evaluation_tables(data)
        if "gzip_bytes" in str(data)
        else inspection_tables(data)
    )
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, errors="backslashreplace", newline="\n")
    console = Console(file=file, width=width, highlight=False, markup=False)
    for part in tables:
        console.print(part)
    file.flush()
    return raw.getvalue().decode(encoding)


def row(text: str, first: str) -> list[str]:
    """The words of the line that begins with a word."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_table_of_a_report() -> None:
    text = shown(REPORT)
    assert row(text, "fc1") == ["fc1", "3", "2", "0.5", "0.25", "0.10"]
    assert row(text, "parameters") == ["parameters", "308", "154", "0.500"]
    assert row(text, "non-zeros") == ["non-zeros", "300", "154", "0.513"]
    assert row(text, "file") == ["file", "bytes", "1,234,567", "1,000", "0.001"]
    assert row(text, "MACs") == ["MACs", "per", "row", "-", "-", "-"]
    assert row(text, "y") == ["y", "0.5", "1", "0.25", "-"]
    assert row(text, "label") == ["label", "-", "-", "-", "0.75"]
    assert row(text, "fc2") == ["fc2", "its", "value", "'y'", "is", "a", "graph", "output"]
    assert "On 2,469 calibration rows held out:" in text
    assert row(text, "max-discrepancy") == ["max-discrepancy", "0.625", "0.625", "passed"]
    assert row(text, "min-agreement") == ["min-agreement", "missing", "0.5", "MISSED"]
    assert text.splitlines()[-1] == "wrote out.onnx (12,345 calibration rows on cpu, seed 0, 1.2 s)"


def test_table_has_no_columns_without_values() -> None:
    bare = {**REPORT, "evaluation": None, "gates": []}
    floats = changed(bare, ("discrepancy", "label"), ...)
    assert "agreement" not in shown(floats)
    integers = changed(bare, ("discrepancy", "y"), ...)
    assert "agreement" in shown(integers)
    assert "relative L2" not in shown(integers)


def test_table_without_outputs_to_compare_or_refusals() -> None:
    text = shown({**REPORT, "discrepancy": {}, "refusals": [], "evaluation": None})
    assert "output" not in text
    assert "left alone" not in text


def test_table_of_a_dry_run() -> None:
    assert shown({**REPORT, "gates": []}, out=None).splitlines()[-1].startswith("dry run: nothing written (")
    assert shown(REPORT, out=None).splitlines()[-1].startswith("gates missed: nothing written (")


def test_table_keeps_every_number_beside_long_names() -> None:
    text = shown(changed(REPORT, ("layers", 0, "name"), "/model/" + "x" * 200), width=60)
    (line,) = (line.split() for line in text.splitlines() if line.startswith("/model/"))
    assert line[1:] == ["3", "2", "0.5", "0.25", "0.10"]
    assert max(map(len, text.splitlines())) <= 60


def test_table_cuts_names_of_a_megabyte() -> None:
    data = changed(REPORT, ("layers", 0, "name"), "x" * 2**20)
    data = changed(data, ("refusals", 0, "reason"), "r" * 2**20)
    assert len(shown(data)) < 5000


@pytest.mark.parametrize(
    "name", ["\x1b[2Jevil", "a\nb", "a\rb", "\x07", "\x9b2J", "a\u202eb", "\udcff", "[bold]x[/bold]"]
)
def test_table_escapes_what_a_terminal_would_obey(name: str) -> None:
    data = changed(REPORT, ("layers", 0, "name"), name)
    data = changed(data, ("refusals", 0, "name"), name)
    data["discrepancy"] = {name: {"relative_l2": 0.0, "max_abs": 0.0}}
    text = shown(data, out=Path(name))
    assert all(character.isprintable() or character == "\n" for character in text)
    visible = name if name.isprintable() else name.encode("unicode_escape", "surrogatepass").decode()
    assert text.count(visible) == 4


def test_table_of_findings_has_sizes_only_where_there_are_any() -> None:
    assert "size" not in shown(FOUND)
    data = changed(FOUND, ("layers", 0, "expected_size"), 12345.67)
    data["layers"].insert(1, {**FOUND["layers"][0], "name": "fc9"})
    assert row(shown(data), "fc1") == ["fc1", "3", "2", "12,345.7"]
    assert row(shown(data), "fc9") == ["fc9", "3", "2", "-"]


def test_table_of_an_evaluation() -> None:
    text = shown(EVALUATION)
    assert row(text, "gzip") == ["gzip", "bytes", "1,000,000", "900", "0.001"]
    assert row(text, "latency,") == ["latency,", "1", "row", "2.000", "ms", "1.000", "ms", "0.500"]
    assert row(text, "load") == ["load", "time", "500.0", "ms", "250.0", "ms", "0.500"]
    assert row(text, "peak") == ["peak", "memory", "9,000", "5,000", "0.556"]
    assert row(text, "of") == ["of", "it", "for", "the", "model", "8,000", "4,000", "0.500"]
    assert row(text, "y") == ["y", "0.5", "1", "0.25", "0.875"]
    assert "0.7500   0.5000   -0.2500   -0.5000 to +0.1250      3        1" in text
    assert text.splitlines()[-1] == "12,345 rows on cpu, 2 threads (1.2 s)"


def test_table_of_an_evaluation_with_less() -> None:
    text = shown({**EVALUATION, "latency": [], "memory": None, "accuracy": {}, "discrepancy": {}})
    assert not {"latency,", "peak", "accuracy", "output"} & set(text.split())
    assert text.splitlines()[-1] == "12,345 rows on cpu (1.2 s)"


def test_table_of_findings_escapes_names() -> None:
    data = changed(FOUND, ("layers", 0, "name"), "\x1b[2J")
    data = changed(data, ("refusals", 0, "name"), "\x1b[2J")
    data = changed(data, ("producer",), "\x1b[2J")
    assert "\x1b" not in shown(data)
    assert shown(data).count("\\x1b[2J") == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_table_in_other_encodings(encoding: str) -> None:
    data = changed(REPORT, ("layers", 0, "name"), "größe漢")
    text = shown(data, encoding=encoding)
    assert "0.25" in text
    assert ("größe漢" if encoding == "utf-16" else "\\u6f22") in text


def test_reasons_are_told_once_with_all_names() -> None:
    many = [(f"n{i}", "because") for i in range(7)] + [("other", "for another reason")]
    assert list(reasons(many)) == [("n0, n1, n2, n3, n4, n5, n6", "because"), ("other", "for another reason")]
