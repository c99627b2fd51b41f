"""Models for dosde: closed-form ones, and adapters of networks, one family a module. Nothing heavy loads before its use.

An image backbone turns a low-resolution picture into a source, denoises towards the picture it could come from, and turns the
result into a picture again. `dosde upscale` runs any of `NAMES`.
"""

from typing import TYPE_CHECKING, Any

from dosde.check import Refused

from .backbone import Backbone, device, upscale

__all__ = ["NAMES", "Backbone", "device", "load", "upscale"]

NAMES = ("embedded", "gaussian", "sd21")


def load(name: str, **options: Any) -> Backbone:
    """A backbone by name; options: those of `backbones.embedded.load` and of `backbones.sd21.backbone.load`, which needs
    `weights`.

    Errors: ValueError for another name than one of `NAMES`, and where the weights cannot be loaded.
    """
    if name == "gaussian":
        from .exact.photograph import StationaryGaussian

        return StationaryGaussian(**options)
    if name == "embedded":
        from . import embedded

        return embedded.load(**options)
    if name == "sd21":
        from .sd21 import backbone

        return backbone.load(**options)
    raise Refused("backbone", name, f"one of {', '.join(NAMES)}")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """`backbones.gaussian` is `backbones.exact.gaussian`."""
        if name == "gaussian":
            from .exact import gaussian

            return gaussian
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
