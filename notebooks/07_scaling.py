# %% [markdown]
# # Scaling: many devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/07_scaling.ipynb)
#
# One training on one device and on eight, which a CPU can simulate: the same loss, with the state whole on each device or divided among
# them. Then what a training needs before it is started, and how it is started on several machines. Two minutes on two CPU cores; on GPUs
# and TPUs the devices are those that are there.

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
import json
import os
import shlex
import subprocess
from pathlib import Path

import jax.extend.backend
import matplotlib.pyplot as plt
import numpy as np

import diffusion_jax as dj
from diffusion_jax.main import main
from diffusion_jax.parallel import sharding
from diffusion_jax.reporting import show
from diffusion_jax.training.state import state_shardings

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 60))  # Of training, on each mesh.

# %% [markdown]
# ## Eight devices
#
# JAX divides a CPU into as many devices as one asks for before it is first used; the first cell has used it, so we begin again. In a
# terminal `JAX_NUM_CPU_DEVICES=8` does it. They share the cores, so eight are no faster than one: here they show what eight chips would
# do.

# %%
if jax.default_backend() == "cpu":
    jax.extend.backend.clear_backends()
    jax.config.update("jax_num_cpu_devices", 8)
devices = jax.devices()
n = len(devices)
print(f"{n} devices of the kind {devices[0].device_kind!r}")

# %% [markdown]
# ## The mesh
#
# The devices form a table with two axes, `data` and `fsdp`. A batch is divided over both. Along `data` each device has the whole state: a
# step sends the mean of the gradients. Along `fsdp` the state is divided too: a step gathers the parameters, and leaves each device the
# gradients of its part.

