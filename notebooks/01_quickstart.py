# %% [markdown]
# # Quick start: train a diffusion model on handwritten digits
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/01_quickstart.ipynb)
#
# Train a small U-Net, watch samples appear while it learns, and draw from it: two minutes on two CPU cores, less on a GPU.
# The [next notebook](02_ddpm_from_the_math.ipynb) says why it works.

# %%
# Installs diffusion_jax where it is missing, as on Colab, with the JAX that fits the accelerator there.
import glob
import importlib.util
import re
import subprocess

smi = subprocess.run("nvidia-smi", shell=True, capture_output=True, text=True).stdout
cuda = re.search(r"CUDA Version: (\d+)", smi)
if importlib.util.find_spec("diffusion_jax") is None:
    extra = "[tpu]" if glob.glob("/dev/accel*") else ""
    if cuda:
        extra = "[cuda]" if int(cuda[1]) >= 13 else "[cuda12]"
    package = f"diffusion_jax{extra} @ git+https://github.com/diffusion-jax/diffusion_jax"
    %pip install -q "{package}"

import jax

print("devices:", jax.devices())
if cuda and jax.default_backend() == "cpu":
    print("There is a GPU, but JAX does not see it: restart the runtime, and run this cell again.")

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from tqdm.auto import tqdm

import diffusion_jax as dj
from diffusion_jax.reporting import show

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 1200))  # Of training.

# %% [markdown]
# ## Data
#
# `load` prepares a data set once and opens it; batch $k$ is a function of the seed and $k$ alone. For your own images see
# [this notebook](06_your_own_images.ipynb).

# %%
digits = dj.data.load("digits", "train")
first = next(dj.data.batches(digits, seed=0, batch_size=40))
show(first["image"], f"40 of {digits.num_images} digits", columns=20)

# %% [markdown]
# ## Process, network, model
#
# The process turns images into noise in 1,000 steps. The network learns
# $v$, a mix of noise and image from which both follow. It is told the digit, too.

# %%
process = dj.DDPM(dj.make_schedule("cosine", 1000))
unet = dj.UNet(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_classes=10
)
network = dj.as_functions(unet, digits.image_shape)
model = dj.DiffusionModel(process, "v", network.apply)

# %% [markdown]
# ## The train step
#
# `make_train_step` returns a pure function of the state and a batch. The state holds an average of the parameters (EMA), which draws
# better images than the parameters themselves.

# %%
optimizer = dj.training.make_optimizer(learning_rate=2e-3, warmup_steps=100)
averages = {"ema": dj.training.ema_decay(0.995)}
state = jax.jit(
    lambda key: dj.training.create_state(key, network, optimizer, averages=averages)
)(jax.random.key(0))
train_step = jax.jit(
    dj.training.make_train_step(
        dj.loss_function("simple", model),
        optimizer,
        jax.random.key(1),
        averages=averages,
        conditional=True,
    ),
    donate_argnums=0,
)
print(f"{dj.models.count_parameters(state.params):,} parameters")


# %% [markdown]
# ## The sampler
#
# From noise to images in 20 steps of DPM-Solver++. It is a function of parameters and keys: image $i$ of a seed depends on nothing else,
# so we see the same images become clearer.

# %%
@jax.jit
def sample(params, keys, labels):
    denoise = dj.clip_denoised(model.denoiser(params, labels))
    sampler = dj.samplers.dpmpp_2m(dj.make_grid(process, 20, "trailing"))
    return dj.data.to_uint8(dj.sample_loop(denoise, sampler, keys, digits.image_shape).images)


keys, labels = dj.image_keys(0, np.arange(40)), np.arange(40) % 10

# %% [markdown]
# ## Train

# %%
live = display(show(sample(state.ema["ema"], keys, labels), columns=10), display_id=True)
losses = []
batches = dj.data.batches(digits, seed=0, batch_size=64, stop=num_steps)
for step, batch in enumerate(tqdm(batches, total=num_steps), start=1):
    state, metrics = train_step(state, batch)
    losses.append(metrics.loss)
    if step % 100 == 0 or step == num_steps:
        pictures = sample(state.ema["ema"], keys, labels)
        live.update(show(pictures, f"after {step:,} steps", columns=10))

# %%
losses = np.array(jax.device_get(losses))
smooth = losses[: len(losses) // 10 * 10].reshape(-1, 10).mean(1)
plt.semilogy(10 * np.arange(1, len(smooth) + 1), smooth)
plt.xlabel("step")
plt.ylabel("mean squared error")
plt.show()


# %% [markdown]
# ## The reverse process
#
# Above $x_t$, below the clean image $\hat x_0$ that the network predicts from it: first the outline, then the details.

# %%
@jax.jit
def sample_frames(params, keys, labels):
    denoise = dj.clip_denoised(model.denoiser(params, labels))
    sampler = dj.samplers.dpmpp_2m(dj.make_grid(process, 20, "trailing"))
    result = dj.sample_loop(denoise, sampler, keys, digits.image_shape, num_frames=11)
    return dj.data.to_uint8(result.frames_x_t), dj.data.to_uint8(result.frames_x0)


x_t, x0_hat = jax.device_get(sample_frames(state.ema["ema"], keys[:3], labels[:3]))
show(np.stack([x_t, x0_hat]).transpose(2, 0, 1, 3, 4, 5).reshape(-1, *digits.image_shape), columns=11)

# %% [markdown]
# ## Next
#
# The same with checkpoints, resume, metrics and pictures in one command:
#
#     diffusion-jax --config=digits
