"""A benchmark of denoising diffusion: objective × schedule × guidance × sampler. Importing it imports no torch."""

__version__ = "0.2.0"
