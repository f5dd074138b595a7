"""Fields that define the training; all other modes take them from the run."""

from __future__ import annotations

import dataclasses

from diffusion_jax.config.data_fields import AUTO
from diffusion_jax.config.field import SEEDS, VARIANCE, Field, merge, option_fields
from diffusion_jax.data import SOURCES
from diffusion_jax.losses import LOSSES, TIME_SAMPLERS, WEIGHTINGS
from diffusion_jax.models.inputs import INPUTS
from diffusion_jax.models.networks import NETWORKS
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.options.kinds import Bool, Choice, Either, FilePath, Float, Int, Steps, Tuple
from diffusion_jax.processes.registry import PROCESSES
from diffusion_jax.training.averages import MAX_LENGTH
from diffusion_jax.training.loggers import LOGGERS

# Fields that do not depend on a registry.
_FIELDS = {
    "seed": Field(0, SEEDS, "seed of initialization, order of the images, noise and dropout"),
    # ---- data
    "data.random_flip": Field(False, Bool(), "mirror training images at random, left to right"),
    "data.cache_dir": Field(
        None,
        FilePath("a folder", folder=True),
        "prepared data and compiled programs; unset: ~/.cache/diffusion_jax",
        "on_resume",
    ),
    # ---- model
    "model.num_classes": Field(
        0,
        Either(Int(0, 1_000_000), Choice((AUTO,))),
        "number of classes to condition on; auto: that of the data, of which it may have none; 0: unconditional",
    ),
    # ---- process
    "process.variance": Field(
        "fixed_large",
        VARIANCE,
        "variance of the reverse steps: beta_t, the posterior's, or predicted by the network between the two",
        "on_resume",  # If fixed, L_simple does not depend on it; see `compare.deciding`.
    ),
    # ---- optimizer
    "optimizer.learning_rate": Field(2e-4, Float(0), "rate after the warm-up"),
    "optimizer.warmup_steps": Field(
        5000, Int(0, 2**31 - 1), "steps over which the rate rises linearly"
    ),
    "optimizer.decay": Field(
        "constant",
        Choice(("constant", "linear", "cosine")),
        "decay of the rate after the warm-up, to 0 at train.num_steps; constant: none",
    ),
    "optimizer.grad_clip": Field(
        1.0, Float(0), "largest global norm of the gradients; 0: no limit"
    ),
    "optimizer.ema_decay": Field(0.9999, Float(0, 1), "decay of the averaged weights"),
    "optimizer.ema_warmup": Field(
        True,
        Bool(),
        "raise the decay from 0.1 at the start, so that the average forgets the random initialization",
    ),
    "optimizer.ema_decays": Field(
        (),
        Tuple(Float(0, 1, open=True)),
        "decays of further averages, such as 0.999,0.9999, which sample.ema can name",
    ),
    "optimizer.ema_lengths": Field(
        (),
        Tuple(Float(0, MAX_LENGTH, open=True)),
        "relative lengths of power-function averages, such as 0.05,0.1 (EDM2), which sample.ema_length can name",
        off=(),
    ),
    "optimizer.ema_snapshot_every": Field(
        0,
        Int(0, 2**31 - 1),
        "steps between snapshots of the power-function averages, from which sample.ema and sample.ema_length "
        "reconstruct others; with two lengths or more; 0: none",
        "on_resume",
        needs=("optimizer.ema_lengths",),
    ),
    # ---- train
    "train.num_steps": Field(
        800_000,
        Int(1, 2**31 - 1),
        "total number of steps; a resume may not change it if the learning rate decays (optimizer.decay)",
        "on_resume",
    ),
    "train.init_from": Field(
        None,
        FilePath("a folder's full path", folder=True),
        "workdir of a run whose averaged parameters a new training begins from; unset: random ones",
    ),
    "train.batch_size": Field(128, Int(1, 1_000_000), "images per step, over all devices"),
    "train.label_dropout": Field(
        0.0,
        Float(0, 1),
        "probability of dropping a label, for classifier-free guidance; 0: never",
    ),
    "train.accumulate": Field(
        1, Int(1, 1_000_000), "micro-batches per step (gradient accumulation)"
    ),
    "train.steps_per_dispatch": Field(
        None,
        Int(1, 1_000_000),
        "steps per call of the compiled program; unset: 1 on the CPU, 10 elsewhere",
        "on_resume",
    ),
    "train.step_timeout": Field(
        3600.0,
        Float(0, 1e9),
        "seconds without a finished step after which a run reports where it hangs and exits; 0: never",
        "on_resume",
    ),
    "train.log_every": Field(
        100, Int(1, 2**31 - 1), "steps between rows of metrics.jsonl", "on_resume"
    ),
    "train.checkpoint_every": Field(
        5000, Int(1, 2**31 - 1), "steps between checkpoints", "on_resume"
    ),
    "train.checkpoint_dir": Field(
        None,
        FilePath("a folder's full path, or an address such as gs://BUCKET/PATH", folder=True),
        "folder of the checkpoints of this run alone; unset: WORKDIR/checkpoints",
        "on_resume",
    ),
    "train.keep_last": Field(3, Int(1, 1_000_000), "newest checkpoints to keep", "on_resume"),
    "train.keep_every": Field(
        None,
        Int(1, 2**31 - 1),
        "besides the newest, keep multiples of this; unset: none",
        "on_resume",
    ),
    "train.profile": Field(
        None,
        Steps(),
        "steps whose trace is written to WORKDIR/profile, for TensorBoard; unset: none",
        "on_resume",
    ),
    "train.sample_every": Field(
        0, Int(0, 2**31 - 1), "steps between sample grids; 0: only at the end", "on_resume"
    ),
    "train.sample_images": Field(36, Int(1, 10_000), "images in these grids", "on_resume"),
    "train.sample_steps": Field(
        20,
        Int(0, 1_000_000),
        "steps of dpmpp_2m (trailing) that draw these grids, if no field says which sampler takes which steps; "
        "0: the sampler group's own",
        "on_resume",
    ),
    "train.eval_every": Field(
        None,
        Int(0, 2**31 - 1),
        "steps between held-out losses; unset: train.checkpoint_every if the data has test images; 0: never",
        "on_resume",
    ),
    "train.bpd_every": Field(
        0,
        Int(0, 2**31 - 1),
        "steps between measurements of test bits/dim (EMA), by the fields of the eval group; 0: never",
        "on_resume",
    ),
    "train.metrics_every": Field(
        0,
        Int(0, 2**31 - 1),
        "steps between measurements of eval.metrics (EMA), of samples where they are of images; 0: never",
        "on_resume",
    ),
}