# %%
parts = next(k for k in (4, 2, 1) if n % k == 0)
meshes = {
    "one device": sharding.make_mesh(data=1, fsdp=1),
    f"data={n}": sharding.make_mesh(data=n, fsdp=1),
    f"data={n // parts}, fsdp={parts}": sharding.make_mesh(data=n // parts, fsdp=parts),
}
for name, mesh in meshes.items():
    print(f"{name}:\n{np.vectorize(lambda device: device.id)(mesh.devices)}")

# %% [markdown]
# A batch of digits, eight for each device: a row is what one device gets.

# %%
digits = dj.data.load("digits", "train")
batch = next(dj.data.batches(digits, seed=0, batch_size=8 * n))
show(batch["image"], "batch 0, a row for each device", columns=8)

# %% [markdown]
# ## A training
#
# As in [the quick start](01_quickstart.ipynb); the mesh is an argument of `make_train_step`, and each array of the state has a sharding.

# %%
process = dj.DDPM(dj.make_schedule("cosine", 1000))
unet = dj.UNet(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=())
network = dj.as_functions(unet, digits.image_shape)
objective = dj.loss_function("simple", dj.DiffusionModel(process, "v", network.apply))
optimizer = dj.training.make_optimizer(learning_rate=1e-3, warmup_steps=20)


def create(key):
    return dj.training.create_state(key, network, optimizer)


shapes = jax.eval_shape(create, jax.random.key(0))
shardings = {name: state_shardings(mesh, shapes) for name, mesh in meshes.items()}

# %% [markdown]
# Which devices hold which part of the largest parameter? Its largest axis is divided along `fsdp`; along `data` the parts are
# repeated. Small arrays stay whole.


# %%
def draw_parts(axes, sharding, shape):
    """Draws an array as rows (its largest axis) by columns (all others); the numbers are devices."""
    axis = int(np.argmax(shape))
    parts = {}
    for device, index in sharding.devices_indices_map(shape).items():
        start, stop, _ = index[axis].indices(shape[axis])
        parts.setdefault((start, stop), []).append(device.id)
    for k, ((start, stop), ids) in enumerate(parts.items()):
        axes.axhspan(start, stop, facecolor=plt.cm.Blues(0.2 + 0.15 * k), edgecolor="white")
        text = ", ".join(map(str, ids))
        axes.text(0.5, (start + stop) / 2, text, ha="center", va="center")
    axes.set(ylim=(shape[axis], 0), xticks=[])


leaves = jax.tree_util.tree_leaves_with_path(shapes.params)
number = max(range(len(leaves)), key=lambda k: leaves[k][1].size)
path, largest = leaves[number]
fig, columns = plt.subplots(1, len(meshes), figsize=(9, 2.6), sharey=True, layout="constrained")
for axes, (name, tree) in zip(columns, shardings.items()):
    draw_parts(axes, jax.tree.leaves(tree.params)[number], largest.shape)
    axes.set_title(name, fontsize=10)
fig.suptitle(f"{jax.tree_util.keystr(path)}, {largest.shape}", fontsize=10)
plt.show()

# %% [markdown]
# So the state, parameters and Adam's two moments, takes less of each device's memory. Small arrays stay whole, so it is a little more
# than a part of all.


# %%
def bytes_per_device(tree):
    local = jax.tree.map(lambda s, x: np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shapes)
    return sum(jax.tree.leaves(local))


held = {name: bytes_per_device(tree) / 2**20 for name, tree in shardings.items()}
fig, axes = plt.subplots(figsize=(6, 2), layout="constrained")
axes.bar_label(axes.barh(list(held), list(held.values())), fmt="%.2f")
axes.invert_yaxis()
axes.set(xlabel="MiB of state on each device", xlim=(0, 1.15 * max(held.values())))
plt.show()

# %% [markdown]
# ## The same loss
#
# Batch $k$, noise and initial parameters are functions of the seed and $k$, drawn for the whole batch wherever it lies. So the
# losses on all meshes are the same but for the order in which numbers are added up.


# %%
def train(mesh, where):
    state = jax.jit(create, out_shardings=where)(jax.random.key(0))
    step = jax.jit(
        dj.training.make_train_step(objective, optimizer, jax.random.key(1), mesh=mesh),
        donate_argnums=0,
    )
    rows, losses = sharding.batch_sharding(mesh), []
    for batch in dj.data.batches(digits, seed=0, batch_size=8 * n, stop=num_steps):
        state, metrics = step(state, sharding.put(rows, batch))
        losses.append(metrics.loss)
    return np.array(jax.device_get(losses))


losses = {name: train(mesh, shardings[name]) for name, mesh in meshes.items()}
for k in sorted({0, 1, num_steps // 2, num_steps - 1}):
    print(f"step {k:2}: " + "   ".join(f"{name} {values[k]:.7f}" for name, values in losses.items()))

# %%
first, *others = losses
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for width, name in zip((6, 3, 1), losses):
    left.plot(losses[name], linewidth=width, label=name)
left.set(xlabel="step", ylabel="loss")
left.legend()
for name in others:
    right.semilogy(np.abs(losses[name] / losses[first] - 1) + 1e-9, ".", label=name)
right.axhline(np.finfo(np.float32).eps, color="gray", label="one rounding of float32")
right.set(xlabel="step", ylabel="relative difference, + 1e-9", title=f"from {first}")
right.legend()
plt.show()

# %% [markdown]
# The three curves lie on each other. The differences are those of rounding: here of a bit or two, more on chips that multiply in fewer
# bits. So a run may continue on another number of devices; a checkpoint is read on any mesh. With the command the fields `mesh.data`
# and `mesh.fsdp` say all this; by default all devices share the batches.

# %% [markdown]
# ## Plan before you pay
#
# `--mode=plan` compiles the train step of a config for the devices, without data and without training, and says what it takes of each one's
# memory; where it does not fit, which fields make it fit; and on chips whose peaks are published how fast a step can be.


# %%
def command(line: str) -> None:
    """Runs `diffusion-jax` with these flags, here, where the devices are."""
    print("diffusion-jax", line)
    assert main(shlex.split(line)) == 0


command(
    f"--mode=plan --config=digits --workdir=plan --config.train.batch_size={32 * n}"
    f" --config.mesh.data={n // parts} --config.mesh.fsdp={parts}"
)

# %% [markdown]
# The same figures are in `results/plan.json`. Of a small network most of the memory is activations, which no division of the state makes
# less: for these there are micro-batches (`train.accumulate`) and `model.remat`.

# %%
memory = json.loads(Path("plan/results/plan.json").read_text())["plans"][0]["memory"]
kinds = ["parameters", "optimizer", "averages", "batch", "activations"]
fig, axes = plt.subplots(figsize=(6, 2), layout="constrained")
axes.bar_label(axes.barh(kinds, [memory[kind] / 2**20 for kind in kinds]), fmt="%.2f")
axes.invert_yaxis()
axes.set(xlabel="MiB on each device")
axes.margins(x=0.15)
plt.show()

# %% [markdown]
# For a slice of TPUs one needs no TPU, but the TPU's compiler, which is not installed by default. In a terminal:
#
#     pip install "diffusion_jax[tpu] @ git+https://github.com/diffusion-jax/diffusion_jax"
#     diffusion-jax --mode=plan --topology=v5e:4x4 --config=cifar10 --config.train.batch_size=2048 --config.model.dtype=bfloat16
#
# took ten minutes on one CPU core, and found that a step of 16 chips takes 2.84 of 16 GiB of each and at best 30.7 ms.
# [Scaling](https://github.com/diffusion-jax/diffusion_jax/blob/main/docs/scaling.md) says what these figures count, and what they leave
# out.

# %% [markdown]
# ## Several machines
#
# The repository's `launch/` starts the command on several machines, and again after a failure or a preemption, which continues the run.
# With `--dry-run` each launcher prints what it would do.


# %%
def shell(line: str) -> None:
    """Runs a line in the shell, and shows what it prints."""
    print("$", line)
    done = subprocess.run(line, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)


launch = Path(dj.__file__).parents[1] / "launch"
if not launch.exists():  # Installed without the repository.
    shell("git clone -q --depth 1 https://github.com/diffusion-jax/diffusion_jax checkout")
    launch = Path("checkout/launch")

# %% [markdown]
# Two processes on this machine, to try what several will do:

# %%
shell(f"{launch}/local.sh --dry-run 2 --config=digits --config.mesh.data=-1")

# %% [markdown]
# A spot slice of TPUs. `create` asks for it, `run` and `resume` train on it; `resume` also creates it anew when it has been taken away:

# %%
pod = "--name my-slice --zone us-east5-b --accelerator v6e-16 --spot --dry-run"
shell(f"{launch}/tpu_pod.sh create {pod}")

# %% [markdown]
# A Slurm cluster of GPUs, one process per GPU; `sbatch` in place of `bash` submits it:

# %%
shell(f"bash {launch}/slurm_gpu.sbatch --dry-run --config=cifar10 --workdir=/scratch/me/cifar10")

# %% [markdown]
# And Kubernetes with TPUs or GPUs, by a JobSet:

# %%
shell(
    f"{launch}/gke.sh --name cifar10 --image IMAGE --claim runs --accelerator tpu-v6e-slice --topology 4x4"
    " --dry-run -- --config=cifar10 --workdir=/mnt/runs/cifar10 | tail -n 25"
)
