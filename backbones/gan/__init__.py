"""Networks that make the larger picture in one call, without diffusion: RRDBNet (ESRGAN, Real-ESRGAN, BSRGAN, LDL)."""
