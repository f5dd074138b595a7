# %% [markdown]
# # Your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/diffusion-jax/diffusion_jax/blob/main/notebooks/06_your_own_images.ipynb)
#
# From a folder of pictures, or from arrays, to a trained model: train it, look whether it learns the pictures by heart, measure it, draw
# from it. A few minutes on two CPU cores. The pictures here are small, so that it is fast; yours go in by one changed path.

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
import html
import json
import os
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display
from PIL import Image as Picture, ImageDraw

import diffusion_jax as dj
from diffusion_jax.main import main
from diffusion_jax.reporting import show

num_steps = int(os.environ.get("NOTEBOOK_STEPS", 400))  # Of training.


# %% [markdown]
# ## Pictures
#
# 240 drawings in three classes, each with a size, a color and a page of its own. For your own pictures leave this cell out, and let
# `source` name their folder: PNG, JPEG, WebP, TIFF, BMP or GIF, in any sizes.


# %%
def draw(shape: str, rng: np.random.Generator, width: int, height: int) -> Picture.Image:
    page = Picture.new("RGB", (width, height), "white")
    radius = min(width, height) * rng.uniform(0.25, 0.4)
    x, y = width / 2 + rng.uniform(-3, 3), height / 2 + rng.uniform(-3, 3)
    color = tuple(int(c) for c in rng.integers(0, 200, 3))
    pen = ImageDraw.Draw(page)
    if shape == "disk":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "ring":
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, outline=color, width=int(radius / 2))
    else:
        pen.regular_polygon((x, y, radius), n_sides=3, fill=color)
    return page


source = Path("pictures")
for shape in ("disk", "ring", "triangle"):
    (source / shape).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(shape))
    for i in range(80):
        draw(shape, rng, *rng.integers(40, 90, 2)).save(source / shape / f"{i:03}.png")

# %% [markdown]
# ## A folder
#
# The source `image_folder` crops each picture to its centered square and resizes it. If all lie in sub-folders, these are the classes.
# One in ten is held out.

# %%
options = dict(source_dir=source, image_size=16, test_fraction=0.1)
train = dj.data.load("image_folder", "train", **options)
test = dj.data.load("image_folder", "test", **options)
print(f"{train.num_images} images to train on, {test.num_images} held out; classes: {train.class_names}")
show(next(dj.data.batches(train, seed=0, batch_size=40))["image"], "as the network sees them", columns=20)

# %% [markdown]
# ## Or arrays
#
# N×H×W×C of whole numbers from 0 to 255, with or without classes, make a split like any other. [The quick start](01_quickstart.ipynb)
# trains on a split with the library's functions. The command below takes folders.

# %%
pixels = np.stack([np.asarray(draw("disk", rng, 64, 64).resize((16, 16))) for _ in range(20)])
own = dj.data.from_arrays(pixels, labels=np.zeros(20, int), class_names=["disk"])
print(own.num_images, own.image_shape, own.class_names)
show(pixels, "an array", columns=20)

# %% [markdown]
# ## Train
#
# In a terminal it is
#
#     diffusion-jax --config=image_folder_small --config.data.source_dir=pictures --config.data.image_size=16
#
# A notebook calls `main`, which is that command, so that both share the GPU or TPU. The config finds the classes, holds images out and
# measures the loss on them. Each `--config.` flag changes a field of it; `--help=FIELDS` lists them.


# %%
def command(line: str) -> None:
    """Runs `diffusion-jax` with these flags."""
    print("diffusion-jax", line)
    assert main(shlex.split(line)) == 0


