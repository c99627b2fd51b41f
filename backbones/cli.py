"""The command line: `dosde upscale INPUT... -o OUT`, `dosde evaluate --pairs FOLDER` or `--compare FILE...`,
`dosde convert CHECKPOINT -o FOLDER`, `dosde train --config FILE`.

Exit status: 0 all done (or kept), 1 some file failed (each is named, the rest is done) or a conversion or a training did,
2 a wrong argument or config, or results that must not be compared (nothing is done), 130 stopped by the keyboard.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from dosde import __version__
from dosde.check import Refused

from .commands import convert, evaluate, train, upscale
from .commands.options import Unusable


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: runs one command, and returns its exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int]
    parser: argparse.ArgumentParser
    run, parser = arguments.run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        return run(arguments)
    except (Refused, Unusable) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dosde", description="Diffusion that starts from a known source.")
    parser.add_argument("--version", action="version", version=f"dosde {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (upscale, evaluate, convert, train):
        own = command.add(commands)
        own.set_defaults(run=(command.run, own))
    return parser
