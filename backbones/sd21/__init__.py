"""Stable Diffusion 2.1 with a ControlNet, as DoSSR trained it, and the networks about it."""
