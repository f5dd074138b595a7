# %% [markdown]
# # Samplers: many ways from noise to an image
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/03_samplers.ipynb)
#
# One network, trained once; every solver of the library from the same noise. How far each is from the exact solution, how fast it gets
# there, and what else a sampler can do: guidance, inpainting, interpolation, inversion. A few minutes on two CPU cores.

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
from scipy.integrate import solve_ivp
from tqdm.auto import tqdm

import diffusion_jax as dj
from diffusion_jax.samplers import SAMPLERS

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 1200))  # Of training.

# %% [markdown]
# ## A network that knows the digits, and also works without
#
# As in the [quick start](01_quickstart.ipynb), with batches of half the size, but one label in ten is replaced by the label for "no digit", number 10, so that the
# network is also an unconditional model (Ho & Salimans, 2022). The process is the continuous one of the linear schedule.

# %%
digits = dj.data.load("digits", "train")
process = dj.VP()
unet = dj.UNet(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_classes=10
)
network = dj.as_functions(unet, digits.image_shape)
model = dj.DiffusionModel(process, "v", network.apply)

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
        label_dropout=0.1,
        no_label=10,
    ),
    donate_argnums=0,
)
bar = tqdm(dj.data.batches(digits, seed=0, batch_size=32, stop=num_steps), total=num_steps)
for step, batch in enumerate(bar, start=1):
    state, metrics = train_step(state, batch)
    if step % 100 == 0:
        bar.set_postfix(loss=f"{metrics.loss:.4f}")
params = state.ema["ema"]

# %% [markdown]
# ## All solvers from one $x_T$
#
# A sampler solves either the reverse SDE or the probability-flow ODE
# (Song et al., 2021, Equations 6 and 13):
#
# $$dx = \big[f x - g^2\, \nabla \log q_t(x)\big]\, dt + g\, d\bar w, \qquad \frac{dx}{dt} = f x - \tfrac12\, g^2\, \nabla \log q_t(x).$$
#
# A solver is an update rule on a grid of times. The noise of image $i$ depends on its key alone, so all rows below begin with the same
# $x_T$; each spends about 20 evaluations of the network (NFE) an image, but `dpmpp_3m`, whose 60 are the solution that the others are compared with below.
# `langevin` is missing, since it needs a process
# that keeps the signal: it is in [the next notebook](04_score_models.ipynb).

# %%
RUNS = {  # Name: steps, spacing of the times, options
    "ddim": (20, "trailing", {}),
    "dpmpp_2m": (20, "logsnr", {}),
    "dpmpp_3m": (60, "logsnr", {}),
    "unipc": (20, "logsnr", {}),
    "pndm": (11, "leading", {}),
    "heun": (10, "karras", {}),
    "ode_heun": (10, "logsnr", {}),
    "ode_adaptive": (2, "uniform", {"rtol": 1e-2, "atol": 1e-2}),
    "ancestral": (20, "logsnr", {"variance": "fixed_small"}),
    "dpmpp_2m_sde": (20, "logsnr", {}),
    "euler_maruyama": (20, "logsnr", {}),
    "reverse_diffusion": (20, "logsnr", {}),
    "predictor_corrector": (10, "logsnr", {}),
}


def make_sampler(name, steps=None):
    default, spacing, options = RUNS[name]
    grid = dj.make_grid(process, steps or default, spacing)
    return SAMPLERS[name].bind(grid=grid, process=process)(**options)


@partial(jax.jit, static_argnames=("name", "steps"))
def sample(params, keys, labels, name, steps=None):
    denoise = dj.clip_denoised(model.denoiser(params, labels))
    result = dj.sample_loop(denoise, make_sampler(name, steps), keys, digits.image_shape)
    return result.images, result.stats.evaluations.mean()


keys, labels = dj.image_keys(0, np.arange(60)), np.arange(60) % 10
drawn = {name: jax.device_get(sample(params, keys, labels, name)) for name in RUNS}