def training_fields() -> dict[str, Field]:
    """Returns these fields and the options of the currently registered components."""
    return merge(
        _registry_fields(),
        _FIELDS,
        option_fields("data", SOURCES, "data.name"),
        option_fields("model", NETWORKS, "model.name"),
        option_fields("process", PROCESSES, "process.name"),
        option_fields("process", PREDICTIONS, "process.prediction"),
        _time_fields(),
        option_fields("loss", LOSSES, "loss.name"),
        option_fields("loss", WEIGHTINGS, "loss.weighting"),
        _logger_fields(),
    )


def _logger_fields() -> dict[str, Field]:
    """Returns the fields of the loggers' options; several loggers may be chosen."""
    fields = option_fields("train", LOGGERS, "train.loggers")
    return {name: dataclasses.replace(field, owners={}) for name, field in fields.items()}


def _time_fields() -> dict[str, Field]:
    """Returns the fields of the time samplers' options; the smallest u is for times that are not those of a grid."""
    fields = option_fields("loss", TIME_SAMPLERS, "loss.times")
    field = fields["loss.u_min"]
    owners = {
        "process.name": tuple(n for n, kind in PROCESSES.items() if kind.continuous),
        "loss.name": tuple(n for n, loss in LOSSES.items() if not loss.on_grid),
    }
    return fields | {"loss.u_min": dataclasses.replace(field, owners={**owners, **field.owners})}


def _registry_fields() -> dict[str, Field]:
    """Returns the fields that choose a component or that only some components have."""
    return {
        "data.name": Field("digits", SOURCES.choice, SOURCES.help(), chooses="data set"),
        "model.name": Field("unet", NETWORKS.choice, NETWORKS.help(), chooses="model"),
        "process.name": Field("ddpm", PROCESSES.choice, PROCESSES.help(), chooses="process"),
        "process.prediction": Field(
            "eps",
            PREDICTIONS.choice,
            f"the network's prediction; {PREDICTIONS.help()}",
            chooses="prediction",
        ),
        "process.inputs": Field(
            "unit",
            INPUTS.choice,
            f"what the network is given; {INPUTS.help()}",
            chooses="inputs",
            owners={
                "process.prediction": tuple(
                    name for name, kind in PREDICTIONS.items() if not kind.own_inputs
                )
            },
        ),
        "loss.name": Field("simple", LOSSES.choice, LOSSES.help(), chooses="loss"),
        "loss.times": Field(
            "uniform", TIME_SAMPLERS.choice, f"distribution of times; {TIME_SAMPLERS.help()}"
        ),
        "loss.weighting": Field(
            None,
            WEIGHTINGS.choice,
            "weight of the eps error at each noise level; unset: equal weights for errors of the prediction",
            chooses="weighting",
            owners={"loss.name": LOSSES.takers("weighting")},
        ),
        "train.loggers": Field(
            ("tensorboard",),
            Tuple(LOGGERS.choice),
            f"where metrics and pictures go besides the workdir's own files; {LOGGERS.help()}",
            "on_resume",
        ),
    }
