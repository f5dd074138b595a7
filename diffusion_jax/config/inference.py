"""Fields for the use of a trained network, which every mode may set."""

from __future__ import annotations

import dataclasses

from diffusion_jax.config.field import SEEDS, Field, merge, option_field, option_fields
from diffusion_jax.features import FEATURES
from diffusion_jax.metrics import IMAGE_METRICS, METRICS
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Bool, Choice, Either, FilePath, Float, Int, Text, Tuple
from diffusion_jax.processes.grid import SPACING
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.samplers import CONSTRAINTS, SAMPLERS
from diffusion_jax.training.averages import MAX_LENGTH

# Fields that do not depend on a registry.
_FIELDS = {
    # ---- sampler
    "sampler.num_steps": Field(
        None,
        Int(1, 1_000_000),
        "number of steps, for ddpm at most process.num_timesteps; unset: all (ode_adaptive: 2), or as many as "
        "spacing lists",
    ),
    "sampler.spacing": Field(
        "uniform",
        SPACING,
        "times to visit: a rule (logsnr, karras: also between timesteps), or a list that includes the last time",
    ),
    "sampler.temperature": Field(
        1.0,
        Float(0, 10),
        "factor on the standard deviation of x_T (with edit.latents: on the encoded x_T); 1: as trained",
        traced=True,
    ),
    "sampler.clip": Field(True, Bool(), "clip each prediction of x_0 to [-1, 1]"),
    "sampler.dynamic_threshold": Field(
        None,
        Float(0, 1, open=True),
        "dynamic thresholding: quantile of absolute values of x_0, such as 0.995, scaled to 1 if larger; unset: none",
    ),
    "sampler.guidance_scale": Field(
        None,
        Float(0),
        "scale of classifier-free guidance; 1: conditional, 0: unconditional; doubles the evaluations; unset: none",
        traced=True,
    ),
    "sampler.guidance_interval": Field(
        None,
        Tuple(Float(0), empty=False),
        "lowest and highest std / signal at which guidance applies, such as 0.2,5; unset: everywhere",
        needs=("sampler.guidance_scale",),
    ),
    "sampler.guidance_rescale": Field(
        0.0,
        Float(0, 1),
        "how much of the unguided contrast is restored in guided images; 0: none, 1: all of it",
        needs=("sampler.guidance_scale",),
        off=0.0,
        traced=True,
    ),
    "sampler.guidance_rescale_of": Field(
        None,
        Choice(("x0", "eps", "v")),
        "quantity that guidance_rescale rescales; in diffusers it is the network's prediction; unset: x0",
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
        "output formats: png/, images.npz, array_record/ (a TFDS data set, which data.name=tfds:images reads)",
    ),
    "sample.seed": Field(0, SEEDS, "image i depends on this seed and i alone"),
    "sample.labels": Field(
        None,
        Tuple(Either(Int(0, 1_000_000), Text("a class's name")), empty=False),
        "classes, by number or name, repeated over the images; unset: all classes in turn",
    ),
    "sample.ema": Field(
        True,
        Either(Bool(), Float(0, 1, open=True)),
        "draw with, and measure, the averaged weights; false: the last ones; or the decay of another average, such as "
        "0.9999, of optimizer.ema_decays or reconstructed from snapshots",
    ),
    "sample.ema_length": Field(
        None,
        Float(0, MAX_LENGTH, open=True),
        "in place of sample.ema: relative length of a power-function average, such as 0.1, of optimizer.ema_lengths or "
        "reconstructed from snapshots; unset: sample.ema",
    ),
    "sample.step": Field(None, Int(0, 2**31 - 1), "step of the checkpoint; unset: the newest"),
    "sample.progressive": Field(
        False,
        Bool(),
        "sample: also show the reverse process of the first images: progressive.png, .npz and strip.png",
    ),
    "sample.shared_t": Field(
        None,
        Tuple(Float(), empty=False),
        "sample: also draw shared.png: several samples from one x_t at each of these times; unset: none",
    ),
    # ---- edit
    "edit.images": Field(
        None,
        Tuple(FilePath("a path"), empty=False),
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
        "inpaint: number of times that each stretch of steps is run (RePaint); 1: once",
        off=1,
    ),
    "edit.jump": Field(
        10, Int(1, 1_000_000), "inpaint: steps per stretch", needs=("edit.resamplings",)
    ),
    "edit.times": Field(
        None,
        Tuple(Float(), empty=False),
        "interpolate: times at which images are mixed; unset: 1/8, 2/8, ..., 8/8 of all",
    ),
    "edit.num_between": Field(7, Int(1, 10_000), "interpolate: images between two"),
    "edit.latents": Field(
        False,
        Bool(),
        "interpolate: also along the arc between the x_T that ddim or ode_adaptive maps to the images",
    ),
    # ---- eval
    "eval.num_images": Field(
        None,
        Int(1, 1_000_000_000),
        "largest number of images to measure, or number to draw; unset: 1000, or all of eval.images",
    ),
    "eval.batch_size": Field(
        250, Int(1, 1_000_000), "images measured together; no result depends on it"
    ),
    "eval.split": Field("test", Choice(("test", "train")), "images that --mode=evaluate measures"),
    "eval.seed": Field(
        0,
        SEEDS,
        "seed of the noise, which depends on it and the image's index alone, and of what a metric takes at random",
    ),
    "eval.images": Field(
        None,
        FilePath("a path"),
        "images that fd, kid, ... measure: a folder of pictures, an .npz, or the folder of a sampling job; unset: "
        "drawn from the checkpoint, as by --mode=sample",
    ),
    "eval.sweep": Field(
        None,
        Text("FIELD=VALUE,VALUE,...; ..."),
        "fields of sampler and sample with several values, such as sampler.num_steps=10,20; "
        "sampler.guidance_scale=1,2: metrics of images at all combinations; unset: none",
    ),
    "eval.reference": Field(
        "train",
        FilePath("train, test, or a path"),
        "what these images are compared with: train or test images of the data, a folder of pictures, or an .npz of "
        "images or of mu and sigma",
    ),
    "eval.selfcheck": Field(
        False,
        Bool(),
        "in place of images, check the metrics on the reference's own: half against half, and degraded more and more",
    ),
    # ---- report
    "report.runs": Field(
        None,
        Tuple(FilePath("a folder", folder=True), empty=False),
        "folders of other runs, which the page compares with this one; unset: none",
    ),
    "report.every": Field(
        0,
        Int(0, 2**31 - 1),
        "steps of a training between two writings of its report.html; 0: only at the end",
    ),
    "report.paper": Field(
        False,
        Bool(),
        "add the figures and tables of Ho et al. (2020) that the run has, beside the paper's numbers",
    ),
    "report.draw": Field(
        True,
        Bool(),
        "draw the reverse process of 8 images for the page, and find the training images nearest to them, if that is "
        "not done yet",
    ),
    # ---- mesh
    "mesh.data": Field(
        -1,
        Int(-1, 1_000_000),
        "devices along the batch alone; -1: all remaining ones; on the CPU, as many cores as divide the batch with "
        "32 images or more each",
    ),
    "mesh.fsdp": Field(
        1,
        Int(1, 1_000_000),
        "devices along the batch that also divide the parameters, averages and the optimizer's state",
    ),
}


