# %% [markdown]
# # Denoising diffusion from the mathematics
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/02_ddpm_from_the_math.ipynb)
#
# Every equation of [Ho et al. (2020)](https://arxiv.org/abs/2006.11239) that a program needs, beside the call that computes it, and a
# picture. It ends in the 1,000-step chain. A few minutes on two CPU cores.

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
from tqdm.auto import tqdm

import diffusion_jax as dj
from diffusion_jax.reporting import show

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 1000))  # Of training.
digits = dj.data.load("digits", "train")
images = dj.data.to_model_range(digits.read(np.arange(64))["image"])  # uint8 to [-1, 1].

# %% [markdown]
# ## The schedule
#
# Step $t$ adds a little noise: $q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{1 - \beta_t}\, x_{t-1}, \beta_t I)$. With
# $\alpha_t = 1 - \beta_t$ and $\bar\alpha_t = \prod_{s \le t} \alpha_s$, $\bar\alpha_t$ is the share of the image's variance that
# is left. Row $t$ of every array is the paper's step $t + 1$.

# %%
linear, cosine = dj.make_schedule("linear", 1000), dj.make_schedule("cosine", 1000)
arrays = dj.processes.schedule_arrays(linear)
np.testing.assert_allclose(arrays.alpha_bar, np.cumprod(1 - arrays.betas), rtol=1e-12)
print(f"of the last x_t, {arrays.alpha_bar[-1]:.3g} is image")

for name, schedule in {"linear": linear, "cosine": cosine}.items():
    plt.plot(dj.processes.schedule_arrays(schedule).alpha_bar, label=name)
plt.xlabel("t")
plt.ylabel(r"$\bar\alpha_t$")
plt.legend()
plt.show()

# %% [markdown]
# ## From an image to noise, in one go
#
# The steps compose (Equation 4): $q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0, (1 - \bar\alpha_t) I)$, so
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I).$$
#
# The library calls the two factors `signal` and `std`; a process is nothing but the two as functions of time.

# %%
process = dj.DDPM(linear)
point = process.at(jnp.array([499]))
print(point)
np.testing.assert_allclose(point.signal[0] ** 2, arrays.alpha_bar[499], rtol=1e-6)

t = np.linspace(0, 999, 12).astype(np.int32)
eps = jax.random.normal(jax.random.key(0), (12, 8, 8, 1))
x_t = dj.processes.q_sample(process.at(t), np.repeat(images[:1], 12, axis=0), eps)
show(x_t, "one image at t = " + ", ".join(map(str, t)), columns=12)

# %% [markdown]
# ## Backwards, if the image were known
#
# Bayes' rule gives $q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu, \tilde\beta I)$ (Equations 6 and 7):
#
# $$\tilde\mu = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x_0
#   + \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t,
#   \qquad \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\, \beta_t .$$
#
# Is that so? For one pixel we can multiply the densities on a grid.

# %%
k, x0, x = 600, 0.7, -0.4  # Row 600, one pixel, and its value at that time.
grid = np.linspace(-6, 6, 20001)
normal = lambda x, mean, var: np.exp(-((x - mean) ** 2) / (2 * var)) / np.sqrt(2 * np.pi * var)
joint = normal(grid, np.sqrt(arrays.alpha_bar[k - 1]) * x0, 1 - arrays.alpha_bar[k - 1]) * normal(
    x, np.sqrt(1 - arrays.betas[k]) * grid, arrays.betas[k]
)
mean = (grid * joint).sum() / joint.sum()
variance = ((grid - mean) ** 2 * joint).sum() / joint.sum()

ours = dj.processes.q_posterior(
    dj.make_grid(process), jnp.full((1, 1), x0), jnp.full((1, 1), x), step=jnp.array([999 - k])
)
np.testing.assert_allclose(ours.mean[0, 0], mean, rtol=1e-4)
np.testing.assert_allclose(ours.variance[0, 0], variance, rtol=1e-3)
print(f"mean {mean:.5f}, variance {variance:.5f}, by Bayes' rule and by q_posterior")

# %% [markdown]
# ## What is learned
#
# In $\tilde\mu$ only $x_0$ is unknown when we draw. From $x_t$ and a guess of the noise it follows as
# $\hat x_0 = (x_t - \sqrt{1 - \bar\alpha_t}\, \hat\varepsilon) / \sqrt{\bar\alpha_t}$. So a network learns the noise, by (Equation 14)
#
# $$L_\mathrm{simple} = \mathbb E_{t, x_0, \varepsilon}\; \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 .$$

