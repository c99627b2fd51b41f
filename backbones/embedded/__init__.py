"""A small pixel-space network for 4x super-resolution, its file, and the backbone `embedded` that runs it. Plain torch."""

from .backbone import NETWORK, WEIGHTS, Embedded, configured, load, save, source
from .network import Config, Network, ProcessConfig

__all__ = [
    "NETWORK",
    "WEIGHTS",
    "Config",
    "Embedded",
    "Network",
    "ProcessConfig",
    "configured",
    "load",
    "save",
    "source",
]
