"""The commands `pack` and `unpack`; see `cli`."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxdpp.terminal import (
    DEBUG,
    JSON,
    QUIET,
    VALUES,
    importing,
    log_if,
    on_signal,
    output_of,
    progress_bar,
    say_notices,
    show,
    terminate,
)

if TYPE_CHECKING:
    from onnxdpp.storing import PackResult

FORCE = click.option("--force", is_flag=True, help="Overwrite OUT and the report.")
REPORT = click.option("--report", metavar="FILE.json", help="Write the findings there.")
PROVIDER = click.option(
    "--provider", default="cpu", show_default=True, metavar="auto|cpu|cuda", help="Where both are run to compare them."
)
SEED = click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the random rows.")


@click.command()
@click.argument("model")
@click.option("-o", "--output", metavar="OUT", help="Default: <stem>.packed.onnx beside MODEL.")
@click.option(
    "--storage",
    default="auto",
    show_default=True,
    metavar="packed|sparse|auto",
    help="A bit for each weight and the values that are not zero; ONNX's sparse initializers; whichever is smallest.",
)
@VALUES
@click.option("--opset", type=int, metavar="N", help="Convert MODEL to these operators first; packing needs 11.")
@PROVIDER
@SEED
@REPORT
@JSON
@QUIET
@FORCE
@DEBUG
def pack(model: str, output: str | None, debug: bool, **options: Any) -> None:
    """Write MODEL without the zeros in its weights: smaller, with the same answers at the same speed.

    Any ONNX file will do that has zeros in its weights. OUT holds standard operators that unpack them, which
    onnxruntime runs once, when it loads the model. Other runtimes may not: pack last. Exit code 4 if no weight would be
    smaller.
    """
    with importing():
        from onnxdpp.storing import pack as run

    log_if(debug)
    asked = {name: options.pop(name) for name in ("storage", "values", "opset", "provider", "seed")}
    _write(model, output, "packed", lambda progress: run(model, progress=progress, **asked), **options)


@click.command()
@click.argument("model")
@click.option("-o", "--output", metavar="OUT", help="Default: <stem>.unpacked.onnx beside MODEL.")
@PROVIDER
@SEED
@REPORT
@JSON
@QUIET
@FORCE
@DEBUG
def unpack(model: str, output: str | None, debug: bool, **options: Any) -> None:
    """Write a packed MODEL with dense weights again.

    They are those that `onnxdpp pack` or `prune` has packed, byte for byte. Exit code 4 if nothing in it is packed.
    """
    with importing():
        from onnxdpp.storing import unpack as run

    log_if(debug)
    asked = {name: options.pop(name) for name in ("provider", "seed")}
    _write(model, output, "unpacked", lambda progress: run(model, progress=progress, **asked), **options)


def _write(
    model: str,
    output: str | None,
    suffix: str,
    run: "Callable[[Callable[[str, float], None]], PackResult]",
    *,
    report: str | None,
    as_json: bool,
    quiet: bool,
    force: bool,
) -> None:
    """Check the names, do it, write and tell."""
    from onnxdpp.graph.model import check_input, check_output, stored_data, write_text
    from onnxdpp.report import to_json
    from onnxdpp.tables import packing_tables

    out = output_of(model, output, suffix)
    check_input(model)
    source = Path(model)
    inputs = [source, *(stored_data(source) if force else ())]
    check_output(out, inputs=inputs, force=force)
    if report is not None:
        check_output(report, inputs=inputs, force=force, others=[out])
    # As an exception, so that temporary files are removed on the way out.
    with on_signal(signal.SIGTERM, terminate):
        with progress_bar(quiet) as progress:
            result = run(progress)
        result.save(out, force=force)
        if report is not None:
            write_text(report, to_json(result.report))
    if not quiet:
        say_notices(result.report)
    if as_json:
        click.echo(to_json(result.report), nl=False)
    elif not quiet:
        show(packing_tables(result.report, out))
