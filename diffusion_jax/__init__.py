"""Denoising diffusion models of images in JAX and Flax."""

__version__ = "0.1.0"
