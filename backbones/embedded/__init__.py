"""A small pixel-space network for 4x super-resolution, its file, and the backbone `embedded` that runs it. Plain torch."""

from typing import TYPE_CHECKING, Any

from .loading import WEIGHTS, load

if TYPE_CHECKING:
    from .backbone import Embedded, save, source
    from .network import Config, Network, ProcessConfig

__all__ = ["WEIGHTS", "Config", "Embedded", "Network", "ProcessConfig", "load", "save", "source"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What needs torch, loaded at its first use."""
        if name in ("Config", "Network", "ProcessConfig"):
            from . import network

            return getattr(network, name)
        if name in __all__:
            from . import backbone

            return getattr(backbone, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
