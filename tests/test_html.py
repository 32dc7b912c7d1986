"""The report as a page: whole, closed to the outside, true to the report, and usable in a browser."""

import copy
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import ask, needs_browser
from invoking import Outcome, contents, data, invoke, mlp, refusal, stored
from onnx import ModelProto

import onnxdpp
from onnxdpp import rivals
from onnxdpp.api import PruneResult
from onnxdpp.html import command, page

VOID = {"meta", "br", "link", "img", "input", "hr"}
EMPTY_SVG = {"path", "circle", "rect", "image"}
HOSTILE = "x" * 60 + "</title></style><script>window.pwned=1</script>\"'><img src=x onerror=pwned=1>\x1b[2J\u202e漢\n"
HOSTILE += "&amp;" + "y" * 999


class Page(HTMLParser):
    """A page, taken apart; fails where a tag is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY_SVG, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(text)
        if not {"script", "style"} & set(self.open):
            self.words += text
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += text

    def row(self, first: str) -> list[str]:
        """The first row that begins with a word."""
        return next(row for row in self.rows if row and row[0].strip() == first)


@pytest.fixture(scope="module")
def result() -> PruneResult:
    """Of a contest, whatever single methods come to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "CLEAR", float("inf"))
        return pruned(mlp())


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return stored(mlp(), tmp_path / "net.onnx")


@pytest.fixture
def prune(capfd: pytest.CaptureFixture[str], tmp_path: Path, net: Path) -> Callable[..., Outcome]:
    np.savez(tmp_path / "calib.npz", x=data())
    given = ("--calib", tmp_path / "calib.npz", "--keep", 0.5, "--provider", "cpu")
    return lambda *more: invoke(capfd, "prune", net, *given, *more)


def pruned(model: ModelProto, *, details: bool = True, **options: Any) -> PruneResult:
    return onnxdpp.prune(model, {"x": data()}, **{"keep": 0.5, "provider": "cpu", **options}, details=details)


def hostile() -> PruneResult:
    """A network all whose names are meant to break out."""
    model = mlp()
    for node in model.graph.node:
        if node.name:
            node.name += HOSTILE
    model.graph.node[-1].output[0] = model.graph.output[0].name = "y" + HOSTILE
    return pruned(model)


# The page


def test_page_is_well_formed_and_its_ids_are_unique(result: PruneResult) -> None:
    tags = Page(result.html()).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert links == {"#layer-1", "#layer-2"}
    assert links <= {f"#{name}" for name in ids}


def test_page_needs_nothing_from_outside(result: PruneResult) -> None:
    text = result.html()
    assert "://" not in text
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes, tag
        href = attributes.get("href") or "#"
        assert href.startswith("#" if tag == "a" else ("#", "data:image/png;base64,")), href
    assert "url(" not in text
    assert "@import" not in text


def test_page_lets_only_its_own_script_run(result: PruneResult) -> None:
    parsed = Page(result.html())
    (policy,) = [found["content"] for tag, found in parsed.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-[\w+/]{43}='", policy
    )
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not [name for _, found in parsed.tags for name in found if name.startswith("on")]


def test_page_says_what_the_report_says(result: PruneResult) -> None:
    report, parsed = result.report, Page(result.html())
    before, after = report["model"]["before"], report["model"]["after"]
    for title, key in (("parameters", "parameters"), ("non-zeros", "nonzero"), ("MACs per row", "macs")):
        ratio = f"{after[key] / before[key]:.3f}"
        assert parsed.row(title)[1:4] == [f"{before[key]:,}", f"{after[key]:,}", ratio]
    for layer in report["layers"]:
        cells = [cell.strip() for cell in parsed.row(layer["name"])]
        numbers = [f"{layer[key]:.4g}" for key in ("loss_before_refit", "loss", "loss_held_out")]
        share = f"{layer['kept'] / layer['width']:.1%}"
        assert cells[1:8] == [str(layer["width"]), str(layer["kept"]), share, layer["method"], *numbers]
        contest = [row for row in parsed.rows if f"{layer['loss_held_out']:.4g}" in row and "evenly" in " ".join(row)]
        assert contest or all(entry["sensitivity"] for entry in layer["contest"])
    assert parsed.row("y")[1:3] == [f"{report['discrepancy']['y'][key]:.4g}" for key in ("relative_l2", "max_abs")]
    assert parsed.row("fc3")[1] == "its value 'y' is a graph output"
    for version in report["versions"].values():
        assert version in parsed.words
    assert before["sha256"] in parsed.words
    assert after["sha256"] in parsed.words


def test_page_marks_one_winner_of_each_contest(result: PruneResult) -> None:
    assert result.html().count('class="won"') == len(result.report["layers"]) + 1  # and of the whole runs


def test_page_shows_whole_runs_where_a_single_method_won(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "CLEAR", 0.0)
    found = pruned(mlp())
    parsed = Page(found.html())
    assert len(found.report["rivals"]) == 5
    for run in found.report["rivals"]:
        title = f"{run['method']} ({run['kernel']})" if run["kernel"] else run["method"]
        assert f"{run['discrepancy']:.4g}" in parsed.row(title)


