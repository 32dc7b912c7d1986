"""Entry point: runs the command line and turns every error into one line and an exit code."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from onnxdpp.errors import MachineError, NothingToPrune, OnnxdppError

INTERRUPTED = 130
OLDEST_ONNX = (1, 21)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``onnxdpp`` and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _open_standard_streams()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _lost_output(error) or code
    try:
        sys.stderr.flush()
    except OSError:  # nobody reads it; at exit it would be flushed again, and the code would be 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    try:
        _check_environment()
        import click

        from onnxdpp.cli import cli
        from onnxdpp.tables import reasons

        try:
            # What cli.main() does, less its own handling of errors: it ends with 1 when a reader has gone.
            with cli.make_context("onnxdpp", list(arguments)) as context:
                cli.invoke(context)
        except click.exceptions.Exit as exit_:
            return exit_.exit_code
        except click.UsageError as error:
            if not arguments:  # the whole help is the message
                with contextlib.suppress(OSError):
                    error.show()
                return error.exit_code
            hint = f" Try '{error.ctx.command_path} --help'." if error.ctx else ""
            return _fail(f"{error.format_message()}{hint}", error.exit_code)
        except NothingToPrune as error:
            _fail(str(error), error.exit_code)
            with contextlib.suppress(OSError):
                for names, reason in reasons(error.refusals):
                    print(f"  {names}: {reason}", file=sys.stderr)
            return error.exit_code
    except OnnxdppError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ImportError as error:
        if debug:
            traceback.print_exc()
        advice = "In a folder with onnxdpp's sources, run: pip install --upgrade ."
        return _fail(f"A package cannot be imported: {error}. {advice}", 5)
    except MemoryError:
        return _fail("Out of memory. A smaller --batch-size takes less.", 5)
    except OSError as error:  # files are translated where they are used: what is left is standard output
        if debug:
            traceback.print_exc()
        return _lost_output(error)
    return 0


def _lost_output(error: OSError) -> int:
    """Give standard output up; where only its reader has gone (`| head`), the work is done all the same."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return 0
    return _fail(f"Cannot write to standard output: {error.strerror or error}.", MachineError.exit_code)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"onnxdpp: {' '.join(message.split())}", file=sys.stderr)
    return code


def _open_standard_streams() -> None:
    """Give closed standard streams a place, so that no file we open takes their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _check_environment() -> None:
    """Refuse, with the line that mends it, packages that cannot work."""
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if not runtimes:
        raise MachineError("onnxruntime is not installed. Run: pip install onnxruntime-gpu (or onnxruntime)")
    if len(runtimes) > 1:
        raise MachineError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other. Run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime)"
        )
    onnx = _installed("onnx")
    if onnx is None or tuple(int(part) for part in re.findall(r"\d+", onnx)[:2]) < OLDEST_ONNX:
        raise MachineError(f"onnxdpp needs onnx >= 1.21, found {onnx or 'none'}. Run: pip install --upgrade onnx")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
