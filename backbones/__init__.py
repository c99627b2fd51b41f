"""Models for dosde: closed-form ones, and adapters of networks, one family a module. Nothing heavy loads before its use.

An image backbone turns a low-resolution picture into a source, denoises towards the picture it could come from, and turns the
result into a picture again. `dosde upscale` runs any of `NAMES`.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from dosde.check import Refused

from .backbone import Backbone, device, upscale

__all__ = ["NAMES", "Backbone", "device", "load", "module", "upscale"]

NAMES = ("embedded", "gaussian", "sd21")


def module(name: str) -> ModuleType:
    """The module of a backbone: its `load`, which declares the options, and `ABOUT`. It needs torch alone.

    Raises:
        Refused: for another name than one of `NAMES`.
    """
    if name == "gaussian":
        from .exact import photograph

        return photograph
    if name == "embedded":
        from .embedded import backbone as embedded

        return embedded
    if name == "sd21":
        from .sd21 import backbone as sd21

        return sd21
    raise Refused("backbone", name, f"one of {', '.join(NAMES)}")


def load(name: str, **options: Any) -> Backbone:
    """A backbone by name.

    Args:
        name: one of `NAMES`.
        options: the keywords of `backbones.embedded.load`, or of `backbones.sd21.backbone.load`, which needs `weights`.

    Raises:
        Refused: for another name, an option that is wrong, and weights that cannot be loaded.
        ImportError: a package is missing; the error names it, and the extra that has it.
    """
    own = module(name)
    try:
        backbone: Backbone = own.load(**options)
    except ImportError as error:
        extra = "sd21" if name == "sd21" else "images"
        said = f"the backbone {name} needs the extra {extra!r}: pip install 'dosde[{extra}]' ({error})"
        raise ImportError(said, name=error.name) from error
    return backbone


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """`backbones.gaussian` is `backbones.exact.gaussian`."""
        if name == "gaussian":
            from .exact import gaussian

            return gaussian
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
