"""The command line: options -> one call -> tables or JSON. It alone prints, with `terminal` and `gating`.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a gate missed or a layer that fails its test, 2
usage, 3 bad model or data, 4 nothing to prune, pack or unpack, 5 environment, 130 interrupted, 143 terminated.
"""

import signal
from pathlib import Path
from typing import Any

import click

from onnxdpp.cli_compare import compare, evaluate
from onnxdpp.cli_storage import pack, unpack
from onnxdpp.gating import MISSED, check_summary, gates, missed
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
    VALUES,
    Bytes,
    Keep,
    check_calib,
    conclude,
    importing,
    is_random,
    log_if,
    on_signal,
    output_of,
    progress_bar,
    say,
    say_notices,
    show,
    terminate,
)

GOALS = ("target_parameters", "target_macs", "target_bytes", "target_discrepancy")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="onnxdpp")
def cli() -> None:
    """Make ONNX models smaller: drop neurons or edges, refit what stays, verify, report."""


@cli.command()
@click.argument("model")
@click.option("--verify", is_flag=True, help="Run MODEL to show that each layer can be cut.")
@click.option(
    "--calib",
    metavar="DATA",
    help="Show how many neurons each layer's DPP would keep on these rows.  [default for --verify: random:8]",
)
@KERNEL
@BETA
@EPSILON
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of random rows and of --verify.")
@click.option("--provider", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where MODEL runs.")
@MAX_ROWS
@MASK
@JSON
@DEBUG
def inspect(model: str, as_json: bool, debug: bool, **options: Any) -> None:
    """Show which layers of MODEL can be pruned, and why others cannot.

    With --verify, each layer is put to two tests: permuting its neurons leaves every output as it is, and cutting a
    random half gives what the whole model gives with their consumers' entries set to zero. Exit code 1 if one fails.

    With --calib, it also shows how many neurons of each layer a draw from its DPP keeps on average. Rounded, that is
    what `onnxdpp prune --keep auto --method dpp` keeps of a layer that is pruned alone.
    """
    with importing():
        from onnxdpp.inspecting import inspect as run
    from onnxdpp.report import to_json
    from onnxdpp.tables import inspection_tables

    log_if(debug)
    check_calib(options["calib"])
    with progress_bar(not options["verify"] and options["calib"] is None) as progress:
        found = run(model, progress=progress, **options)
    say_notices(found)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show(inspection_tables(found))
    failed = [layer["name"] for layer in found["layers"] if layer["verdict"] and not layer["verdict"]["passed"]]
    if failed:
        names = ", ".join(map(ascii, failed))
        say(f"error: Layers that fail their test: {names}. That is a bug in onnxdpp; leave them out with --skip.")
        click.get_current_context().exit(MISSED)


@cli.command()
@click.argument("model")
@CALIB
@click.option("--keep", type=Keep(), metavar="F", help="Fraction that stays, 0 < F <= 1; auto: as the DPP draws.")
@click.option("--pattern", metavar="N:M", help="Instead, for edges: N of every M consecutive inputs (2:4).")
@click.option("--target-parameters", type=float, metavar="F", help="Instead: at most this fraction of the parameters.")
@click.option("--target-macs", type=float, metavar="F", help="Instead: at most this fraction of the multiplications.")
@click.option("--target-bytes", type=Bytes(), metavar="BYTES", help="Instead: a file of at most this size.")
@click.option(
    "--target-discrepancy", type=float, metavar="D", help="Instead: outputs no further than this, on rows held out."
)
@click.option(
    "--allocation",
    default="auto",
    show_default=True,
    metavar="auto|measured|uniform",
    help="How a target is spread over layers.",
)
@click.option("--apply", metavar="REPORT", help="Instead: the neurons that an earlier report kept.")
@click.option("-o", "--output", metavar="OUT", help="Default: <stem>.pruned.onnx beside MODEL.")
@click.option("--unit", default="neuron", show_default=True, metavar="neuron|edge", help="What is dropped.")
@click.option(
    "--method",
    metavar="auto|dpp|dpp-sample|obs|omp|wanda|fluctuation|importance|random",
    help="auto: the best of several on rows held out.  [default: auto; dpp where its options are given]",
)
@KERNEL
@click.option(
    "--swaps",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Swap up to N neurons of each layer, while the error of the refit falls.",
)
@click.option(
    "--sensitivity/--no-sensitivity",
    default=None,
    help="Weigh errors by what the model's outputs feel of them; by default with auto, for neurons.",
)
@click.option(
    "--sweeps",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Choose each layer again, N times, with the others as they are.",
)
@click.option(
    "--polish",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Move weights N times round, so that the outputs come nearer to the original's.",
)
@BETA
@EPSILON
@REFIT
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="PATTERN[=KEEP]",
    help="Prune only these; the last match decides.",
)
@SKIP
@click.option("--round-to", type=int, default=1, show_default=True, metavar="N", help="Widths become multiples of N.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of draws and of random rows.")
@PROVIDER
@click.option(
    "--batch-size", type=int, metavar="N", help="Rows in one run.  [default: the model's, else up to 256 in 8 MiB]"
)
@MASK
@click.option(
    "--memory",
    type=Bytes(),
    default="2GiB",
    show_default=True,
    metavar="BYTES",
    help="Of one matrix of second moments; wider consumers are refitted by channels.",
)
@MAX_ROWS
@click.option(
    "--storage",
    metavar="dense|packed|sparse|auto",
    help="How weights with zeros are stored.  [default: auto for edges, packed models and float16; else dense]",
)
@VALUES
@click.option("--data", metavar="DATA", help="Try the pruned model on these rows too.")
@click.option("--labels", metavar="NAME", help="The array of --data that holds the class of each row.")
@gates
@click.option("--keep-going", is_flag=True, help="Write OUT though a gate is missed.")
@click.option("--report", metavar="FILE.json", help="Write the report there.")
@click.option("--html", metavar="FILE.html", help="Write the report there as a page with pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@QUIET
@click.option("--force", is_flag=True, help="Overwrite OUT and the reports.")
@click.option("--dry-run", is_flag=True, help="Do everything but write OUT.")
@DEBUG
def prune(
    model: str,
    calib: str,
    output: str | None,
    report: str | None,
    summary: bool,
    html: str | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
    keep_going: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Prune MODEL: choose what stays, drop the rest, refit, verify, write OUT.

    Patterns are case-sensitive globs on layer names, as `onnxdpp inspect` shows them.

    If a gate is missed, OUT is not written and the exit code is 1. Gates on answers look at --data; without, at every
    fifth row of --calib, which pruning does not see then.
    """
    with importing():
        from onnxdpp.api import prune as run
        from onnxdpp.graph.model import check_input, check_output, stored_data, write_text

        if html is not None:
            from onnxdpp.html import template_environment

            template_environment()  # is it there? Before the long work.
    from onnxdpp.report import to_json
    from onnxdpp.tables import prune_tables

    log_if(debug)
    out = output_of(model, output, "pruned")
    check_calib(calib)
    check_summary(summary, as_json)
    if all(options[name] is None for name in ("keep", "pattern", "apply", *GOALS)):
        raise click.UsageError(
            "Missing option '--keep' (or a '--target-...'; for neurons '--apply'; for edges '--pattern').",
            click.get_current_context(),
        )
    check_input(model)
    source = Path(model)
    data = [given for given in (calib, options["data"]) if given and not is_random(given)]
    reports = [given for given in (options["baseline"], options["apply"]) if given]
    inputs = [source, *map(Path, data), *map(Path, reports)]
    if force:  # what is not there yet is no data file
        inputs += stored_data(source)
    if not dry_run:
        check_output(out, inputs=inputs, force=force)
    if report is not None:
        check_output(report, inputs=inputs, force=force, others=[out])
    if html is not None:
        check_output(html, inputs=inputs, force=force, others=[out, *([] if report is None else [report])])
    # As an exception, so that temporary files are removed on the way out.
    with on_signal(signal.SIGTERM, terminate):
        with progress_bar(quiet) as progress:
            result = run(model, calib, progress=progress, details=html is not None, **options)
        text = to_json(result.report)
        page = None if html is None else result.html()
        writing = not dry_run and (keep_going or not missed(result.report))
        if writing:
            result.save(out, force=force)
        if report is not None:
            write_text(report, text)
        if html is not None and page is not None:
            write_text(html, page)
    if not quiet:
        say_notices(result.report)
    conclude(result.report, prune_tables(result.report, out if writing else None), summary, as_json, quiet)


for command in (evaluate, compare, pack, unpack):
    cli.add_command(command)
