# %% [markdown]
# # Score models, in the plane
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/04_score_models.ipynb)
#
# Noise-conditional score networks, Langevin dynamics, the score SDEs and the probability-flow ODE, on points instead of images: in two
# dimensions a score is an arrow, a sample is a path, and the true density is known. A few minutes on two CPU cores.

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

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffusion_jax as dj
from diffusion_jax.samplers import langevin, ode_heun, reverse_diffusion

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 3000))  # Of training of each network.

# %% [markdown]
# ## Data whose score is known
#
# Two moons, one with three quarters of the points: a mixture of 200 normal distributions along two half circles. With noise added,
# it is one still, so the density, and its score $\nabla \log q$, are known at every noise level:
#
# $$q(x_t) = \sum_k w_k\, \mathcal N(s\, m_k, (s^2 v + d^2) I), \qquad x_t = s\, x_0 + d\, \varepsilon .$$

# %%
theta = (np.arange(100) + 0.5) * np.pi / 100
upper = np.stack([np.cos(theta) - 0.5, np.sin(theta) - 0.25], -1)
lower = np.stack([0.5 - np.cos(theta), 0.25 - np.sin(theta)], -1)
means = 0.6 * np.concatenate([upper, lower])
weights = np.repeat([0.75, 0.25], 100) / 100
variance = 0.06**2


def draw(rng, n):
    return means[rng.choice(200, n, p=weights)] + np.sqrt(variance) * rng.normal(size=(n, 2))


def log_density_and_score(x, signal, std):
    c = signal**2 * variance + std**2
    away = x[:, None] - signal * means
    logits = np.log(weights) - (away**2).sum(-1) / (2 * c)
    top = logits.max(1, keepdims=True)
    r = np.exp(logits - top)
    log_density = np.log(r.sum(1)) + top[:, 0] - np.log(2 * np.pi * c)
    return log_density, -(r[..., None] * away).sum(1) / r.sum(1, keepdims=True) / c


rng = np.random.default_rng(0)
points = draw(rng, 2000)
axis = np.linspace(-1.5, 1.5, 80)
plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
_, axes = plt.subplots(1, 4, figsize=(12, 3.2), sharey=True, layout="constrained")
axes[0].scatter(*points.T, s=1, c="0.2")
axes[0].set(title="data", aspect="equal")
for ax, std in zip(axes[1:], (0.05, 0.3, 1.0)):
    density = np.exp(log_density_and_score(plane, 1.0, std)[0]).reshape(80, 80)
    ax.pcolormesh(axis, axis, density)
    ax.set(title=f"with noise of {std}", aspect="equal")
plt.show()

# %% [markdown]
# ## Learning the score
#
# A noise-conditional score network learns it at several noise levels $\sigma_i$ at once (Song & Ermon, 2019, Equations 5 and 6), from the
# noise alone:
#
# $$\sum_i \sigma_i^2\; \mathbb E\, \Big\lVert s_\theta(x + \sigma_i \varepsilon, \sigma_i) + \frac{\varepsilon}{\sigma_i} \Big\rVert^2
#   = \sum_i \mathbb E\, \lVert \varepsilon - \hat\varepsilon \rVert^2 \quad\text{for}\quad s_\theta = -\hat\varepsilon / \sigma_i ,$$
#
# the loss `simple` of the process `NCSN`. So a score model is a diffusion model, and one function trains all of this notebook. The network
# is a small perceptron, which sees points as images of shape (1, 1, 2).

# %%
network = dj.as_functions(dj.models.MLP(channels=128, num_res_blocks=3), (1, 1, 2))
CHUNK, BATCH = 20, 256  # Steps in one program; points in a batch.


