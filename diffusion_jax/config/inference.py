"""Fields of what is done with a trained network: every mode may set them."""

import dataclasses

from diffusion_jax.config.field import SEEDS, Field, option_field, option_fields
from diffusion_jax.metrics import METRICS
from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Text, Tuple
from diffusion_jax.processes.grid import SPACING
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.samplers import CONSTRAINTS, SAMPLERS

# Those that depend on no registry.
_FIELDS = {
    # ---- sampler
    "sampler.num_steps": Field(
        None,
        Int(1, 1_000_000),
        "steps, of ddpm at most process.num_timesteps; unset: all (ode_adaptive: 2), or as many as spacing lists",
    ),
    "sampler.spacing": Field(
        "uniform",
        SPACING,
        "times to visit: a rule (logsnr, karras: also between timesteps), or times, with the last among them",
    ),
    "sampler.temperature": Field(
        1.0,
        Float(0, 10),
        "standard deviation of x_T over the prior's, of edit.latents x_T over what was found; 1: as trained",
        traced=True,
    ),
    "sampler.clip": Field(True, Bool(), "limit each prediction of x_0 to [-1, 1]"),
    "sampler.dynamic_threshold": Field(
        None,
        Float(0, 1, open=True),
        "in place of clip: this quantile of the sizes in x_0 (such as 0.995) becomes 1, if larger; unset: none",
    ),
    "sampler.guidance_scale": Field(
        None,
        Float(0),
        "classifier-free guidance; 1: the class alone, 0: without it; doubles the evaluations; unset: none",
        traced=True,
    ),
    "sampler.guidance_interval": Field(
        None,
        Tuple(Float(0), empty=False),
        "lowest and highest std / signal at which to guide, such as 0.2,5; unset: everywhere",
        needs=("sampler.guidance_scale",),
    ),
    "sampler.guidance_rescale": Field(
        0.0,
        Float(0, 1),
        "how far guided images get back the contrast of unguided ones; 0: not at all, 1: fully",
        needs=("sampler.guidance_scale",),
        off=0.0,
        traced=True,
    ),
    "sampler.guidance_rescale_of": Field(
        None,
        Choice(("x0", "eps", "v")),
        "what guidance_rescale is of; diffusers' is of what the network predicts; unset: x0",
        needs=("sampler.guidance_rescale",),
    ),
    # ---- sample
    "sample.num_images": Field(64, Int(1, 100_000_000), "images to draw"),
    "sample.batch_size": Field(
        64, Int(1, 1_000_000), "images drawn together; no image depends on it"
    ),
    "sample.formats": Field(
        ("png", "npz"),
        Tuple(Choice(("png", "npz", "array_record")), empty=False),
        "what to write: png/, images.npz, array_record/ (a TFDS data set, which data.name=tfds:images reads)",
    ),
    "sample.seed": Field(0, SEEDS, "image i depends on this seed and i alone"),
    "sample.labels": Field(
        None,
        Tuple(Either(Int(0, 1_000_000), Text("a class's name")), empty=False),
        "classes, by number or name, repeated over the images; unset: all classes in turn",
    ),
    "sample.ema": Field(True, Bool(), "draw with the averaged weights"),
    "sample.step": Field(None, Int(0, 2**31 - 1), "step of the checkpoint; unset: the newest"),
    "sample.progressive": Field(
        False,
        Bool(),
        "sample: also show how the first images came about: progressive.png, .npz and strip.png",
    ),
    "sample.shared_t": Field(
        None,
        Tuple(Float(), empty=False),
        "sample: also draw shared.png: several samples from one x_t at each of these times; unset: none",
    ),
    # ---- edit
    "edit.images": Field(
        None,
        Tuple(Text("a path"), empty=False),
        "images to work on: files, or folders of them; unset: the first sample.num_images test images",
    ),
    "edit.start_t": Field(
        None,
        Float(),
        "inpaint: time to start from, with the image and its noise; unset: from noise alone",
    ),
    "edit.resamplings": Field(
        1,
        Int(1, 10_000),
        "inpaint: how often each stretch of steps is done (RePaint); 1: once",
        off=1,
    ),
    "edit.jump": Field(
        10, Int(1, 1_000_000), "inpaint: steps in a stretch", needs=("edit.resamplings",)
    ),
    "edit.times": Field(
        None,
        Tuple(Float(), empty=False),
        "interpolate: times to mix images at; unset: an eighth, two, ... eight eighths of all",
    ),
    "edit.num_between": Field(7, Int(1, 10_000), "interpolate: images between two"),
    "edit.latents": Field(
        False,
        Bool(),
        "interpolate: also along the arc between the x_T that ddim or ode_adaptive makes the images of",
    ),
    # ---- eval
    "eval.num_images": Field(1000, Int(1, 1_000_000_000), "images to measure, at most"),
    "eval.batch_size": Field(
        250, Int(1, 1_000_000), "images measured together; no result depends on it"
    ),
    "eval.split": Field("test", Choice(("test", "train")), "images that --mode=evaluate measures"),
    "eval.seed": Field(0, SEEDS, "of the noise; that of image i depends on this seed and i alone"),
    "eval.ema": Field(True, Bool(), "measure the averaged weights"),
    "eval.step": Field(None, Int(0, 2**31 - 1), "step of the checkpoint; unset: the newest"),
    # ---- mesh
    "mesh.data": Field(
        -1,
        Int(-1, 1_000_000),
        "devices along the batch alone; -1: all that are left; of a CPU's cores the most that share the batch, "
        "32 images or more each",
    ),
    "mesh.fsdp": Field(
        1,
        Int(1, 1_000_000),
        "devices along the batch over which parameters, averages and the optimizer's state are divided too",
    ),
}