def test_page_escapes_hostile_names() -> None:
    result = hostile()
    text = result.html()
    parsed = Page(text)
    tags = [tag for tag, _ in parsed.tags]
    assert (tags.count("script"), tags.count("img"), tags.count("title") > 0) == (1, 0, True)
    assert "window.pwned" not in "".join(parsed.texts["script"])
    assert "x</title></style><script>window.pwned=1</script>\"'><img" in parsed.words
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert max(map(len, parsed.words.split())) < 130
    text.encode()


def test_page_escapes_whatever_else_a_report_holds(result: PruneResult) -> None:
    report = copy.deepcopy(result.report)
    report["options"].update(calib=HOSTILE, skip=[HOSTILE, "\udcff"])
    report["notices"] = [HOSTILE]
    report["versions"] = {HOSTILE: HOSTILE}
    report["refusals"] = [{"name": HOSTILE, "reason": HOSTILE}]
    report["gates"] = [{"gate": HOSTILE, "limit": 1, "value": None, "passed": False}]
    for layer in report["layers"]:
        layer.update(members=[HOSTILE, HOSTILE], method=HOSTILE, kernel=HOSTILE)
    text = page(report, None, HOSTILE)
    tags = [tag for tag, _ in Page(text).tags]
    assert (tags.count("script"), tags.count("img")) == (1, 0)
    assert not [character for character in text if not character.isprintable() and character != "\n"]


def test_page_shows_gates_where_there_are_some(result: PruneResult) -> None:
    assert "gates" not in Page(result.html()).words
    gates = [
        {"gate": "max-discrepancy<b>", "limit": 0.5, "value": 0.25, "passed": True},
        {"gate": "min-speedup", "limit": 2, "value": None, "passed": False},
    ]
    parsed = Page(page({**result.report, "gates": gates}))
    assert parsed.row("max-discrepancy<b>") == ["max-discrepancy<b>", "0.25", "0.5", "✓ passed"]
    assert parsed.row("min-speedup") == ["min-speedup", "–", "2", "✗ missed"]
    assert "1 of 2" in parsed.words


def test_page_shows_what_was_tried_on_other_rows(result: PruneResult) -> None:
    answers = {"relative_l2": 0.125, "max_abs": 3.0, "cosine": 0.99, "agreement": 0.875}
    accuracy = {"before": 0.9, "after": 0.85, "change": -0.05, "low": -0.1, "high": 0.01, "lost": 7, "gained": 2}
    tried = {
        "held_out": False,
        "fitted": False,
        "rows": 1234,
        "discrepancy": {"tried<b>": answers},
        "accuracy": {"right<b>": {**accuracy, "rows": 100}},
        "latency": [{"rows": 32, "before": 0.004, "after": 0.001, "ratio": 0.25, "disturbed": 0.0, "rounds": 9}],
    }
    parsed = Page(page({**result.report, "evaluation": tried}))
    assert "1,234 rows: other data" in parsed.words
    assert parsed.row("tried<b>")[1:] == ["0.125", "3", "0.99", "0.875"]
    assert parsed.row("right<b>")[1:] == ["90.00 %", "85.00 %", "-5.00", "-10.00", "+1.00", "7", "2", "100"]
    assert parsed.row("32 rows")[1:] == ["4 ms", "1 ms", "0.250"]
    assert "0.125discrepancy" in parsed.words.replace("\n", "")


def test_page_without_details_or_anything_measured(result: PruneResult) -> None:
    report = copy.deepcopy(result.report)
    report["discrepancy"], report["refusals"], report["notices"] = {}, [], ["mind <this>"]
    for size in report["model"].values():
        size["macs"] = None
    for layer in report["layers"]:
        layer.update(loss=None, loss_before_refit=None, loss_held_out=None, contest=None, keep=None)
    parsed = Page(page(report))
    assert parsed.row("MACs per row")[1:4] == ["–", "–", "–"]
    assert "mind <this>" in parsed.words
    assert "svg" not in [tag for tag, _ in parsed.tags]


def test_page_of_edges_shows_who_reads_what() -> None:
    text = pruned(mlp(), unit="edge").html()
    assert "Outputs that read each input" in Page(text).words
    assert "<image" not in text


def test_command_repeats_what_was_asked(result: PruneResult) -> None:
    line = command(result.report["options"], "a b.onnx")
    assert line == "onnxdpp prune 'a b.onnx' --calib DATA --keep 0.5 --method auto --provider cpu"


def test_command_with_other_options() -> None:
    wanted = {"layers": ["fc1=0.5", "f?2"], "skip": ["fc3*"], "sensitivity": True, "round_to": 4, "beta": 2.0}
    line = command(pruned(mlp(), **wanted).report["options"], "m")
    assert line.split(" --", 2)[2].replace("'", "") == (
        "keep 0.5 --method dpp --beta 2.0 --layer fc1=0.5 --layer f?2 --skip fc3* --round-to 4 --provider cpu "
        "--sensitivity"
    )