every = max(1, num_steps // 4)
command(
    f"--config=image_folder_small --workdir=run --config.data.source_dir={source} --config.data.image_size=16"
    f" --config.model.channel_mult=1,2 --config.train.num_steps={num_steps}"
    f" --config.train.checkpoint_every={every} --config.train.sample_every={every}"
)

# %% [markdown]
# The same noise after each quarter of the training, a row for each class.

# %%
for path in sorted(Path("run/samples").glob("grid-*.png")):
    display(path.stem, Image(path))

# %% [markdown]
# ## Does it learn them by heart?
#
# With few pictures a network may remember them. Two things tell.
#
# **The held-out loss**, red. While it falls, as here, more steps help. Where it rises although the training loss falls, the network
# learns the pictures by heart, and more pictures help.

# %%
display(Image("run/loss.png"))

# %% [markdown]
# **The nearest training images.** We draw 90 images, and measure them: `nearest` looks for the training images nearest to each; `kid`,
# the kernel distance, compares all of them with all training images, and is 0 for perfect images, within its error. Both see images by
# the features of a small classifier that is trained on the same classes. Such figures compare with nothing but each other; for published
# ones there are the features `inception` and `dinov2`, which must be downloaded:
# [evaluation](https://github.com/diffusion-jax/diffusion_jax/blob/main/docs/evaluation.md).

# %%
drawing = (
    "--workdir=run --config.sampler.name=dpmpp_2m --config.sampler.num_steps=20"
    " --config.sampler.spacing=trailing"
)
command(
    f"{drawing} --mode=evaluate --config.eval.num_images=90 --config.eval.metrics=kid,nearest"
    " --config.eval.features=classifier"
)

# %% [markdown]
# In each row an image that we drew and, beside it, the three training images nearest to it; the rows that are nearest to theirs come
# first. `authentic` above is the share of images that are no nearer to their training image than that is to others; one that is much
# nearer counts as a copy.

# %%
for path in Path("run/results").glob("nearest_*/*/nearest.png"):
    display(Image(path))

# %% [markdown]
# ## The page of the run
#
# One file with all of that, to open in a browser or to send to a colleague. Move its sliders.

# %%
command("--workdir=run --mode=report")
page = html.escape(Path("run/report.html").read_text())
frame = f'<iframe title="report.html" srcdoc="{page}" width="100%" height="700"></iframe>'
display({"text/html": frame}, raw=True)

# %% [markdown]
# ## The run in Python
#
# `load_run` gives process, network and averaged parameters. With guidance the prediction goes further from that without a class to that
# with the class. Left the scale 1, which is no guidance, right 3, from the same noise: these shapes need none, and too much of it makes
# them darker, and disks large.

# %%
run = dj.load_run("run")
labels = np.repeat(np.arange(run.num_classes), 8)
keys = dj.image_keys(0, np.arange(len(labels)))


@jax.jit
def sample(params, keys, labels, scale):
    both = jnp.concatenate([labels, jnp.full_like(labels, run.num_classes)])
    denoise = dj.clip_denoised(dj.classifier_free(run.denoiser(params, both), scale))
    sampler = dj.samplers.dpmpp_2m(dj.make_grid(run.process, 20, "trailing"))
    return dj.data.to_uint8(dj.sample_loop(denoise, sampler, keys, run.image_shape).images)


plain, guided = (
    np.asarray(sample(run.params, keys, labels, scale)).reshape(run.num_classes, 8, *run.image_shape)
    for scale in (1.0, 3.0)
)
gap = np.full((run.num_classes, 1, *run.image_shape), 255, np.uint8)
side_by_side = np.concatenate([plain, gap, guided], 1).reshape(-1, *run.image_shape)
show(side_by_side, f"{', '.join(run.class_names)}; scale 1, and 3", columns=17)

# %% [markdown]
# ## Export
#
# `--mode=sample` writes images as PNG files and as arrays (`--config.sample.formats`); `job.json` beside them says what they were drawn
# with. What was drawn in Python, such as `guided`, is an array that `np.savez("guided.npz", images=guided)` saves.

# %%
command(f"{drawing} --mode=sample --config.sample.num_images=30 --config.sampler.guidance_scale=2")

# %%
job = max(Path("run/samples").glob("step*"), key=lambda path: path.stat().st_mtime)
with np.load(job / "images.npz") as arrays:
    print({name: (array.dtype, array.shape) for name, array in arrays.items()})
print(*sorted(str(path) for path in job.rglob("*.png"))[:4], "...", sep="\n")
print({key: json.loads((job / "job.json").read_text())[key] for key in ("step", "ema", "seed", "classes")})