def _inverse_fields() -> dict[str, Field]:
    """Returns the fields of options that only the inverses of samplers have."""
    having: dict[str, dict[str, Option]] = {}  # Field -> the option of each sampler.
    for name, rule in SAMPLERS.items():
        for field, option in rule.inversion_options.items():
            for other, known in having.setdefault(field, {}).items():
                if difference := option.difference(known):
                    raise TypeError(
                        f"the inverse of {name!r}: the option {field} is not that of {other!r} ({difference})"
                    )
            having[field][name] = option
    return {
        f"edit.{field}": dataclasses.replace(
            option_field(
                "edit",
                next(iter(options.values())),
                f"interpolate, latents of {', '.join(options)}",
            ),
            owners={"sampler.name": tuple(options)},
            lenient=True,
        )
        for field, options in having.items()
    }


def _metric_fields() -> dict[str, Field]:
    """Returns the fields of the metrics' options; a config may set those of a metric that is not measured."""
    owners = {"eval.u_min": _continuous_owners()}
    fields = merge(
        option_fields("eval", METRICS, "eval.metrics"),
        option_fields("eval", IMAGE_METRICS, "eval.metrics"),
    )
    return {
        name: dataclasses.replace(field, owners=owners.get(name, {}))
        for name, field in fields.items()
    }


