"""A small pixel-space network for 4x super-resolution, its file, and the backbone `embedded` that runs it. Plain torch."""

from .backbone import WEIGHTS, Embedded, load, save, source
from .network import Config, Network, ProcessConfig

__all__ = ["WEIGHTS", "Config", "Embedded", "Network", "ProcessConfig", "load", "save", "source"]
