"""`dosde convert CHECKPOINT -o FOLDER`."""

import argparse
import sys
from typing import TYPE_CHECKING

from .options import NEEDS_SD21, Unusable, flag, path_of

if TYPE_CHECKING:
    from .options import Commands


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "convert",
        usage="dosde convert [CHECKPOINT] -o OUT [...]",
        help="weights of DoSSR or DiffBIR: released checkpoint to diffusers folder, and back",
        description="Convert a checkpoint in the released layout (dossr_default.ckpt, DiffBIR v1; .ckpt or .safetensors) to a "
        "folder in diffusers' layout, or such a folder to a checkpoint: a round trip is exact. Without CHECKPOINT, build the "
        "folder where fine-tuning starts from --base and --preprocessor.",
    )
    parser.add_argument("checkpoint", nargs="?", type=path_of, metavar="CHECKPOINT", help="a file, or a folder to convert back")
    parser.add_argument(
        "-o", "--out", type=path_of, required=True, metavar="OUT", help="a folder, or a .safetensors or .ckpt file for a folder"
    )
    parser.add_argument(
        "--base", metavar="FOLDER", help="SD 2.1-base in diffusers' layout: tokenizer, and what CHECKPOINT lacks"
    )
    parser.add_argument(
        "--preprocessor", type=path_of, metavar="FILE", help="an RRDBNet (Real-ESRGAN, BSRGAN, LDL: .pth, .safetensors)"
    )
    parser.add_argument(
        "--original-config", type=path_of, metavar="YAML", help="the release's, for num_head_channels (default: 64)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (default: as in CHECKPOINT)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns the exit status."""
    source, out = arguments.checkpoint, arguments.out
    try:
        from backbones.sd21 import convert
    except ImportError as error:
        raise Unusable(f"{NEEDS_SD21} ({error})") from None
    try:
        if source is not None and source.is_dir():
            for option in ("base", "preprocessor", "original_config", "dtype"):
                if getattr(arguments, option) is not None:
                    raise Unusable(f"{flag(option)}: only for a conversion to a folder, and CHECKPOINT is a folder")
            convert.to_checkpoint(source, out)
        else:
            convert.check_out(out)
            if source is not None:
                made = convert.parts_of_checkpoint(source, arguments.original_config, arguments.preprocessor, arguments.base)
            elif arguments.base is None or arguments.preprocessor is None:
                raise Unusable("CHECKPOINT: none; one is needed, or --base and --preprocessor, to start fine-tuning from")
            else:
                made = convert.start(arguments.base, arguments.preprocessor)
            dtype = None if arguments.dtype is None else convert.DTYPES[arguments.dtype]
            convert.to_folder(made, out, dtype=dtype, tokenizer=convert.tokenizer_folder(arguments.base))
    except ImportError as error:
        raise Unusable(f"{NEEDS_SD21} ({error})") from None
    except (ValueError, OSError) as error:
        print(f"dosde convert: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"wrote   {out}")
    return 0
