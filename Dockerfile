# Image of the command for launch/gke.sh; docs/scaling.md says how to build it.
FROM python:3.12-slim

# tpu, or of GPUs cuda (CUDA 13) or cuda12.
ARG EXTRA=tpu

WORKDIR /app
COPY setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY diffusion_jax diffusion_jax
RUN pip install --no-cache-dir ".[${EXTRA},gcs]"

# Where GKE puts the driver of NVIDIA's GPUs.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64

ENTRYPOINT ["diffusion-jax"]