def _continuous_owners() -> dict[str, tuple[str, ...]]:
    """Returns the owners of a field that only continuous-time processes have."""
    return {"process.name": tuple(name for name, kind in PROCESSES.items() if kind.continuous)}


def inference_fields() -> dict[str, Field]:
    """Returns these fields and the options of the currently registered components."""
    return {
        name: dataclasses.replace(field, changeable="yes")
        for name, field in merge(
            _registry_fields(),
            _FIELDS,
            _classifier_fields(),
            option_fields("sampler", SAMPLERS, "sampler.name"),
            option_fields("edit", CONSTRAINTS, "edit.keep"),
            _inverse_fields(),
            _metric_fields(),
            option_fields("eval", FEATURES, "eval.features"),
        ).items()
    }


def _classifier_fields() -> dict[str, Field]:
    """Returns the fields of classifier guidance, for processes whose times are those of such classifiers."""
    owners = {"process.name": tuple(name for name, kind in PROCESSES.items() if kind.chain)}
    fields = {
        "sampler.classifier": Field(
            None,
            FilePath("a .pt or .safetensors file"),
            "file of a classifier of noisy images of guided-diffusion, which guides samples; unset: none",
        ),
        "sampler.classifier_settings": Field(
            None,
            Text("--FLAG VALUE ..."),
            "its flags, such as --classifier_depth 4; unset: guided-diffusion's defaults",
            needs=("sampler.classifier",),
        ),
        "sampler.classifier_scale": Field(
            None,
            Float(0),
            "factor of the gradient of its log probability; unset: 1, Bayes' rule",
            needs=("sampler.classifier",),
            traced=True,
        ),
    }
    return {name: dataclasses.replace(field, owners=owners) for name, field in fields.items()}


def _registry_fields() -> dict[str, Field]:
    """Returns the fields that choose a component or that only some components have."""
    return {
        "sampler.name": Field("ancestral", SAMPLERS.choice, SAMPLERS.help(), chooses="sampler"),
        "sampler.u_min": Field(
            None,
            Float(0, 1, open=True),
            "vp, subvp, ve: u at which the last step, to the data, begins; unset: 1e-3, for ve 1e-5",
            owners=_continuous_owners(),
        ),
        "sampler.clip_keeps": Field(
            None,
            Choice(("eps",)),
            "ddim with clipped x_0: keep the network's eps, as in diffusers; unset: keep x_t and recompute eps",
            owners={"sampler.name": tuple(n for n, rule in SAMPLERS.items() if rule.keeps_eps)},
            needs=("sampler.clip", "sampler.dynamic_threshold"),
        ),
        "edit.keep": Field(
            "mask",
            CONSTRAINTS.choice,
            "inpaint: part of an image to keep: pixels, gray values, block means, or nothing but a start",
        ),
        "edit.mask": Field(
            None,
            FilePath("a path"),
            "inpaint, keep=mask: gray PNG of the images' size; black is kept, white is redrawn; unset: none",
            owners={"edit.keep": CONSTRAINTS.takers("mask")},
        ),
        "eval.metrics": Field(
            ("bpd",),
            Tuple(Choice((*METRICS, *IMAGE_METRICS)), empty=False),
            f"what --mode=evaluate measures; of the model: {METRICS.help()}; of images: {IMAGE_METRICS.help()}",
        ),
        "eval.features": Field(
            "inception",
            FEATURES.choice,
            f"features of images; {FEATURES.help()}",
            chooses="features",
        ),
    }
