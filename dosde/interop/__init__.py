"""Bridges to other libraries, none of which is imported here: each module speaks their interface in plain tensors."""

from .denoiser import from_denoiser as from_denoiser
