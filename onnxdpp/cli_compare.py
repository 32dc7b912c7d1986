"""The commands that lay models, or methods, side by side: `evaluate` and `compare`."""

import signal
from pathlib import Path
from typing import Any

import click

from onnxdpp.errors import UsageError
from onnxdpp.gating import check_summary, gates
from onnxdpp.terminal import (
    BETA,
    CALIB,
    DEBUG,
    EPSILON,
    JSON,
    KERNEL,
    MASK,
    MAX_ROWS,
    PROVIDER,
    QUIET,
    REFIT,
    SKIP,
    check_calib,
    conclude,
    importing,
    is_random,
    log_if,
    on_signal,
    progress_bar,
    say_notices,
    show,
    terminate,
)


@click.command()
@click.argument("original")
@click.argument("pruned")
@click.option("--data", required=True, metavar="DATA", help=".npz, .npy, a folder of them, or random:ROWS.")
@click.option("--labels", metavar="NAME", help="The array of DATA that holds the class of each row.")
@click.option("--threads", type=int, default=1, show_default=True, metavar="N", help="For latency and memory.")
@click.option("--latency/--no-latency", default=True, help="Time both, in turn.  [default: latency]")
@click.option("--memory/--no-memory", default=True, help="Measure the memory of each.  [default: memory]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of random rows.")
@PROVIDER
@click.option("--batch-size", type=int, metavar="N", help="Rows in one run, the second that is timed.")
@MAX_ROWS
@MASK
@gates
@click.option("--report", metavar="FILE.json", help="Write the findings there.")
@JSON
@QUIET
@click.option("--force", is_flag=True, help="Overwrite the report.")
@DEBUG
def evaluate(
    original: str,
    pruned: str,
    data: str,
    report: str | None,
    summary: bool,
    as_json: bool,
    quiet: bool,
    force: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Compare PRUNED with ORIGINAL: answers, accuracy, size, latency, memory.

    Any two models will do that have the same inputs and outputs. If a gate is missed, the exit code is 1.
    """
    with importing():
        from onnxdpp.evaluating import evaluate as run
        from onnxdpp.graph.model import check_input, check_output, stored_data, write_text
    from onnxdpp.report import to_json
    from onnxdpp.tables import evaluation_tables

    log_if(debug)
    if not data:
        raise UsageError("--data is empty. Name the data.")
    check_summary(summary, as_json)
    for model in (original, pruned):
        check_input(model)
    if report is not None:
        named = [given for given in (data, options["baseline"]) if given and not is_random(given)]
        stored = [part for model in (original, pruned) for part in stored_data(Path(model))] if force else []
        check_output(report, inputs=[original, pruned, *named, *stored], force=force)
    with on_signal(signal.SIGTERM, terminate), progress_bar(quiet) as progress:
        found = run(original, pruned, data, progress=progress, **options)
    text = to_json(found)
    if report is not None:
        write_text(report, text)
    if not quiet:
        say_notices(found)
    conclude(found, evaluation_tables(found), summary, as_json, quiet)


@click.command()
@click.argument("model")
@CALIB
@click.option("--data", metavar="DATA", help="What errors are measured on.  [default: every fifth row of --calib]")
@click.option("--labels", metavar="NAME", help="The array in --data with the class of each row: counts wrong ones.")
@click.option("--keep", metavar="F,F,...", help="Fractions that stay.  [default: 0.9,0.7,0.5,0.3,0.1,0.05,0.02]")
@click.option("--method", metavar="M,M,...", help="As for prune; random is always added.  [default: all]")
@click.option("--unit", default="neuron", show_default=True, metavar="neuron|edge|both", help="What is dropped.")
@click.option("--repeat", type=int, default=5, show_default=True, metavar="R", help="Seeds of methods that draw.")
@click.option("--match", metavar="parameters", help="With both units: as many neurons as weigh what the edges do.")
@KERNEL
@BETA
@EPSILON
@REFIT
@click.option("--layer", "layers", multiple=True, metavar="PATTERN", help="Prune only these.")
@SKIP
@PROVIDER
@MAX_ROWS
@MASK
@click.option("--plot", metavar="FILE.png|.svg", help="Draw the curves there.")
@click.option("--csv", metavar="FILE", help="Write every run there.")
@JSON
@QUIET
@click.option("--force", is_flag=True, help="Overwrite the files.")
@DEBUG
def compare(
    model: str,
    calib: str,
    keep: str | None,
    method: str | None,
    plot: str | None,
    csv: str | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Show what each method makes of MODEL: its error against the parameters that are left.

    Nothing is fitted to the rows that errors are measured on, or chosen by them. Without --labels an error is the
    relative L2 of the worst output.
    """
    with importing():
        from onnxdpp.comparing import KEEPS, compare_methods, parse_keeps
        from onnxdpp.curves import as_csv
        from onnxdpp.graph.model import check_input, check_output, stored_data, write_bytes, write_text
    from onnxdpp.plotting import check_plot, image
    from onnxdpp.report import to_json
    from onnxdpp.tables import comparison_tables

    log_if(debug)
    check_calib(calib)
    keeps = KEEPS if keep is None else parse_keeps(keep)
    check_input(model)
    if plot is not None:
        check_plot(plot)
    inputs = [Path(model), *(Path(given) for given in (calib, options["data"]) if given and not is_random(given))]
    if force:
        inputs += stored_data(Path(model))
    if plot is not None:
        check_output(plot, inputs=inputs, force=force)
    if csv is not None:
        check_output(csv, inputs=inputs, force=force, others=[] if plot is None else [plot])
    with on_signal(signal.SIGTERM, terminate):
        with progress_bar(quiet) as progress:
            found = compare_methods(
                model,
                calib,
                keeps=keeps,
                methods=None if method is None else _split(method),
                progress=progress,
                **options,
            )
        if plot is not None:
            write_bytes(plot, image(found, Path(plot).suffix))
        if csv is not None:
            write_text(csv, as_csv(found))
    if not quiet:
        say_notices(found)
    if as_json:
        click.echo(to_json(found), nl=False)
    elif not quiet:
        show(comparison_tables(found))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