def _of_inverses() -> dict[str, Field]:
    """Returns the fields of the options that the inverses of samplers have and the samplers have not."""
    inverses = {name: rule.inverse for name, rule in SAMPLERS.items() if rule.inverse}
    return {
        f"edit.{field}": option_field("edit", option, f"interpolate, latents of {name}")
        for name, inverse in inverses.items()
        for field, option in inverse.options.items()
        if field not in SAMPLERS[name].options
    }


def _of_metrics() -> dict[str, Field]:
    """Returns the fields of the options of metrics; a config may set those of one that is not measured now."""
    owners = {"eval.u_min": _continuous()}
    fields = option_fields("eval", METRICS, "eval.metrics")
    return {
        name: dataclasses.replace(field, owners=owners.get(name, {}))
        for name, field in fields.items()
    }


def _continuous() -> dict[str, tuple[str, ...]]:
    """Returns the owners of a field that is for processes in continuous time."""
    return {"process.name": tuple(name for name, kind in PROCESSES.items() if kind.continuous)}


def inference_fields() -> dict[str, Field]:
    """Returns these fields, with the options of the components that are registered now."""
    return {
        name: dataclasses.replace(field, changeable="yes")
        for name, field in {
            **_of_registries(),
            **_FIELDS,
            **option_fields("sampler", SAMPLERS, "sampler.name"),
            **option_fields("edit", CONSTRAINTS, "edit.keep"),
            **_of_inverses(),
            **_of_metrics(),
        }.items()
    }


def _of_registries() -> dict[str, Field]:
    """Returns the fields that choose a component, or that only some components have."""
    return {
        "sampler.name": Field("ancestral", SAMPLERS.choice, SAMPLERS.help(), chooses="sampler"),
        "sampler.u_min": Field(
            None,
            Float(0, 1, open=True),
            "vp, subvp, ve: u where the step to the data begins; unset: 1e-3, ve: 1e-5",
            owners=_continuous(),
        ),
        "sampler.clip_keeps": Field(
            None,
            Choice(("eps",)),
            "ddim, where x_0 is limited: eps stays the network's, as in diffusers; unset: x_t stays, and eps follows",
            owners={"sampler.name": tuple(n for n, rule in SAMPLERS.items() if rule.keeps_eps)},
            needs=("sampler.clip", "sampler.dynamic_threshold"),
        ),
        "edit.keep": Field(
            "mask",
            CONSTRAINTS.choice,
            "inpaint: what is kept of an image: pixels, its gray values, the means of blocks, or nothing but a start",
        ),
        "edit.mask": Field(
            None,
            Text("a path"),
            "inpaint, keep=mask: gray PNG of the images' size; black is kept, white drawn anew; unset: none",
            owners={"edit.keep": CONSTRAINTS.takers("mask")},
        ),
        "eval.metrics": Field(
            ("bpd",),
            Tuple(METRICS.choice, empty=False),
            f"what --mode=evaluate measures; {METRICS.help()}",
        ),
    }
