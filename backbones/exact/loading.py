"""`load` of the backbone `gaussian`. It imports torch when it is called."""

from typing import TYPE_CHECKING

from backbones.option import loads

if TYPE_CHECKING:
    import dosde

    from .photograph import StationaryGaussian

ABOUT = "a stationary Gaussian model of photographs"


@loads("gaussian")
def load(process: "dosde.Process | None" = None) -> "StationaryGaussian":
    """The backbone `gaussian`; the command line has no options for it."""
    from .photograph import StationaryGaussian

    return StationaryGaussian() if process is None else StationaryGaussian(process)
