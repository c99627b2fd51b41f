"""`dosde train --config FILE`."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from .options import Unusable, path_of

if TYPE_CHECKING:
    from .options import Commands


_NEEDS_TRAIN = "dosde train needs the extra 'train' (in the repository: pip install '.[train]')"


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "train",
        usage="dosde train --config FILE [--resume | --overwrite]",
        help="train or fine-tune a network, on one machine or many",
        description="Train what a config (TOML) says: a pixel network, or DoSSR's ControlNet. Checkpoints, log and result go "
        "to the folder `out` of the config.",
        epilog="Several processes, on this machine or others: accelerate launch -m dosde train --config FILE. The keys of a "
        "config are in docs/training.md, examples in configs/.",
    )
    parser.add_argument("--config", type=path_of, required=True, metavar="FILE", help="see docs/training.md")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last checkpoint in `out`, if there is one")
    start.add_argument("--overwrite", action="store_true", help="start anew, and delete the run in `out`")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    rank = os.environ.get("RANK", "0")
    start = "resume" if arguments.resume else "overwrite" if arguments.overwrite else "new"
    try:
        import accelerate  # noqa: F401
        import safetensors  # noqa: F401
        import tqdm  # noqa: F401

        from backbones.training import config, loop, stop
    except ImportError as error:
        raise Unusable(f"{_NEEDS_TRAIN} ({error})") from None
    try:
        result = loop.train(config.load(arguments.config), start=start)
    except (ValueError, OSError, loop.Stopped) as error:
        which = "" if rank == "0" else f" (process {rank})"
        print(f"dosde train: error{which}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except stop.Interrupted as error:
        if rank == "0":
            print(error, file=sys.stderr)
        return 128 + error.number
    if rank == "0":
        print(f"wrote   {result}")
    return 0