def test_command_names_what_was_in_memory() -> None:
    earlier = pruned(mlp(), max_size_ratio=1.0).report
    line = command(pruned(mlp(), data={"x": data()}, baseline=earlier).report["options"], "m")
    assert "--calib DATA" in line
    assert "--data DATA --baseline REPORT.json" in line


def test_command_without_what_auto_brings() -> None:
    assert "--no-sensitivity" in command(pruned(mlp(), sensitivity=False).report["options"], "m")


# The command line


def test_html_is_written_beside_the_json_report(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    assert prune("--report", tmp_path / "r.json", "--html", tmp_path / "r.html").code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    parsed = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert report["model"]["after"]["sha256"] in parsed.words
    assert f"onnxdpp prune {tmp_path}/net.onnx" in parsed.words.replace("\\", "/") or sys.platform == "win32"


def test_html_changes_neither_model_nor_report(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    plain = prune("-o", tmp_path / "a.onnx", "--json")
    with_page = prune("-o", tmp_path / "b.onnx", "--json", "--html", tmp_path / "r.html")
    first, second = (re.sub(r'"seconds": [\d.e-]+', "", found.out) for found in (plain, with_page))
    assert first == second
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_html_is_written_in_a_dry_run_and_replaced_by_force_only(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    assert prune("--dry-run", "--html", target).code == 0
    target.write_text("old")
    before = contents(tmp_path)
    assert "r.html' exists. Use --force" in refusal(prune("--html", target), 2)
    assert contents(tmp_path) == before
    assert prune("--dry-run", "--force", "--html", target).code == 0
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("same", ["net.onnx", "calib.npz", "r.json", "net.pruned.onnx"])
def test_html_never_takes_the_place_of_another_file(prune: Callable[..., Outcome], tmp_path: Path, same: str) -> None:
    message = refusal(prune("--force", "--report", tmp_path / "r.json", "--html", tmp_path / same), 2)
    told = "Two outputs are the same file" if same in ("r.json", "net.pruned.onnx") else "is the input"
    assert told in message


def test_html_without_jinja_is_one_line_before_any_work(
    prune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    before = contents(tmp_path)
    message = refusal(prune("--html", tmp_path / "r.html"), 5)
    assert "The HTML report needs jinja2, which is not installed. Run: pip install 'jinja2>=3.1'" in message
    assert contents(tmp_path) | before == contents(tmp_path)
    assert not (tmp_path / "net.pruned.onnx").exists()
    assert prune().code == 0


# In a browser

LOOK = """
const body = page.documentElement;
return {
  width: view.innerWidth, scroll: body.scrollWidth, pwned: typeof view.pwned,
  dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
  images: [...page.querySelectorAll("image")].map((part) => part.getBoundingClientRect().width > 50),
};
"""
SORT = """
const table = page.querySelector("#layers table.sortable");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
const heads = [...table.tHead.rows[0].cells];
const said = { start: names() };
for (const [column, head] of heads.entries()) {
  if (!["layer", "width"].includes(head.textContent.trim())) continue;
  for (const turn of [1, 2]) {
    head.querySelector("button").click();
    said[`${head.textContent.trim()} ${head.getAttribute("aria-sort")}`] = names();
  }
}
return said;
"""
PROBE = """
const plot = page.querySelector("svg.probed"), box = plot.getBoundingClientRect();
const dot = plot.querySelector(".dot").getBoundingClientRect();
plot.dispatchEvent(new view.PointerEvent("pointermove", { clientX: dot.x + dot.width / 2 }));
return plot.querySelector(".probe text").textContent;
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_browser_shows_the_page_without_scrolling_sideways(width: int, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    target.write_text(hostile().html(), encoding="utf-8")
    said, console = ask(target, width, LOOK)
    assert console == []
    assert said["width"] == width
    assert said["scroll"] <= width
    assert said["pwned"] == "undefined"
    assert said["images"] == [True, True]


@needs_browser
def test_browser_sorts_columns(result: PruneResult, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    target.write_text(result.html(), encoding="utf-8")
    said, console = ask(target, 1280, SORT)
    assert console == []
    assert said == {
        "start": ["fc1", "fc2"],
        "layer ascending": ["fc1", "fc2"],
        "layer descending": ["fc2", "fc1"],
        "width descending": ["fc1", "fc2"],
        "width ascending": ["fc2", "fc1"],
    }


@needs_browser
def test_browser_reads_the_curve_under_the_pointer(tmp_path: Path) -> None:
    result = pruned(mlp(), method="obs")
    target = tmp_path / "r.html"
    target.write_text(result.html(), encoding="utf-8")
    said, console = ask(target, 1280, PROBE)
    assert console == []
    kept, loss = re.fullmatch(r"(\d+) kept: loss ([\d.]+)", said).groups()  # type: ignore[union-attr]
    assert int(kept) == 8
    assert float(loss) == pytest.approx(result.report["layers"][0]["loss"], rel=0.06)