def train(process, prediction):
    model = dj.DiffusionModel(process, prediction, network.apply)
    optimizer = dj.training.make_optimizer(2e-3, 200, decay="cosine", num_steps=num_steps)
    train_step = dj.training.make_train_step(
        dj.loss_function("simple", model, times=dj.losses.TIME_SAMPLERS["stratified"]()),
        optimizer,
        jax.random.key(1),
        averages={"ema": dj.training.ema_decay(0.995)},
    )
    steps = jax.jit(dj.training.make_multi_step(train_step, CHUNK), donate_argnums=0)
    state = dj.training.create_state(jax.random.key(0), network, optimizer, averages=["ema"])
    rng = np.random.default_rng(0)
    for _ in range(num_steps // CHUNK):
        x = draw(rng, CHUNK * BATCH).astype(np.float32)
        state, metrics = steps(state, {"image": x.reshape(CHUNK, BATCH, 1, 1, 2)})
    print(f"{process.__class__.__name__}: loss {metrics.loss.mean():.3f}")
    return model.denoiser(state.ema["ema"])


ncsn = dj.processes.NCSN(sigma_min=0.03, sigma_max=3.0, num_timesteps=12)
denoise = train(ncsn, "eps")

# %% [markdown]
# The learned score beside the exact one, at three of the levels. Far from the data at little noise, where there were no points
# to learn from, the two need not agree; that is why more than one level is needed.


# %%
def score_of(denoise, process, time, x):
    x = jnp.asarray(x, jnp.float32).reshape(-1, 1, 1, 2)
    return np.asarray(denoise(x, process.at(jnp.full(len(x), time))).score).reshape(-1, 2)


ticks = np.linspace(-1.5, 1.5, 19)
arrows = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
_, axes = plt.subplots(2, 3, figsize=(10, 6.8), sharex=True, sharey=True, layout="constrained")
for column, time in zip(axes.T, ncsn.levels[[2, 5, 8]]):
    std = np.exp(time)
    exact = log_density_and_score(arrows, 1.0, std)[1]
    learned = score_of(denoise, ncsn, time, arrows)
    for ax, score, name in zip(column, (learned, exact), ("learned", "exact")):
        ax.scatter(*points[:500].T, s=1, c="tab:orange")
        # By the logarithm of their length, so that short arrows can be seen beside long ones.
        size = np.linalg.norm(score, axis=1, keepdims=True)
        ax.quiver(*arrows.T, *(score / size * np.log1p(size)).T, angles="xy")
        ax.set(title=f"{name}, sigma = {std:.2f}", aspect="equal")
plt.show()

# %% [markdown]
# ## Annealed Langevin dynamics
#
# With the score alone one can draw points: the chain $x \leftarrow x + \alpha\, \nabla\log q(x) + \sqrt{2\alpha}\; z$ ends in $q$ (Langevin). But it takes
# very long to cross an empty region, so the share of each moon is wrong; and it fits to go through the levels from
# the noisiest to the least, with $\alpha \propto \sigma_i^2$ (Song & Ermon, 2019, Algorithm 1).

# %%
keys = dj.image_keys(0, np.arange(2000))
draw_points = lambda sampler, **kw: dj.sample_loop(denoise, sampler, keys, (1, 1, 2), **kw)
single_level = langevin(
    dj.make_grid(ncsn, None, (ncsn.levels[1], ncsn.levels[2])), num_moves=300, step_size=0.1
)
start = jax.random.uniform(jax.random.key(2), (2000, 1, 1, 2), minval=-1.5, maxval=1.5)
single = jax.jit(lambda: draw_points(single_level, x_init=start).images)()
annealed = jax.jit(lambda: draw_points(langevin(dj.make_grid(ncsn), num_moves=25), num_frames=5))()


def share_of_upper(x):
    """The share of the points that are nearer to the upper moon."""
    nearest = ((np.reshape(x, (-1, 1, 2)) - means) ** 2).sum(-1).argmin(1)
    return f"upper moon {np.mean(nearest < 100):.0%}"


frames = {"one level": single, "annealed: start": annealed.frames_x_t[0]}
frames |= {f"after {i}/4": annealed.frames_x_t[i] for i in (1, 2, 3, 4)}
_, axes = plt.subplots(1, 6, figsize=(15, 2.9), sharex=True, sharey=True, layout="constrained")
for ax, (name, x) in zip(axes, frames.items()):
    ax.scatter(*np.reshape(x, (-1, 2)).T, s=1, c="0.2")
    ax.set(title=name, xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
plt.show()
print(f"data: {share_of_upper(points)}; one level: {share_of_upper(single)}; ", end="")
print(f"annealed: {share_of_upper(annealed.images)}")

# %% [markdown]
# ## Three SDEs
#
# With ever more levels the noise becomes a process in continuous time $u \in [0, 1]$, $dx = f x\, du + g\, dw$ (Song et al., 2021, Section 3.4):
#
# | | $f$ | $g^2$ | signal | std |
# |---|---|---|---|---|
# | `VE` | $0$ | $d\sigma^2/du$ | $1$ | $\sigma(u)$ |
# | `VP` | $-\beta/2$ | $\beta$ | $e^{-B/2}$ | $\sqrt{1 - e^{-B}}$ |
# | `SubVP` | $-\beta/2$ | $\beta\,(1 - e^{-2B})$ | $e^{-B/2}$ | $1 - e^{-B}$ |
#
# with $B = \int_0^u \beta$. VE is NCSN with all levels, VP is DDPM with infinitely many steps.

# %%
PROCESSES = {
    "VE": dj.VE(sigma_min=0.01, sigma_max=3.0),
    "VP": dj.VP(),
    "sub-VP": dj.processes.SubVP(),
}
_, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
u = np.linspace(0, 1, 200)
for name, process in PROCESSES.items():
    first, last = process.ends
    at = process.at(first + (last - first) * u)
    for ax, values in zip(axes, (at.signal, at.std)):
        ax.plot(u, values, label=name)
axes[0].set(xlabel="u", ylabel="signal")
axes[1].set(xlabel="u", ylabel="std", yscale="log", ylim=(1e-3, 5))
axes[0].legend()
plt.show()

# %%
denoisers = {name: train(process, "v") for name, process in PROCESSES.items()}

# %% [markdown]
# ## Back to the data: a random path, or a smooth one
#
# Two equations have the same densities as the noising process, run backwards (Song et al., 2021, Equations 6 and 13): the reverse SDE, and the
# probability-flow ODE,
#
# $$dx = \big[f x - g^2\, \nabla \log q_u(x)\big]\, du + g\, d\bar w, \qquad \frac{dx}{du} = f x - \tfrac12\, g^2\, \nabla \log q_u(x).$$
#
# Below is the first coordinate of ten paths of each, over time from noise (left) to data (right), on the exact density at that time.

# %%
DRAWS = {"reverse SDE": (reverse_diffusion, 400), "ODE": (ode_heun, 100)}
drawn, paths = {}, {}
for name, process in PROCESSES.items():
    for kind, (rule, steps) in DRAWS.items():
        sampler = rule(dj.make_grid(process, steps))
        run = jax.jit(
            lambda keys: dj.sample_loop(denoisers[name], sampler, keys, (1, 1, 2), num_frames=101)
        )
        result = run(keys)
        drawn[name, kind] = np.reshape(result.images, (-1, 2))
        paths[name, kind] = np.reshape(result.frames_x_t, (101, -1, 2)), sampler.grid

_, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
for ax, ((name, kind), (x, grid)) in zip(axes.T.ravel(), paths.items()):
    done = np.linspace(0, grid.num_steps, 101).round().astype(int)
    height = 2 * max(1.0, grid.std[0])
    values = np.linspace(-height, height, 200)
    signal, std = grid.signal[done], grid.std[done]
    c = signal[:, None] ** 2 * variance + std[:, None] ** 2
    away = values[:, None, None] - signal[:, None] * means[:, 0]
    density = (weights * np.exp(-(away**2) / (2 * c)) / np.sqrt(2 * np.pi * c)).sum(-1)
    ax.pcolormesh(done / grid.num_steps, values, density / density.max(0), cmap="Blues")
    ax.plot(done / grid.num_steps, x[:, :10, 0], c="tab:red", lw=0.8)
    ax.set(title=f"{name}, {kind}", ylim=(-height, height), xlabel="share of the steps done")
plt.show()

# %% [markdown]
# Both end in the same distribution. Two paths of the ODE are never at one point at the same time; below are forty of them, from $x_T$ (dots) to the data.

# %%
_, axes = plt.subplots(2, 3, figsize=(11, 7.4), layout="constrained")
for k, name in enumerate(PROCESSES):
    x, grid = paths[name, "ODE"]
    axes[0, k].plot(*x[:, :40].transpose(2, 0, 1), c="tab:red", lw=0.6)
    axes[0, k].scatter(*x[0, :40].T, s=6, c="0.2")
    axes[0, k].set(title=f"{name}: paths of the ODE", aspect="equal")
    axes[1, k].scatter(*drawn[name, "reverse SDE"].T, s=1, c="0.2")
    axes[1, k].set(title=f"reverse SDE, {share_of_upper(drawn[name, 'reverse SDE'])}")
    axes[1, k].set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
plt.show()

# %% [markdown]
# ## How probable is a point?
#
# The ODE gives exact likelihoods, since along it the log density changes by the divergence (Song et al., 2021, Equation 39):
#
# $$\log p_0(x_0) = \log p_T(x_T) + \int_0^1 \nabla \cdot \Big[f x - \tfrac12\, g^2\, s_\theta(x, u)\Big]\, du .$$
#
# In the plane the divergence is the sum of two derivatives. For each of the three models, the density at every point of a grid:

# %%
side = 48
axis = np.linspace(-1.2, 1.2, side)
plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
held_out = draw(rng, 500)


def log_likelihood(name, x):
    process, denoise = PROCESSES[name], denoisers[name]
    grid = dj.make_grid(process, 2)
    of = jax.jit(lambda x: dj.exact_likelihood(denoise, grid, process, x, rtol=1e-3, atol=1e-3))
    return np.asarray(of(jnp.asarray(x.reshape(-1, 1, 1, 2), jnp.float32)).log_likelihood)


_, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
truth = np.exp(log_density_and_score(plane, 1.0, 0.0)[0])
densities = {"true density": truth}
true_log_p = log_density_and_score(held_out, 1.0, 0.0)[0]
of_lower = ((held_out[:, None] - means) ** 2).sum(-1).argmin(1) >= 100
for name in PROCESSES:
    log_p = log_likelihood(name, np.concatenate([plane, held_out]))
    densities[name] = np.exp(log_p[: len(plane)])
    gap = true_log_p - log_p[len(plane) :]
    print(f"{name}: true less learned log density of held-out points {gap.mean():.3f} nats, ", end="")
    print(f"of those of the lower moon {gap[of_lower].mean():.3f}; ", end="")
    print(f"integral of the density over the picture {densities[name].sum() * (2.4 / (side - 1)) ** 2:.3f}")
for ax, (name, density) in zip(axes, densities.items()):
    ax.pcolormesh(axis, axis, density.reshape(side, side), vmin=0, vmax=truth.max())
    ax.set(title=name, aspect="equal")
plt.show()

# %% [markdown]
# The mean of that difference estimates the Kullback-Leibler divergence of model and truth. The lower moon has fewer points to learn from. Times and
# weights that bound the likelihood (Song et al., 2021b) train the networks of
# [`plane.py`](https://github.com/diffusion-jax/diffusion_jax/blob/main/notebooks/plane.py).
#
# Score models of images: `diffusion-jax --config=digits_vp`, and `digits_subvp`, `digits_ve`, `digits_ncsn`. Likelihoods of images are in
# [the next notebook](05_likelihood_and_compression.ipynb).