# %%
def show_rows(rows, height=0.62):
    """Shows one row of pictures per name."""
    _, axes = plt.subplots(len(rows), figsize=(9, height * len(rows)))
    for ax, (name, images) in zip(axes, rows.items()):
        framed = np.pad(np.asarray(images)[..., 0], [(0, 0), (1, 1), (1, 1)], constant_values=1)
        ax.imshow(np.hstack(list(framed)), cmap="gray", vmin=-1, vmax=1)
        ax.set_axis_off()
        ax.text(-1, 5, name, ha="right", va="center")
    plt.show()


show_rows({f"{name}, {nfe:.0f} NFE": images[:12] for name, (images, nfe) in drawn.items()})

# %% [markdown]
# The upper eight solve the ODE, so they draw nearly the same images: they differ by their errors alone (`ode_adaptive` chooses its own
# steps, and took more). The lower five add noise on the way, and draw other images. Of these, `predictor_corrector` is far from done after so few
# steps: its images are still noisy. It is made for a thousand (Song et al., 2021).
#
# ## Error and quality against evaluations
#
# Of three ODE solvers, the root mean square distance from the solution in 60 steps of `dpmpp_3m`, and how often the nearest training digit has the
# class that was asked for: a crude judge, which looks only at whether a digit can be read.

# %%
train = digits.read(np.arange(digits.num_images))
pixels, classes = np.asarray(dj.data.to_model_range(train["image"])), np.asarray(train["label"])


def read(images):
    """The class of the nearest training digit."""
    a, b = (np.reshape(x, (len(x), -1)) for x in (images, pixels))
    return classes[((b**2).sum(1) - 2 * a @ b.T).argmin(1)]


fine, _ = drawn["dpmpp_3m"]
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, steps in {"ddim": (5, 10), "dpmpp_2m": (5, 10), "heun": (5,)}.items():
    runs = {n: jax.device_get(sample(params, keys, labels, name, n)) for n in steps}
    runs[RUNS[name][0]] = drawn[name]
    images, nfe = zip(*(runs[n] for n in sorted(runs)))
    left.loglog(nfe, [np.sqrt(np.square(x - fine).mean()) for x in images], "o-", label=name)
    right.semilogx(nfe, [(read(x) == labels).mean() for x in images], "o-", label=name)
left.set(xlabel="NFE", ylabel="distance from the fine solution")
right.set(xlabel="NFE", ylabel="share that is read as the digit asked for")
left.legend()
plt.show()

# %% [markdown]
# ## The order of convergence
#
# A solver of order $p$ has an error in proportion to $h^p$ for steps of size $h$: a line of slope $-p$ on logarithmic axes. To see
# it we need the true solution, so take data whose denoiser is known: a mixture of normal distributions in the plane,
# $\sum_k w_k\, \mathcal N(m_k, v_k I)$. With $y = x_t / \text{signal}$ and $\sigma = \text{std}/\text{signal}$, Bayes' rule says
#
# $$\mathbb E[x_0 \mid y] = \sum_k r_k \Big(m_k + \frac{v_k}{v_k + \sigma^2}\, (y - m_k)\Big), \qquad
#   r_k \propto w_k\, \mathcal N(y;\, m_k, (v_k + \sigma^2) I),$$
#
# and the ODE is $dy / d\log\sigma = y - \mathbb E[x_0 \mid y]$. SciPy solves it in float64.

# %%
w = np.array([0.3, 0.25, 0.2, 0.15, 0.1], np.float32)
m = np.array([[-0.6, -0.5], [0.5, -0.6], [0.7, 0.4], [-0.1, 0.6], [-0.8, 0.3]], np.float32)
v = np.array([0.15, 0.1, 0.2, 0.08, 0.12], np.float32) ** 2


