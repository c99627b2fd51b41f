"""The command line: `dosde upscale INPUT... -o OUT`, `dosde evaluate --pairs FOLDER` or `--compare FILE...`,
`dosde convert CHECKPOINT -o FOLDER`, `dosde train --config FILE`.

Exit status: 0 all done (or kept), 1 some file failed (each is named, the rest is done) or a conversion or a training did,
2 a wrong argument or config, or results that must not be compared (nothing is done), 130 stopped by the keyboard, 143 by
SIGTERM. Nothing here needs torch before a command runs.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from dosde import __version__

from .commands import convert, evaluate, train, upscale
from .commands.options import Terminated, Unusable, line_of, status_of


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: runs one command, and returns its exit status."""
    _fill_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    out, err = _Lasting(sys.stdout), _Lasting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _terminable():
        ended: SystemExit | None = None
        status: str | int | None
        try:
            status = _run(argv)
        except SystemExit as stop:  # of argparse: --help, or a wrong argument
            ended, status = stop, stop.code
        finally:
            out.flush()
            err.flush()
        if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
            print(f"dosde: error: the standard output cannot be written: {out.lost.strerror}", file=sys.stderr)
            status = status or 1
    if ended is not None:
        raise SystemExit(status)
    return int(status or 0)


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int]
    parser: argparse.ArgumentParser
    run, parser = arguments.run
    try:
        return run(arguments)
    except Unusable as error:
        parser.error(str(error))
    except ValueError as error:
        from dosde.check import Refused

        if not isinstance(error, Refused):
            raise
        parser.error(str(error))
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return status_of(stop)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line of bounded length, whatever they repeat of the user's."""

    def error(self, message: str) -> NoReturn:
        super().error(line_of(" ".join(message.split())))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dosde", description="Diffusion that starts from a known source.")
    parser.add_argument("--version", action="version", version=f"dosde {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (upscale, evaluate, convert, train):
        own = command.add(commands)
        own.set_defaults(run=(command.run, own))
    return parser


# -- Streams and signals ----------------------------------------------------------------------------------------------------


class _Lasting:
    """A stream whose messages are dropped once it cannot be written: a full disk, a reader that has gone. The work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        return self._unless_lost(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._unless_lost(self._stream.flush)

    def _unless_lost(self, write: Callable[[], Any]) -> Any:
        if self.lost is not None:
            return None
        try:
            return write()
        except OSError as error:
            self.lost = error
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())  # or what is buffered fails again when Python ends
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _fill_standard_streams() -> None:
    """Opens those of 0, 1 and 2 that are closed, or the next file that is opened would be written to as one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP as Ctrl-C, so that no file is left half written."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if here}
    before = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}  # nohup ignores SIGHUP
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
