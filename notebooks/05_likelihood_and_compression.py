# %% [markdown]
# # Likelihood and compression
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/05_likelihood_and_compression.ipynb)
#
# How many bits does a model need for an image? The bound of Ho et al. (2020) term by term, its reading as a progressive code, and the exact
# likelihood of the probability-flow ODE. A few minutes on two CPU cores.

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
from functools import partial

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm.auto import tqdm

import diffusion_jax as dj
from diffusion_jax.reporting import show

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 1000))  # Of training.

# %% [markdown]
# ## A model of digits
#
# As in [the mathematics](02_ddpm_from_the_math.ipynb), on the linear schedule.

# %%
digits = dj.data.load("digits", "train")
process = dj.DDPM(dj.make_schedule("linear", 1000))
unet = dj.UNet(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
network = dj.as_functions(unet, digits.image_shape)
model = dj.DiffusionModel(process, "eps", network.apply)

optimizer = dj.training.make_optimizer(learning_rate=2e-3, warmup_steps=100)
averages = {"ema": dj.training.ema_decay(0.995)}
state = jax.jit(
    lambda key: dj.training.create_state(key, network, optimizer, averages=averages)
)(jax.random.key(0))
train_step = jax.jit(
    dj.training.make_train_step(
        dj.loss_function("simple", model), optimizer, jax.random.key(1), averages=averages
    ),
    donate_argnums=0,
)
bar = tqdm(dj.data.batches(digits, seed=0, batch_size=64, stop=num_steps), total=num_steps)
for step, batch in enumerate(bar, start=1):
    state, metrics = train_step(state, batch)
    if step % 100 == 0:
        bar.set_postfix(loss=f"{metrics.loss:.4f}")
params = state.ema["ema"]

# %% [markdown]
# ## The bound, term by term
#
# (Ho et al., 2020, Equation 5)
#
# $$-\log p(x_0) \le \underbrace{\mathrm{KL}(q(x_T \mid x_0) \Vert p(x_T))}_{L_T}
#   + \sum_{t > 1} \underbrace{\mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \Vert p(x_{t-1} \mid x_t))}_{L_{t-1}}
#   \underbrace{- \log p(x_0 \mid x_1)}_{L_0} .$$
#
# `variational_bound` computes all of them, in bits per dimension; here of 16 test digits, and every one of the 1,000 terms.

# %%
test = dj.data.load("digits", "test").read(np.arange(64))["image"]
x0 = dj.data.to_model_range(test)
keys = dj.image_keys(0, np.arange(16))
grid = dj.make_grid(process)


@partial(jax.jit, static_argnames="num_terms")
def bound_of(params, x0, keys, num_terms=None):
    denoise = dj.clip_denoised(model.denoiser(params))
    return dj.variational_bound(
        denoise, grid, x0, keys, variance="fixed_small", num_terms=num_terms
    )


bound = jax.device_get(bound_of(params, x0[:16], keys))
print(f"L_T {bound.prior.mean():.1e} + L_1 ... L_T-1 {(bound.rate - bound.prior).mean():.3f}", end=" ")
print(f"+ L_0 {bound.distortion.mean():.3f} = {bound.total.mean():.3f} bits/dim")

time, terms = grid.time[:-1], bound.terms.mean(1)
plt.semilogy(time[:-1], terms[:-1], label="$L_{t-1}$")
plt.semilogy(time[-1:], terms[-1:], "o", label="$L_0$")
plt.semilogy(time[:1], [bound.prior.mean()], "s", label="$L_T$")
plt.xlabel("t")
plt.ylabel("bits / dim")
plt.legend()
plt.show()

# %% [markdown]
# The terms are smallest where there is much noise, and grow toward the data: most bits are spent on details that nobody sees. An uncompressed digit has 8
# bits/dim; its pixels come in 17 levels, spread over 256, which could be coded in $\log_2 17 \approx 4.1$ by who knows that.
#
# ## A progressive code
#
# Read the bound as a message (Section 4.3): first $x_T$, then each $x_{t-1}$ given $x_t$, at a cost of $L_T$ and the $L_{t-1}$. After each step the
# receiver has a best guess, $\hat x_0(x_t)$. The bits sent so far are the rate, the error of the guess is the distortion: Figure 5 of
# the paper. The bits are counted here, not written: the library has no entropy coder yet.

# %%
rate, rmse = dj.likelihood.rate_distortion(bound.prior.mean(), terms, bound.x0_mse.mean(1))
done = np.arange(len(rate))
_, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for ax, x, y in zip(axes, (done, done, rate), (rmse, rate, rmse)):
    ax.plot(x, y)
axes[0].set(xlabel="reverse steps done", ylabel="distortion (RMSE, 0 to 255)")
axes[1].set(xlabel="reverse steps done", ylabel="rate (bits / dim)")
axes[2].set(xlabel="rate (bits / dim)", ylabel="distortion (RMSE, 0 to 255)")
plt.show()

# %% [markdown]
# The same as pictures: what the receiver sees after so many bits. Above $x_t$, below the guess.

# %%
at_rates = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]) * rate[-1] / 2
steps = np.minimum(np.searchsorted(rate, at_rates), len(rate) - 1)
predict = jax.jit(lambda params, x_t, point: model.predict(params, x_t, point).x0)
eps = jax.random.normal(jax.random.key(2), (len(steps), *digits.image_shape))
pictures = []
for i in (0, 3):
    x_t = dj.processes.q_sample(grid.at(steps), jnp.repeat(x0[i : i + 1], len(steps), 0), eps)
    guess = predict(params, x_t, grid.at(steps))
    pictures += [*x_t, x0[i], *guess, x0[i]]