# %%
unet = dj.UNet(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
network = dj.as_functions(unet, digits.image_shape)
model = dj.DiffusionModel(process, "eps", network.apply)
simple = dj.loss_function("simple", model)

params = network.init(jax.random.key(0))
draw = simple.draw(simple.init(params), jax.random.key(1), images.shape)
losses = simple.loss(params, simple.init(params), images, None, draw, None)

# The same by hand: a network begins at 0, so its loss is the mean square of the noise.
by_hand = np.mean(np.square(draw.eps), axis=(1, 2, 3))
print(f"L_simple of a fresh network: {losses.mean():.4f}, by hand {by_hand.mean():.4f}")

# %% [markdown]
# ## Training is gradient descent on that
#
# with Adam, and an average of the parameters on the side.

# %%
optimizer = dj.training.make_optimizer(learning_rate=2e-3, warmup_steps=100)
averages = {"ema": dj.training.ema_decay(0.995)}
state = jax.jit(
    lambda key: dj.training.create_state(key, network, optimizer, averages=averages)
)(jax.random.key(0))
train_step = jax.jit(
    dj.training.make_train_step(simple, optimizer, jax.random.key(1), averages=averages),
    donate_argnums=0,
)
batches = dj.data.batches(digits, seed=0, batch_size=64, stop=num_steps)
bar = tqdm(batches, total=num_steps)
for step, batch in enumerate(bar, start=1):
    state, metrics = train_step(state, batch)
    if step % 100 == 0:
        bar.set_postfix(loss=f"{metrics.loss:.4f}")
params = state.ema["ema"]

# %% [markdown]
# What it knows: for one image at several $t$, the clean image that it predicts.

# %%
predict = jax.jit(model.predict)
prediction = predict(params, x_t, process.at(t))
show(np.concatenate([x_t, prediction.x0]), "above x_t, below the predicted x_0", columns=12)

# %% [markdown]
# ## The bound
#
# The loss is a weighted form of a bound on the code length of the images (Equation 5):
#
# $$-\log p(x_0) \le \underbrace{\mathrm{KL}(q(x_T \mid x_0) \Vert p(x_T))}_{L_T}
#   + \sum_{t > 1} \underbrace{\mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \Vert p(x_{t-1} \mid x_t))}_{L_{t-1}}
#   \underbrace{- \log p(x_0 \mid x_1)}_{L_0} .$$
#
# For a few test images, in bits per dimension, from 200 of the 1,000 terms, drawn more often where they are large:

# %%
test = dj.data.to_model_range(dj.data.load("digits", "test").read(np.arange(16))["image"])
clipped = lambda params: dj.clip_denoised(model.denoiser(params))
bound = jax.jit(
    lambda params, x0, keys: dj.variational_bound(
        clipped(params), dj.make_grid(process), x0, keys, variance="fixed_small", num_terms=200
    )
)(params, test, dj.image_keys(0, np.arange(16)))
print(f"prior {bound.prior.mean():.2e}, rate {bound.rate.mean():.2f}, ")
print(f"distortion {bound.distortion.mean():.2f}, total {bound.total.mean():.2f} bits/dim")

# %% [markdown]
# ## The chain
#
# From $x_T \sim \mathcal N(0, I)$, a thousand times (Algorithm 2): $x_{t-1} = \tilde\mu(x_t, \hat x_0) + \sqrt{\text{variance}}\; z$. That is one
# compiled `lax.scan`.


# %%
@jax.jit
def sample(params, keys):
    denoise = dj.clip_denoised(model.denoiser(params))
    sampler = dj.ancestral(dj.make_grid(process), variance="fixed_small")
    result = dj.sample_loop(denoise, sampler, keys, digits.image_shape, num_frames=11)
    return jax.tree.map(dj.data.to_uint8, (result.images, result.frames_x_t, result.frames_x0))


samples, frames_x_t, frames_x0 = jax.device_get(sample(params, dj.image_keys(0, np.arange(40))))
show(samples, "40 samples", columns=10)

# %%
show(
    np.stack([frames_x_t[:, :3], frames_x0[:, :3]])
    .transpose(2, 0, 1, 3, 4, 5)
    .reshape(-1, *digits.image_shape),
    "x_t above, predicted x_0 below, from t = T to 0",
    columns=11,
)

# %% [markdown]
# The same chain on a shorter grid, and solvers that need far fewer steps, are in [the next notebook](03_samplers.ipynb).
