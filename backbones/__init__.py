"""Models for dosde: closed-form ones, and adapters of networks, one family a module. Nothing heavy loads before its use.

An image backbone turns a low-resolution picture into a source, denoises towards the picture it could come from, and turns the
result into a picture again. `dosde upscale` runs any of `NAMES`.
"""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import Backbone, device, upscale

__all__ = ["NAMES", "Backbone", "device", "load", "module", "named_by", "upscale"]

NAMES = ("embedded", "gaussian", "sd21", "resshift", "gan")


def module(name: str) -> ModuleType:
    """The module of a backbone: its `load`, which declares the options, and `ABOUT`. It needs no package.

    Raises:
        Refused: for another name than one of `NAMES`.
    """
    if name == "gaussian":
        from .exact import loading as gaussian

        return gaussian
    if name == "embedded":
        from .embedded import loading as embedded

        return embedded
    if name == "sd21":
        from .sd21 import loading as sd21

        return sd21
    if name == "resshift":
        from .resshift import loading as resshift

        return resshift
    if name == "gan":
        from .gan import loading as gan

        return gan
    from dosde.check import Refused

    raise Refused("backbone", name, f"one of {', '.join(NAMES)}")


def load(name: str, **options: Any) -> "Backbone":
    """A backbone by name.

    Args:
        name: one of `NAMES`.
        options: the keywords of `backbones.embedded.load`, or of the `load` of `backbones.sd21.loading`,
            `backbones.resshift.loading` or `backbones.gan.loading`, which need `weights`.

    Raises:
        Refused: for another name, an option that is wrong, and weights that cannot be loaded.
        ImportError: a package is missing; the error names it, and the extra that has it.
    """
    own = module(name)
    try:
        backbone: Backbone = own.load(**options)
    except ImportError as error:
        extra = "sd21" if name in ("sd21", "resshift", "gan") else "images"
        said = f"the backbone {name} needs the extra {extra!r} (in the repository: pip install '.[{extra}]') ({error})"
        raise ImportError(said, name=error.name) from error
    return backbone


def named_by(weights: str | Path) -> str:
    """The name of the backbone that a folder, or a released file, of weights is for: by what it holds."""
    from dosde.check import Refused

    from .gan import names as gan
    from .resshift import folders, names

    try:
        if gan.released(weights):
            return "gan"
        resshift = folders.is_resshift(Path(weights)) or names.released(weights)
    except Refused:  # by the backbone, then
        resshift = False
    return "resshift" if resshift else "sd21"


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What needs torch, loaded at its first use. `backbones.gaussian` is `backbones.exact.gaussian`."""
        if name in ("Backbone", "device", "upscale"):
            from . import backbone

            return getattr(backbone, name)
        if name == "gaussian":
            from .exact import gaussian

            return gaussian
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
