"""Reports as tables for people. Names from model files are shown with control characters escaped."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxdpp.report import printable as _safe


def prune_tables(report: dict[str, Any], out: Path | None) -> Iterator[RenderableType]:
    """What was done to each layer, what that made of the model, and what was left alone.

    Parameters
    ----------
    report : dict
        As the JSON Schema ``report`` says.
    out : Path or None
        The file written; None in a dry run.
    """
    contest = any(layer["contest"] for layer in report["layers"])
    table = _table("layer", "width", "kept", *["chosen by"] * contest, "loss before\nrefit", "loss", "seconds")
    for layer in report["layers"]:
        table.add_row(
            _safe(layer["name"]),
            f"{layer['width']:,}",
            f"{layer['kept']:,}",
            *[layer["method"]] * contest,
            _number(layer["loss_before_refit"]),
            _number(layer["loss"]),
            f"{layer['seconds']:.2f}",
        )
    yield table
    before, after = report["model"]["before"], report["model"]["after"]
    table = _table("model", "before", "after", "ratio")
    for key, title in (
        ("parameters", "parameters"),
        ("nonzero", "non-zeros"),
        ("bytes", "file bytes"),
        ("macs", "MACs per row"),
    ):
        table.add_row(title, *_pair(before[key], after[key]))
    yield table
    if report["discrepancy"]:
        titles = {"relative_l2": "relative L2", "max_abs": "max abs", "agreement": "agreement"}
        shown = [key for key in titles if any(key in values for values in report["discrepancy"].values())]
        table = _table("output", *(titles[key] for key in shown))
        for name, values in report["discrepancy"].items():
            table.add_row(_safe(name), *(_number(values.get(key)) for key in shown))
        yield table
    if report["refusals"]:
        yield _refusals("left alone", ((entry["name"], entry["reason"]) for entry in report["refusals"]))
    how = f"{report['rows']:,} calibration rows on {report['provider']}, seed {report['seed']}"
    done = "dry run: nothing written" if out is None else f"wrote {_safe(str(out), 4096)}"
    yield f"{done} ({how}, {report['seconds']:.1f} s)"


def inspection_tables(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Layers (neurons), projections (edges), and what cannot be pruned.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``inspection`` says.
    """
    model = found["model"]
    yield (
        f"{model['parameters']:,} parameters ({model['nonzero']:,} not zero), {model['bytes']:,} bytes, "
        f"opset {found['opset']}, exported by {_safe(found['producer']) or 'an unknown tool'}"
    )
    for unit, title, width, outputs in (
        ("neuron", "layer (--unit neuron)", "neurons", "consumer outputs"),
        ("edge", "layer (--unit edge)", "inputs", "outputs"),
    ):
        layers = [layer for layer in found["layers"] if layer["unit"] == unit]
        if layers:
            judged = any(layer["verdict"] for layer in layers)
            shared = any(len(layer["producers"]) > 1 for layer in layers)
            sized = any(layer["expected_size"] is not None for layer in layers)
            columns = [width, outputs] + ["producers"] * shared + ["DPP's own size"] * sized
            columns += ["permuted", "cut", "verdict"] * judged
            table = _table(title, *columns)
            for layer in layers:
                row = [f"{layer['width']:,}", f"{layer['outputs']:,}"] + [f"{len(layer['producers'])}"] * shared
                row += [_tenths(layer["expected_size"])] * sized
                table.add_row(_safe(layer["name"]), *row, *(_verdict(layer["verdict"]) if judged else ()))
            yield table
        refusals = [(entry["name"], entry["reason"]) for entry in found["refusals"] if entry["unit"] == unit]
        if refusals:
            yield _refusals(f"cannot be pruned (--unit {unit})", refusals)


def _verdict(verdict: dict[str, Any] | None) -> tuple[str, str, str]:
    if verdict is None:
        return "-", "-", "-"
    return _number(verdict["permuted"]), _number(verdict["cut"]), "sound" if verdict["passed"] else "FAILED"


def reasons(refusals: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Names and reason, the names that share a reason together.

    >>> list(reasons([("a", "r"), ("b", "s"), ("c", "r")]))
    [('a, c', 'r'), ('b', 's')]
    """
    grouped: dict[str, list[str]] = {}
    for name, reason in refusals:
        grouped.setdefault(_safe(reason, 400), []).append(_safe(name))
    for reason, names in grouped.items():
        yield ", ".join(names), reason


def _refusals(title: str, refusals: Iterable[tuple[str, str]]) -> Table:
    table = _table(title, "reason", text=2)
    for names, reason in reasons(refusals):
        table.add_row(names, reason)
    return table


def _table(*titles: str, text: int = 1) -> Table:
    """A table whose first `text` columns hold words, which may be folded, and the others numbers, which are not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(titles):
        if number < text:
            table.add_column(Text(title), overflow="fold")
        else:
            table.add_column(Text(title), justify="right", no_wrap=True)
    return table


def _pair(before: int | None, after: int | None) -> tuple[str, str, str]:
    if before is None or after is None:
        return "-", "-", "-"
    return f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
