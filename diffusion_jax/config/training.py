"""Fields that decide what is trained, and how: the run's own, in every other mode."""

from diffusion_jax.config.data_fields import AUTO
from diffusion_jax.config.field import SEEDS, VARIANCE, Field
from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Text, Tuple

TRAINING = {
    "seed": Field(0, SEEDS, "seed of initialisation, order of the images, noise and dropout"),
    # ---- data
    "data.name": Field(
        "digits",
        Choice(("digits", "fashion_mnist", "cifar10", "image_folder"), prefix="tfds:"),
        "data set; tfds:NAME is one that TFDS has prepared in source_dir",
    ),
    "data.source_dir": Field(
        None,
        Text("a path"),
        "where the images or the archive lie; unset: where the source finds or puts them",
        "resume",
    ),
    "data.sha256": Field(
        None, Text("a SHA-256 checksum"), "checksum of a repacked archive; unset: the published one"
    ),
    "data.image_size": Field(
        None,
        Int(1, 16_384),
        "side to crop and resize to; image_folder needs it; unset: as the images are",
    ),
    "data.random_flip": Field(False, Bool(), "mirror training images at random, left to right"),
    "data.test_fraction": Field(
        0.2, Float(0, 0.9), "share that is held out, where the set has no test split of its own"
    ),
    "data.cache_dir": Field(
        None,
        Text("a folder"),
        "prepared data and compiled programs; unset: ~/.cache/diffusion_jax",
        "resume",
    ),
    # ---- model
    "model.name": Field("unet", Choice(("unet", "mlp")), "architecture"),
    "model.channels": Field(128, Int(4, 16_384, factor=4), "width of the first level"),
    "model.channel_mult": Field(
        (1, 2, 2, 2),
        Tuple(Int(1, 1_024), empty=False, longest=14),
        "U-Net: width of each level in units of channels; each halves the resolution",
    ),
    "model.num_res_blocks": Field(
        2, Int(1, 1_000), "residual blocks a level (U-Net) or in all (MLP)"
    ),
    "model.attention_resolutions": Field(
        (16,), Tuple(Int(1, 16_384)), "U-Net: heights of the feature maps that get self-attention"
    ),
    "model.dropout": Field(0.0, Float(0, 0.99), "rate of dropout while training"),
    "model.num_classes": Field(
        0,
        Either(Int(0, 1_000_000), Choice((AUTO,))),
        "classes to condition on, those of the data; auto: as many as they have; 0: unconditional",
    ),
    "model.norm_groups": Field(
        None,
        Int(1, 16_384),
        "U-Net: groups of a norm, a divisor of channels; unset: up to 32, of at least four channels",
    ),
    "model.norm_eps": Field(1e-6, Float(1e-12, 1), "U-Net: what a norm adds to the variance"),
    "model.dtype": Field(
        "float32", Choice(("float32", "bfloat16")), "of the computation; parameters are float32"
    ),
    "model.remat": Field(
        "none",
        Either(Choice(("none", "blocks")), Tuple(Choice(("conv", "attention")), empty=False)),
        "U-Net: what the backward pass recomputes, to save memory: blocks, or all of them but the results named",
        "resume",
    ),
    # ---- process
    "process.name": Field(
        "ddpm",
        Choice(("ddpm", "vp", "subvp", "ve", "ncsn")),
        "the discrete chain; SDEs: variance-preserving, sub-VP, variance-exploding; ncsn: a ladder of noise levels",
    ),
    "process.schedule": Field(
        "linear",
        Choice(("linear", "quad", "const", "warmup10", "warmup50", "cosine", "sigmoid", "jsd")),
        "ddpm: variance schedule beta_t",
    ),
    "process.num_timesteps": Field(
        1000,
        Int(1, 1_000_000),
        "T, the number of steps; of an SDE: steps of a sampler that sets none; ncsn: L, of levels",
    ),
    "process.beta_start": Field(
        None, Float(0, 1, open=True), "ddpm: first beta, if the schedule has one; unset: 0.1 / T"
    ),
    "process.beta_end": Field(
        None, Float(0, 1, open=True), "ddpm: last beta, if the schedule has one; unset: 20 / T"
    ),
    "process.beta_min": Field(
        None, Float(1e-6, 1e6), "vp, subvp: beta at u = 0, the data; unset: 0.1"
    ),
    "process.beta_max": Field(None, Float(1e-6, 1e6), "vp, subvp: beta at u = 1; unset: 20"),
    "process.sigma_min": Field(
        None, Float(1e-6, 1e6), "ve, ncsn: noise at u = 0, of pixels in [-1, 1]; unset: 0.02"
    ),
    "process.sigma_max": Field(
        None,
        Float(1e-6, 1e6),
        "ve, ncsn: noise at u = 1, about the largest distance between two images; unset: 100",
    ),
    "process.prediction": Field(
        "eps",
        Choice(("eps", "x0", "v", "mean", "score")),
        "what the network predicts of x_t; mean: the posterior's, mu_tilde; score: std times the score",
    ),
    "process.variance": Field(
        "fixed_large",
        VARIANCE,
        "of the reverse steps: beta_t, the posterior's, or predicted by the network, between the two",
        "resume",  # If fixed, L_simple does not depend on it; see `compare.deciding`.
    ),
    # ---- loss
    "loss.name": Field(
        "simple",
        Choice(("simple", "vlb", "hybrid", "sliced")),
        "simple: square error, Eq. 14; vlb: the bound; hybrid: simple, vlb for the variance; sliced: sliced scores",
    ),
    "loss.vlb_weight": Field(0.001, Float(0), "hybrid: how much vlb counts, in bits/dim"),
    "loss.num_probes": Field(1, Int(1, 10_000), "sliced: random directions an image and step"),
    "loss.times": Field(
        "uniform",
        Choice(("uniform", "stratified", "importance", "likelihood")),
        "how times are drawn: one by one, evenly over a batch, or more where their loss, or that weighting, is large",
    ),
    "loss.weighting": Field(
        None,
        Choice(("snr", "truncated_snr", "min_snr", "p2", "sigmoid", "likelihood")),
        "weight of each noise level's eps error; unset: all errors of what is predicted weigh the same",
    ),
    "loss.min_snr_gamma": Field(5.0, Float(1e-3, 1e6), "min_snr: largest weight of an x0 error"),
    "loss.p2_k": Field(1.0, Float(1e-3, 1e3), "p2: k of 1 / (k + SNR)^gamma"),
    "loss.p2_gamma": Field(1.0, Float(0, 10), "p2: gamma of 1 / (k + SNR)^gamma"),
    "loss.sigmoid_bias": Field(
        2.0, Float(-20, 20), "sigmoid: the log SNR whose weight is one half"
    ),
    "loss.u_min": Field(
        None,
        Float(0, 1, open=True),
        "vp, subvp, ve: the smallest u in (0, 1) to train at (not of vlb, hybrid); unset: 1e-5",
    ),
    # ---- optimizer
    "optimizer.learning_rate": Field(2e-4, Float(0), "rate after the warm-up"),
    "optimizer.warmup_steps": Field(
        5000, Int(0, 2**31 - 1), "steps over which the rate rises linearly"
    ),
    "optimizer.decay": Field(
        "constant",
        Choice(("constant", "linear", "cosine")),
        "of the rate after the warm-up, to 0 at train.num_steps; constant: none",
    ),
    "optimizer.grad_clip": Field(
        1.0, Float(0), "largest global norm of the gradients; 0: no limit"
    ),
    "optimizer.ema_decay": Field(0.9999, Float(0, 1), "decay of the averaged weights"),
    "optimizer.ema_warmup": Field(
        True, Bool(), "let that decay rise from 0.1, so that the average forgets the random start"
    ),
    # ---- train
    "train.num_steps": Field(
        800_000,
        Int(1, 2**31 - 1),
        "steps in all; where optimizer.decay has the rate end there, a resume may not change it",
        "resume",
    ),
    "train.batch_size": Field(128, Int(1, 1_000_000), "images a step, over all devices"),
    "train.label_dropout": Field(
        0.0,
        Float(0, 1),
        "share of labels that a conditional model does not see, for guidance; 0: none",
    ),
    "train.accumulate": Field(
        1, Int(1, 1_000_000), "parts of a batch that are computed one after the other"
    ),
    "train.steps_per_dispatch": Field(
        None,
        Int(1, 1_000_000),
        "steps in one compiled program; unset: 1 on the CPU, 10 elsewhere",
        "resume",
    ),
    "train.step_timeout": Field(
        3600.0,
        Float(0, 1e9),
        "seconds without a finished step after which a run says where it hangs, and ends; 0: never",
        "resume",
    ),
    "train.log_every": Field(
        100, Int(1, 2**31 - 1), "steps between rows of metrics.jsonl", "resume"
    ),
    "train.checkpoint_every": Field(5000, Int(1, 2**31 - 1), "steps between checkpoints", "resume"),
    "train.checkpoint_dir": Field(
        None,
        Text("a folder's full path, or an address such as gs://BUCKET/PATH"),
        "where this run's checkpoints are, and no other's; unset: WORKDIR/checkpoints",
        "resume",
    ),
    "train.keep_last": Field(3, Int(1, 1_000_000), "newest checkpoints to keep", "resume"),
    "train.keep_every": Field(
        None, Int(1, 2**31 - 1), "besides the newest, keep multiples of this; unset: none", "resume"
    ),
    "train.sample_every": Field(
        0, Int(0, 2**31 - 1), "steps between sample grids; 0: only at the end", "resume"
    ),
    "train.sample_images": Field(36, Int(1, 10_000), "images in these grids", "resume"),
    "train.eval_every": Field(
        0, Int(0, 2**31 - 1), "steps between held-out losses; 0: never", "resume"
    ),
    "train.bpd_every": Field(
        0,
        Int(0, 2**31 - 1),
        "steps between bits/dim of test images (EMA), measured as the eval group says; 0: never",
        "resume",
    ),
}
