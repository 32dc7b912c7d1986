"""Reports as tables for people. Names from model files are shown with control characters escaped."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from onnxdpp.cells import duration, new_table, number, pair
from onnxdpp.curves import CLASSIFICATION, HELD_OUT_ROWS
from onnxdpp.gates import shown
from onnxdpp.report import printable as _safe
from onnxdpp.storage_tables import storage_tables

KEEPS_IN_A_TABLE = 7


def prune_tables(report: dict[str, Any], out: Path | None) -> Iterator[RenderableType]:
    """What was done to each layer, what that made of the model, and what was left alone.

    Parameters
    ----------
    report : dict
        As the JSON Schema ``report`` says.
    out : Path or None
        The file written; None where none was: in a dry run, or because a gate is missed.
    """
    contest = bool(report["rivals"]) or any(layer["contest"] for layer in report["layers"])
    table = new_table("layer", "width", "kept", *["chosen by"] * contest, "loss before\nrefit", "loss", "seconds")
    for layer in report["layers"]:
        table.add_row(
            _safe(layer["name"]),
            f"{layer['width']:,}",
            f"{layer['kept']:,}",
            *[layer["method"]] * contest,
            number(layer["loss_before_refit"]),
            number(layer["loss"]),
            f"{layer['seconds']:.2f}",
        )
    yield table
    before, after = report["model"]["before"], report["model"]["after"]
    table = new_table("model", "before", "after", "ratio")
    for key, title in (
        ("parameters", "parameters"),
        ("nonzero", "non-zeros"),
        ("bytes", "file bytes"),
        ("macs", "MACs per row"),
    ):
        table.add_row(title, *pair(before[key], after[key]))
    yield table
    if report["storage"] is not None:
        yield from storage_tables(report["storage"])
    if report["discrepancy"]:
        yield _answers(report)
    tried = report["evaluation"]
    if tried is not None and not tried["fitted"]:  # those answers are above
        yield f"On {tried['rows']:,} {'calibration rows held out' if tried['held_out'] else 'rows of other data'}:"
        if tried["discrepancy"]:
            yield _answers(tried)
        if tried["accuracy"]:
            yield _accuracies(tried)
    if report["gates"]:
        yield _gates(report)
    if report["refusals"]:
        yield _refusals("left alone", ((entry["name"], entry["reason"]) for entry in report["refusals"]))
    how = f"{report['rows']:,} calibration rows on {report['provider']}, seed {report['seed']}"
    missed = any(not verdict["passed"] for verdict in report["gates"])
    done = f"wrote {_safe(str(out), 4096)}" if out else f"{'gates missed' if missed else 'dry run'}: nothing written"
    yield f"{done} ({how}, {report['seconds']:.1f} s)"


def evaluation_tables(found: dict[str, Any]) -> Iterator[RenderableType]:
    """What the pruned model costs beside the original, how far its answers lie from it, and how often each is right.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``evaluation`` says.
    """
    before, after = found["model"]["before"], found["model"]["after"]
    table = new_table("model", "original", "pruned", "ratio")
    for key, title in (
        ("bytes", "file bytes"),
        ("gzip_bytes", "gzip bytes"),
        ("parameters", "parameters"),
        ("nonzero", "non-zeros"),
        ("macs", "MACs per row"),
    ):
        table.add_row(title, *pair(before[key], after[key]))
    for part in found["latency"]:
        name = f"latency, {part['rows']:,} row{'s' * (part['rows'] > 1)}"
        table.add_row(name, duration(part["before"]), duration(part["after"]), f"{part['ratio']:.3f}")
    if found["memory"] is not None:
        old, new = found["memory"]["before"], found["memory"]["after"]
        times = old["load_seconds"], new["load_seconds"]
        table.add_row("load time", *map(duration, times), f"{times[1] / times[0]:.3f}")
        table.add_row("peak memory", *pair(old["peak"], new["peak"]))
        table.add_row("  of it for the model", *pair(old["peak"] - old["start"], new["peak"] - new["start"]))
    yield table
    if found["discrepancy"]:
        yield _answers(found)
    if found["accuracy"]:
        yield _accuracies(found)
    if found["gates"]:
        yield _gates(found)
    threads = f", {found['threads']} thread{'s' * (found['threads'] > 1)}" if found["latency"] else ""
    yield f"{found['rows']:,} rows on {found['provider']}{threads} ({found['seconds']:.1f} s)"


def packing_tables(found: dict[str, Any], out: Path) -> Iterator[RenderableType]:
    """How each weight is stored, and what that makes of the file.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``packing`` says.
    out : Path
        The file written.
    """
    yield from storage_tables(found["storage"])
    before, after = found["opset"]["before"], found["opset"]["after"]
    opset = f"opset {before} converted to {after}, " if before != after else ""
    rows = f"on {found['rows']:,} random rows on {found['provider']}, "
    same = f"packed and dense give the same bits {rows}" if found["rows"] else ""
    yield f"wrote {_safe(str(out), 4096)} ({opset}{same}{found['seconds']:.1f} s)"


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
            table = new_table(title, *columns)
            for layer in layers:
                row = [f"{layer['width']:,}", f"{layer['outputs']:,}"] + [f"{len(layer['producers'])}"] * shared
                row += [_tenths(layer["expected_size"])] * sized
                table.add_row(_safe(layer["name"]), *row, *(_verdict(layer["verdict"]) if judged else ()))
            yield table
        refusals = [(entry["name"], entry["reason"]) for entry in found["refusals"] if entry["unit"] == unit]
        if refusals:
            yield _refusals(f"cannot be pruned (--unit {unit})", refusals)
    if not found["layers"] and not found["refusals"]:
        yield "Nothing can be pruned: its graph has no Gemm, MatMul or Conv."


def _answers(report: dict[str, Any]) -> Table:
    titles = {"relative_l2": "relative L2", "max_abs": "max abs", "cosine": "cosine", "agreement": "agreement"}
    outputs = report["discrepancy"]
    shown = [key for key in titles if any(values.get(key) is not None for values in outputs.values())]
    table = new_table("output", *(titles[key] for key in shown))
    for name, values in outputs.items():
        table.add_row(_safe(name), *(number(values.get(key)) for key in shown))
    return table


def _accuracies(report: dict[str, Any]) -> Table:
    table = new_table("accuracy", "original", "pruned", "change", "95 % interval", "lost", "gained")
    for name, part in report["accuracy"].items():
        table.add_row(
            _safe(name),
            f"{part['before']:.4f}",
            f"{part['after']:.4f}",
            f"{part['change']:+.4f}",
            f"{part['low']:+.4f} to {part['high']:+.4f}",
            f"{part['lost']:,}",
            f"{part['gained']:,}",
        )
    return table


def _gates(report: dict[str, Any]) -> Table:
    table = new_table("gate", "value", "limit", "verdict")
    for verdict in report["gates"]:
        table.add_row(verdict["gate"], *shown(verdict), "passed" if verdict["passed"] else "MISSED")
    return table


def comparison_tables(found: dict[str, Any]) -> Iterator[RenderableType]:
    """The error of each method, row by row, at each keep.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``comparison`` says.
    """
    seeds = found["options"]["repeat"]
    spread = f"; mean ± standard deviation of {seeds} seeds where a method draws" if seeds > 1 else ""
    yield f"{found['measure']} in per cent{spread}"
    keeps = found["options"]["keep"]
    exact = found["measure"] == CLASSIFICATION
    for unit in dict.fromkeys(curve["unit"] for curve in found["curves"]):
        own = [curve for curve in found["curves"] if curve["unit"] == unit]
        sizes = [_left(points, found["model"]["nonzero"]) for points in zip(*(c["points"] for c in own), strict=True)]
        for first in range(0, len(keeps), KEEPS_IN_A_TABLE):
            part = slice(first, first + KEEPS_IN_A_TABLE)
            titles = [f"keep {keep:g}\n{size}" for keep, size in zip(keeps[part], sizes[part], strict=True)]
            table = new_table(f"--unit {unit}\nparameters", *titles)
            for curve in own:
                table.add_row(curve["method"], *(_error(point, exact) for point in curve["points"][part]))
            yield table
    unpruned = f"unpruned {_percent(found['unpruned'], exact)}, " if exact else "unpruned "
    where = f"{found['judged_rows']:,} rows of {_safe(found['data'], 4096)}"
    if found["data"] == HELD_OUT_ROWS:
        where = f"{found['judged_rows']:,} of them held out"
    yield (
        f"{unpruned}{found['model']['nonzero']:,} parameters "
        f"({found['rows']:,} calibration rows, judged on {where}, on {found['provider']}, "
        f"{len(found['runs'])} runs, {found['seconds']:.1f} s)"
    )


def _left(points: Iterable[dict[str, Any]], whole: int) -> str:
    """What the most parameters of these points are of the whole, in per cent."""
    sizes = [point["parameters"] for point in points if point["parameters"] is not None]
    return f"{100 * max(sizes) / whole:.1f} %" if sizes and whole else "-"


def _error(point: dict[str, Any], exact: bool) -> str:
    if point["error"] is None:
        return "-"
    spread = "" if point["deviation"] is None else f" ± {_percent(point['deviation'], exact, 2)}"
    return _percent(point["error"], exact) + spread


def _percent(value: float, exact: bool, digits: int = 3) -> str:
    """With two decimals, as counts of rows deserve; or else with so many digits."""
    return f"{100 * value:.2f}" if exact else f"{100 * value:.{digits}g}"


def _verdict(verdict: dict[str, Any] | None) -> tuple[str, str, str]:
    if verdict is None:
        return "-", "-", "-"
    return number(verdict["permuted"]), number(verdict["cut"]), "sound" if verdict["passed"] else "FAILED"


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
    table = new_table(title, "reason", text=2)
    for names, reason in reasons(refusals):
        table.add_row(names, reason)
    return table


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
