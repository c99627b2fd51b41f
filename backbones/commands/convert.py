"""`dosde convert CHECKPOINT -o FOLDER`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backbones import whole

from .options import NEEDS_SD21, Unusable, flag, line_of, path_of, require, status_of

if TYPE_CHECKING:
    from .options import Commands


def add(commands: "Commands") -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "convert",
        usage="dosde convert [CHECKPOINT...] -o OUT [...]",
        help="weights of DoSSR, DiffBIR, ResShift or SinSR: released checkpoint to diffusers folder, and back",
        description="Convert a checkpoint in the released layout (dossr_default.ckpt, DiffBIR v1; .ckpt or .safetensors; of "
        "ResShift and SinSR the two files, U-Net and autoencoder) to a folder in diffusers' layout, or such a folder to a "
        "checkpoint: a round trip is exact. Without CHECKPOINT, build the folder where fine-tuning starts from --base and "
        "--preprocessor.",
    )
    parser.add_argument(
        "checkpoint", nargs="*", type=path_of, metavar="CHECKPOINT", help="a file, ResShift's two, or a folder to convert back"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=path_of,
        required=True,
        metavar="OUT",
        help="a folder, or a .safetensors or .ckpt file for a folder; for one of ResShift another folder",
    )
    parser.add_argument(
        "--base", metavar="FOLDER", help="SD 2.1-base in diffusers' layout: tokenizer, and what CHECKPOINT lacks"
    )
    parser.add_argument(
        "--preprocessor", type=path_of, metavar="FILE", help="an RRDBNet (Real-ESRGAN, BSRGAN, LDL: .pth, .safetensors)"
    )
    parser.add_argument("--original-config", type=path_of, metavar="YAML", help="the release's, for what no tensor tells")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (default: as in CHECKPOINT)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns the exit status."""
    source, out = next(iter(arguments.checkpoint), None), arguments.out
    for given in (*arguments.checkpoint, arguments.base, arguments.preprocessor, arguments.original_config):
        same = given is not None and whole.identity(out) is not None and whole.identity(out) == whole.identity(Path(given))
        require(not same, "--out", out, f"it is an input ({given}); another name is needed")
    inside = source is not None and source.is_dir() and whole.within(out, source)
    require(not inside, "--out", out, f"a place outside {source}, which is read as a whole, is needed")
    try:
        return _convert(arguments, source, out)
    except KeyboardInterrupt as stop:
        print("stopped; nothing was written", file=sys.stderr)
        return status_of(stop)


def _convert(arguments: argparse.Namespace, source: Path | None, out: Path) -> int:
    try:
        from backbones import backbone
        from backbones.resshift import convert as resshift
        from backbones.sd21 import convert
    except ImportError as error:
        raise Unusable(f"{NEEDS_SD21} ({error})") from None
    try:
        if resshift.concerns(arguments.checkpoint):
            return _resshift(arguments)
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
            dtype = None if arguments.dtype is None else backbone.DTYPES[arguments.dtype]
            convert.to_folder(made, out, dtype=dtype, tokenizer=convert.tokenizer_folder(arguments.base))
    except ImportError as error:
        raise Unusable(f"{NEEDS_SD21} ({error})") from None
    except (ValueError, OSError) as error:
        print(f"dosde convert: error: {line_of(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    print(f"wrote   {out}")
    return 0


def _resshift(arguments: argparse.Namespace) -> int:
    """Converts ResShift's two files, or its folder; returns the exit status."""
    from backbones import backbone
    from backbones.resshift import convert
    from backbones.sd21.convert import check_out

    files, out, folder = arguments.checkpoint, arguments.out, arguments.checkpoint[0].is_dir()
    for option in ("base", "preprocessor", *(("original_config", "dtype") if folder else ())):
        if getattr(arguments, option) is not None:
            raise Unusable(f"{flag(option)}: not for {'a folder of ' if folder else ''}ResShift")
    if folder:
        convert.to_checkpoints(files[0], out)
    else:
        check_out(out)
        dtype = None if arguments.dtype is None else backbone.DTYPES[arguments.dtype]
        convert.to_folder(convert.parts_of_checkpoints(files, arguments.original_config), out, dtype=dtype)
    print(f"wrote   {out}")
    return 0
