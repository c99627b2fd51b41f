"""`backbones.pictures.degradation`, by the name that it had here."""

from backbones.pictures.degradation import *  # noqa: F403
