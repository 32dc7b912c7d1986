"""How weights are stored, as tables for people; see `tables`."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from onnxdpp.cells import duration, new_table, number, pair
from onnxdpp.report import FORMS, printable, shown_shape


def storage_tables(storage: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Each weight that has zeros, and what its form saves; then what that makes of the file.

    Parameters
    ----------
    storage : mapping
        The ``storage`` of a report.
    """
    stored = [part for part in storage["tensors"] if part["form"] != "dense"]
    whole = [part for part in storage["tensors"] if part["form"] == "dense"]
    if stored:
        patterned = any(part["pattern"] for part in stored)
        rounded = any(part["values"] != "same" for part in stored)
        titles = ["shape", "non-zeros", *["pattern"] * patterned, "stored as", "dense bytes", "bytes", "ratio"]
        table = new_table("weight", *titles, *["rounded by"] * rounded)
        for part in stored:
            table.add_row(
                printable(part["name"]),
                shown_shape(part["shape"]),
                f"{part['nonzero']:,}",
                *[part["pattern"] or "-"] * patterned,
                FORMS[part["form"]],
                *pair(part["dense_bytes"], part["bytes"]),
                *[number(part["max_error"]) if part["values"] != "same" else "-"] * rounded,
            )
        if len(stored) > 1:
            nonzero, before, after = (sum(part[key] for part in stored) for key in ("nonzero", "dense_bytes", "bytes"))
            table.add_row(
                "together", "", f"{nonzero:,}", *[""] * (patterned + 1), *pair(before, after), *[""] * rounded
            )
        yield table
    if whole:
        table = new_table("stays dense", "reason", text=2)
        for part in whole:
            pattern = "" if part["pattern"] in part["reason"] else f"{part['pattern']}: "
            table.add_row(printable(part["name"]), pattern + printable(part["reason"], 400))
        yield table
    if storage["files"] is not None:
        yield _files(storage["files"])


def _files(files: Mapping[str, Any]) -> RenderableType:
    old, new = files["dense"], files["stored"]
    table = new_table("storage", "dense", "stored", "ratio")
    table.add_row("file bytes", *pair(old["bytes"], new["bytes"]))
    table.add_row("gzip bytes", *pair(old["gzip_bytes"], new["gzip_bytes"]))
    if old["load"] is not None and new["load"] is not None:
        old, new = old["load"], new["load"]
        times = old["load_seconds"], new["load_seconds"]
        table.add_row("load time", *map(duration, times), f"{times[1] / times[0]:.3f}")
        table.add_row("peak memory of loading", *pair(old["peak"], new["peak"]))
        table.add_row("  of it for the model", *pair(old["peak"] - old["start"], new["peak"] - new["start"]))
    return table