def mean_x0(y, sigma, xp):
    """E[x_0 | y] of y with shape (n, 2), sigma with shape (n, 1)."""
    c = v + sigma**2
    away = y[:, None] - m
    logits = xp.log(w / c) - (away**2).sum(-1) / (2 * c)
    r = xp.exp(logits - logits.max(1, keepdims=True))
    r = r / r.sum(1, keepdims=True)
    return (r[..., None] * (m + (v / c)[..., None] * away)).sum(1)


def exact(x_t, point):
    signal, sigma = point.signal[:, None], point.sigma[:, None]
    x0 = mean_x0(x_t / signal, sigma, jnp)
    return dj.models.complete(point, x0, (x_t / signal - x0) / sigma)


points = dj.image_keys(0, np.arange(200))
grid = dj.make_grid(process, 2, "logsnr")  # All grids of this spacing begin and end like this one.
y_T = np.asarray(dj.samplers.first_noise(points, (2,)), np.float64) / grid.signal[0]
sigma = grid.std[:2] / grid.signal[:2]


def slope(log_sigma, y):
    y = y.reshape(-1, 2)
    return (y - mean_x0(y, np.full((len(y), 1), np.exp(log_sigma)), np)).ravel()


solution = solve_ivp(slope, np.log(sigma), y_T.ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
truth = grid.signal[1] * solution.y[:, -1].reshape(-1, 2)


@partial(jax.jit, static_argnames=("name", "steps"))
def to_last_point(keys, name, steps):
    sampler = SAMPLERS[name].bind(grid=dj.make_grid(process, steps + 1, "logsnr"))()
    return dj.sample_loop(exact, sampler, keys, (2,), stop=steps).images  # Not the step to the data.


THEORY = {"ddim": 1, "dpmpp_2m": 2, "ode_heun": 2, "dpmpp_3m": 3, "unipc": 4}
for name, theory in THEORY.items():
    steps = np.array([40, 80, 160])
    errors = [
        np.sqrt(np.square(to_last_point(points, name, int(n)) - truth).mean()) for n in steps
    ]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    plt.loglog(steps, errors, "o-", label=f"{name}: order {order:.1f}, in theory {theory}")
    assert abs(order - theory) < 0.6, f"{name} is of order {order:.2f}"
plt.xlabel("steps")
plt.ylabel("root mean square error of x at the last point")
plt.legend()
plt.show()

# %% [markdown]
# UniPC is of order 3, and its corrector adds one. With so few steps the orders are within about a half of theory. (`ode_heun` has two evaluations a step.)
#
# ## Guidance
#
# Guidance goes beyond the conditional model, away from the unconditional one:
# $\hat\varepsilon = \hat\varepsilon(x_t) + w\,(\hat\varepsilon(x_t, y) - \hat\varepsilon(x_t))$. Here $w = 0$ is unconditional and $w = 1$ conditional.


# %%
@jax.jit
def guided(params, keys, labels, scale):
    both = jnp.concatenate([labels, jnp.full_like(labels, 10)])
    denoise = dj.classifier_free(model.denoiser(params, both), scale)
    sampler = make_sampler("dpmpp_2m")
    return dj.sample_loop(dj.clip_denoised(denoise), sampler, keys, digits.image_shape).images


by_scale = {s: np.asarray(guided(params, keys, labels, s)) for s in (0.0, 1.0, 2.0, 4.0, 8.0)}
show_rows({f"scale {s:g}": images[:20] for s, images in by_scale.items()})
for s, images in by_scale.items():
    spread = np.mean([images[labels == k].std(0).mean() for k in range(10)])
    right = (read(images) == labels).mean()
    print(f"scale {s:g}: {right:.0%} read as asked; deviation within a class {spread:.2f}")

# %% [markdown]
# With guidance, all are read as the digit asked for, and the images of a class are more alike.
#
# ## Inpainting
#
# The left half is known of every $x_t$, since it is $\text{signal}\, x_0 + \text{std}\, \varepsilon$ there: put it in after each step. The right half then fits
# better if each stretch of steps is repeated, with noise added in between (RePaint: Lugmayr et al., 2022, Algorithm 1).

# %%
test = dj.data.load("digits", "test").read(np.arange(64))
x0 = jnp.repeat(dj.data.to_model_range(test["image"][:4]), 5, axis=0)
mask = np.arange(8)[None, :] < np.full((8, 1), 4)


@partial(jax.jit, static_argnames="resamplings")
def fill(params, keys, x0, resamplings):
    no_label = jnp.full(len(x0), 10)
    denoise = dj.clip_denoised(model.denoiser(params, no_label))
    sampler = make_sampler("ancestral", 30)
    known = dj.samplers.project_pixels(mask)
    return dj.samplers.inpaint(
        denoise, sampler, keys, x0, known, resamplings=resamplings, jump=5
    ).images


rows = {"test digit": x0, "known": jnp.where(mask[..., None], x0, 1.0)}
rows |= {f"{n} pass{'es' * (n > 1)}": fill(params, keys[:20], x0, n) for n in (1, 5)}
show_rows(rows)

# %% [markdown]
# ## Interpolation
#
# Mix two noised images at time $t$ and go back, as in Ho et al. (2020), Figure 8; here both have the same noise, so that the mixture has the noise of time $t$ as well:
# $\bar x_t = (1 - a)\, x_t + a\, x_t'$. With little noise both digits shine through each other; with much, little of either is left.


# %%
@jax.jit
def mix(params, keys, x0, other, fraction, point):
    denoise = dj.clip_denoised(model.denoiser(params, jnp.full(len(x0), 10)))
    return dj.samplers.interpolate(
        denoise, make_sampler("ancestral", 30), keys, x0, other, fraction, point
    ).images


fraction = np.linspace(0, 1, 11, dtype=np.float32)
first, second = (
    jnp.repeat(dj.data.to_model_range(test["image"][i][None]), 11, axis=0) for i in (3, 7)
)
same_key = dj.image_keys(1, np.zeros(11, int))
grid = make_sampler("ancestral", 30).grid
show_rows(
    {
        f"sigma = {grid.std[i] / grid.signal[i]:.2g}": mix(
            params, same_key, first, second, fraction, i
        )
        for i in (24, 20, 16, 12, 0)
    }
)

# %% [markdown]
# ## Inversion
#
# DDIM's map from $x_T$ to an image can be run backwards (Song et al., 2021, DDIM, Section 4.3), so real images have an $x_T$, and the arc between two of
# these (`slerp`) is another interpolation, without any noise.


# %%
@jax.jit
def encode(params, x0):
    denoise = model.denoiser(params, jnp.full(len(x0), 10))
    return dj.samplers.encode(denoise, make_sampler("ddim", 30).grid, x0, iterations=2).y


@jax.jit
def decode(params, x_T, keys):
    denoise = model.denoiser(params, jnp.full(len(x_T), 10))
    sampler = make_sampler("ddim", 30)
    return dj.sample_loop(denoise, sampler, keys, x_T.shape[1:], x_init=x_T).images


real = dj.data.to_model_range(test["image"][:11])
x_T = encode(params, real)
again = decode(params, x_T, keys[:11])
print(f"mean error of encoding and decoding: {127.5 * np.abs(again - real).mean():.2f} gray levels")
ends = encode(params, jnp.stack([first[0], second[0]] + [first[0]] * 9))
arc = dj.samplers.slerp(jnp.repeat(ends[:1], 11, 0), jnp.repeat(ends[1:2], 11, 0), fraction)
show_rows(
    {
        "test digits": real,
        "their latents / 2": x_T / 2,
        "decoded": again,
        "along the arc": decode(params, arc, keys[:11]),
    }
)

# %% [markdown]
# From the command line: `--mode=sample`, `--mode=inpaint`, `--mode=interpolate`, with `--config.sampler.name=...`.
