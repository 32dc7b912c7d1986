"""The report as one page for people: no network, light and dark, for screens and for paper.

Everything that comes from outside (names of layers and values, paths, reasons) goes through Jinja's escaping, after
what is unprintable was written out. Should something slip through all the same, the page's own policy lets no script
run but ours, known by its digest, and nothing be loaded from anywhere.
"""

import base64
import hashlib
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from onnxdpp.details import Details, LayerDetails
from onnxdpp.drawing import heatmap, histogram, loss_curve, readers_curve
from onnxdpp.errors import MachineError
from onnxdpp.options import Options
from onnxdpp.report import FORMS, printable, shown_shape, worst

if TYPE_CHECKING:
    from jinja2 import Environment

INK = (37, 99, 235)
"""The colour of similarities: one that is seen on white and on black."""
OPEN = 8
"""Layers up to which all pictures are open from the start."""
SIZES = (("bytes", "file bytes"), ("parameters", "parameters"), ("nonzero", "non-zeros"), ("macs", "MACs per row"))
FIGURES = {
    "relative_l2": "relative L2",
    "max_abs": "max abs",
    "cosine": "cosine",
    "agreement": "agreement",
}
FLAGS = {"layers": "layer"}
"""Options whose name on the command line is another."""
NAMED = {"apply": "REPORT.json", "baseline": "REPORT.json", "calib": "DATA", "data": "DATA"}
"""What stands for something that was in memory."""


def page(report: Mapping[str, Any], details: Details | None = None, model: str = "MODEL.onnx") -> str:
    """A report as HTML.

    Parameters
    ----------
    report : mapping
        As the JSON Schema ``report`` says.
    details : Details, optional
        What its pictures show; without, there are none.
    model : str
        Path of the model, for the title and for the command.

    Raises
    ------
    MachineError
        If Jinja is not installed.
    """
    environment = template_environment()
    shown = details.layers if details is not None else {}
    layers = [(layer, _pictures(layer, shown.get(layer["name"]))) for layer in report["layers"]]
    rows = details.rows if details is not None else {}
    script = _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    before, after = report["model"]["before"], report["model"]["after"]
    tried = report.get("evaluation")
    outputs = [*report["discrepancy"].values(), *(tried["discrepancy"].values() if tried else ())]
    return environment.get_template("report.html.j2").render(
        report=report,
        model=model,
        command=command(report["options"], model),
        script=script,
        digest=digest,
        style=_resource("report.css"),
        sizes=[(title, before[key], after[key]) for key, title in SIZES],
        figures={key: title for key, title in FIGURES.items() if _any_has(outputs, key)},
        tried=tried,
        storage=report.get("storage"),
        forms=FORMS,
        asked=given(report["options"]),
        worst=worst((tried["discrepancy"] if tried else report["discrepancy"]).values()),
        layers=layers,
        histograms={name: histogram(values) for name, values in rows.items()},
        rows=rows,
        refusals=_by_reason(report["refusals"]),
        gates=report.get("gates") or [],
        open=len(layers) <= OPEN,
        contest=any(layer["contest"] for layer, _ in layers),
    )


def template_environment() -> "Environment":
    """Jinja, with our templates and filters.

    Raises
    ------
    MachineError
        If it is not installed: ask before the long work.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MachineError(
            "The HTML report needs jinja2, which is not installed. Run: pip install 'jinja2>=3.1'"
        ) from error

    def shown(value: object) -> object:
        return printable(value, len(value)) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("onnxdpp"), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        name=printable, number=_number, count=_count, percent=_percent, sizeof=_sizeof, shape=shown_shape
    )
    return environment


def command(options: Mapping[str, Any], model: str) -> str:
    """The line that prunes a model with these options; what an earlier report, or memory, gave must be named again."""
    words = ["onnxdpp", "prune", model]
    for name, value in given(options).items():
        flag = "--" + FLAGS.get(name, name).replace("_", "-")
        if name == "apply":
            words += [flag, NAMED[name]]
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [word for entry in value for word in (flag, str(entry))]
        else:
            words += [flag, NAMED[name] if name in NAMED and value == "in memory" else str(value)]
    return shlex.join(words)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of a report those that are not as they are by default."""
    usual = {part.name: None if part.default is MISSING else part.default for part in fields(Options)}
    usual |= {
        "beta": "auto",
        "layers": [],
        "skip": [],
        "method": None,
        "sensitivity": options.get("method") == "auto" and options.get("unit") == "neuron",
        "storage": "auto" if options.get("unit") == "edge" else "dense",
    }
    return {name: value for name, value in options.items() if value != usual.get(name)}


def _pictures(layer: Mapping[str, Any], details: LayerDetails | None) -> dict[str, Any]:
    """Everything that is drawn of a layer."""
    shown = LayerDetails() if details is None else details
    curve, readers, alike = shown.curve, shown.readers, shown.similarity
    chosen = layer["kept"], layer["loss"], layer["loss_before_refit"]
    return {
        "curve": None if curve is None else loss_curve(curve, shown.least, *chosen),
        "readers": None if readers is None else readers_curve(readers),
        "map": None if alike is None else heatmap(alike.cells, alike.kept, INK),
        "details": shown,
    }


def _by_reason(refusals: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Reason -> the names that share it."""
    grouped: dict[str, list[str]] = {}
    for refusal in refusals:
        grouped.setdefault(refusal["reason"], []).append(refusal["name"])
    return grouped


def _any_has(parts: Iterable[Mapping[str, Any]], key: str) -> bool:
    return any(part.get(key) is not None for part in parts)


def _resource(name: str) -> str:
    return files("onnxdpp").joinpath("templates", name).read_text(encoding="utf-8")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if math.isfinite(value) else "∞"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}" if share >= 0.01 or share == 0 else f"{share:.2g}"


def _sizeof(value: float | None) -> str:
    """A large number in few digits.

    >>> _sizeof(1152593), _sizeof(999), _sizeof(25135)
    ('1.15 M', '999', '25.1 k')
    """
    if value is None:
        return "–"
    for unit, power in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= power:
            return f"{value / power:.3g} {unit}"
    return f"{value:g}"