bits = ", ".join(f"{rate[k]:.2f}" for k in steps)
show(jnp.stack(pictures), f"after {bits} bits/dim; last the digit itself", columns=len(steps) + 1)

# %% [markdown]
# ## The exact likelihood
#
# The probability-flow ODE maps images to noise one to one, so (Song et al., 2021, Equation 39)
#
# $$\log p_0(x_0) = \log p_T(x_T) + \int_0^T \nabla\cdot \tilde f_\theta(x_t, t)\, dt ,$$
#
# where the divergence is estimated by $z^\top J z$ for a random sign $z$ of each pixel (Hutchinson). It is a density, so the 256 levels of a pixel are first spread over their
# bins: **dequantization**, $x = x_0 + u$ with $u$ uniform over a level's bin. By Jensen's inequality
# $-\log_2 P(x_0) \le \mathbb E_u[-\log_2 p(x_0 + u)] + D \log_2 127.5$ (`bits_per_dim`).


# %%
@jax.jit
def exact_bits(params, images, keys):
    ends = dj.make_grid(process, 2)
    result = dj.likelihood.dequantized_likelihood(
        model.denoiser(params), ends, process, images, keys, rtol=1e-3, atol=1e-3
    )
    return dj.likelihood.bits_per_dim(result.log_likelihood, 64), result.evaluations


x = dj.likelihood.dequantize(test[:16], keys)
print(f"dequantization moves a pixel by up to {np.abs(x - x0[:16]).max() * 127.5:.2f} gray levels")
draws = [
    exact_bits(params, test[:16], dj.image_keys(seed, np.arange(16))) for seed in range(4)
]
exact = np.mean([bits for bits, _ in draws], 0)
print(f"exact {exact.mean():.3f}, bound {bound.total.mean():.3f} bits/dim; ", end="")
print(f"{np.mean(draws[0][1]):.0f} evaluations an image")
for bits, _ in draws:
    plt.plot(bound.total, bits, ".", c="tab:gray")
plt.plot(bound.total, exact, "o", label="mean of four dequantizations and probes")
ends = [min(exact.min(), bound.total.min()), max(exact.max(), bound.total.max())]
plt.plot(ends, ends, "k--", lw=0.8, label="equal")
plt.xlabel("bound (bits / dim)")
plt.ylabel("exact likelihood of the ODE (bits / dim)")
plt.legend()
plt.show()

# %% [markdown]
# The ODE and the chain are two models with the same network, so neither number bounds the other; and the ODE begins at the first timestep, whose noise
# it leaves in the images.
#
# ## Images unlike the training data
#
# A code that is short for digits is long for other images: by Kraft's inequality no code is short for all. The bound of test digits, and of
# three kinds that the model has not seen, from 100 of the 1,000 terms: they are drawn at random and weighted, so that the estimate is unbiased.

# %%
rng = np.random.default_rng(0)
kinds = {
    "test digits": test[:16],
    "inverted": 255 - test[:16],
    "shuffled pixels": rng.permuted(test[:16].reshape(16, 64), axis=1).reshape(test[:16].shape),
    "noise": rng.integers(0, 256, test[:16].shape, dtype=np.uint8),
}
bits = {}
for name, images in kinds.items():
    of_kind = bound_of(params, dj.data.to_model_range(images), keys, num_terms=100)
    bits[name] = np.asarray(of_kind.total)
    print(f"{name}: {bits[name].mean():.2f} bits/dim, of these rate {of_kind.rate.mean():.2f}")
show(np.concatenate([images[:12] for images in kinds.values()]), ", ".join(kinds), columns=12)

# %%
plt.figure(figsize=(7, 2.5))
for k, (name, values) in enumerate(bits.items()):
    plt.plot(values, np.full(16, -k), "|", ms=18, label=name)
plt.yticks(-np.arange(len(bits)), list(bits))
plt.ylim(-len(bits) + 0.4, 0.6)
plt.axvline(8, c="k", lw=0.8, ls="--")
plt.xlabel("bits / dim (dashed: 8, without a model)")
plt.show()

# %% [markdown]
# Measured over a whole split, with standard errors, by `diffusion-jax --mode=evaluate --config.eval.metrics=bpd,ode_bpd`; see the
# [page on likelihood](https://github.com/diffusion-jax/diffusion_jax/blob/main/docs/likelihood.md).
