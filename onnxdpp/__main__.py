"""Entry point: runs the command line and turns every error into one line and an exit code."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import NoReturn

from onnxdpp.errors import MachineError, NothingToPrune, OnnxdppError

INTERRUPTED, TERMINATED = 130, 143
OLDEST_ONNX = (1, 21)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``onnxdpp`` and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _open_standard_streams()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # the reader has gone (`| head`): the work is done all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    try:
        _check_environment()
        import click

        from onnxdpp.cli import cli
        from onnxdpp.tables import reasons

        try:
            cli.main(list(arguments), prog_name="onnxdpp", standalone_mode=False)
        except click.exceptions.Exit as exit_:
            return exit_.exit_code
        except click.Abort:
            return _fail("interrupted", INTERRUPTED)
        except click.ClickException as error:
            error.show(file=sys.stderr)
            return error.exit_code
        except NothingToPrune as error:
            _fail(str(error), error.exit_code)
            for names, reason in reasons(error.refusals):
                print(f"  {names}: {reason}", file=sys.stderr)
            return error.exit_code
    except OnnxdppError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ImportError as error:
        if debug:
            traceback.print_exc()
        return _fail(f"A package cannot be imported: {error}. Run: pip install --upgrade onnxdpp", 5)
    except MemoryError:
        return _fail("Out of memory. A smaller --batch-size takes less.", 5)
    return 0


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"onnxdpp: {' '.join(message.split())}", file=sys.stderr)
    return code


def _terminate(_: int, __: FrameType | None) -> NoReturn:
    # As an exception, so that temporary files are removed on the way out.
    raise SystemExit(TERMINATED)


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
    if onnx is None or tuple(int(part) for part in onnx.split(".")[:2]) < OLDEST_ONNX:
        raise MachineError(
            f"onnxdpp needs onnx >= 1.21, found {onnx or 'none'}. Run: pip install --upgrade onnx"
        )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
