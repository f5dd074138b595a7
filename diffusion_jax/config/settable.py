"""Fields of what is done with a trained network: every mode may set them."""

from diffusion_jax.config.field import SEEDS, SPACING, VARIANCE, Field
from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Text, Tuple

SETTABLE = {
    # ---- sampler
    "sampler.name": Field(
        "ancestral",
        Choice(
            (
                *("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "euler_maruyama"),
                *("heun", "langevin", "ode_adaptive", "ode_heun", "pc", "pndm"),
                *("reverse_diffusion", "unipc"),
            )
        ),
        "update rule; dpmpp (DPM-Solver++) is for 10 to 20 steps, unipc for 5 to 15; heun evaluates twice a step",
        "always",
    ),
    "sampler.num_steps": Field(
        None,
        Int(1, 1_000_000),
        "steps, of ddpm at most process.num_timesteps; unset: all (ode_adaptive: 2), or as many as spacing lists",
        "always",
    ),
    "sampler.spacing": Field(
        "uniform",
        SPACING,
        "times to visit: a rule (logsnr, karras: also between timesteps), or times, with the last among them",
        "always",
    ),
    "sampler.u_min": Field(
        None,
        Float(0, 1, open=True),
        "vp, subvp, ve: u where the step to the data begins; unset: 1e-3, ve: 1e-5",
        "always",
    ),
    "sampler.temperature": Field(
        1.0,
        Float(0, 10),
        "standard deviation of x_T over the prior's, of edit.latents x_T over what was found; 1: as trained",
        "always",
    ),
    "sampler.variance": Field(
        None,
        VARIANCE,
        "ancestral: of the steps, beta_t, the posterior's, or the network's; unset: process.variance",
        "always",
    ),
    "sampler.eta": Field(
        0.0,
        Float(0, 1),
        "ddim: share of fresh noise in a step; 0: none, 1: as ancestral with fixed_small",
        "always",
    ),
    "sampler.order": Field(
        3, Int(1, 3), "unipc: order of its predictor; 3, or 2 where guidance is strong", "always"
    ),
    "sampler.churn": Field(
        0.0, Float(0), "heun: fresh noise of all steps together; 0: none", "always"
    ),
    "sampler.churn_min": Field(
        0.0, Float(0), "heun: smallest std / signal at which noise is added", "always"
    ),
    "sampler.churn_max": Field(
        None, Float(0), "heun: largest std / signal at which noise is added; unset: any", "always"
    ),
    "sampler.churn_noise": Field(
        1.0, Float(0), "heun: standard deviation of that noise, relative to the exact one", "always"
    ),
    "sampler.predictor": Field(
        "reverse_diffusion",
        Choice(("ancestral", "euler_maruyama", "reverse_diffusion")),
        "pc: rule of a step",
        "always",
    ),
    "sampler.corrector_steps": Field(
        1,
        Int(0, 10_000),
        "pc: Langevin moves after each step, an evaluation each; 0: none",
        "always",
    ),
    "sampler.snr": Field(
        0.16,
        Float(0, 1, open=True),
        "pc: signal-to-noise ratio of a move: it adds 2 snr times the noise of x_t, or less",
        "always",
    ),
    "sampler.langevin_steps": Field(
        5, Int(1, 1_000_000), "langevin: moves at each noise level, an evaluation each", "always"
    ),
    "sampler.langevin_step_size": Field(
        None,
        Float(0, 2, open=True),
        "langevin: size of a move over the noise's variance; unset: the best for the number of moves, level by level",
        "always",
    ),
    "sampler.rtol": Field(
        1e-5,
        Float(1e-7, 1),
        "ode_adaptive: relative tolerance of a solver's step; float32 has none below 1e-7",
        "always",
    ),
    "sampler.atol": Field(
        1e-5, Float(1e-9, 1), "ode_adaptive: absolute tolerance, likewise", "always"
    ),
    "sampler.max_steps": Field(
        1000,
        Int(1, 1_000_000),
        "ode_adaptive: most steps of the solver between two points of the grid, rejected ones included",
        "always",
    ),
    "sampler.clip": Field(True, Bool(), "limit each prediction of x_0 to [-1, 1]", "always"),
    "sampler.clip_keeps": Field(
        None,
        Choice(("eps",)),
        "ddim, where x_0 is limited: eps stays the network's, as in diffusers; unset: x_t stays, and eps follows",
        "always",
    ),
    "sampler.dynamic_threshold": Field(
        None,
        Float(0, 1, open=True),
        "in place of clip: this quantile of the sizes in x_0 (such as 0.995) becomes 1, if it is larger; unset: none",
        "always",
    ),
    "sampler.guidance_scale": Field(
        None,
        Float(0),
        "classifier-free guidance; 1: the class alone, 0: without it; doubles the evaluations; unset: none",
        "always",
    ),
    "sampler.guidance_interval": Field(
        None,
        Tuple(Float(0), empty=False),
        "lowest and highest std / signal at which to guide, such as 0.2,5; unset: everywhere",
        "always",
    ),
    "sampler.guidance_rescale": Field(
        0.0,
        Float(0, 1),
        "how far guided images get back the contrast of unguided ones; 0: not at all, 1: fully",
        "always",
    ),
    "sampler.guidance_rescale_of": Field(
        None,
        Choice(("x0", "eps", "v")),
        "what guidance_rescale is of; diffusers' is of what the network predicts; unset: x0",
        "always",
    ),
    # ---- sample
    "sample.num_images": Field(64, Int(1, 100_000_000), "images to draw", "always"),
    "sample.batch_size": Field(
        64, Int(1, 1_000_000), "images drawn together; no image depends on it", "always"
    ),
    "sample.formats": Field(
        ("png", "npz"),
        Tuple(Choice(("png", "npz", "array_record")), empty=False),
        "what to write: png/, images.npz, array_record/ (a TFDS data set, which data.name=tfds:images reads)",
        "always",
    ),
    "sample.seed": Field(0, SEEDS, "image i depends on this seed and i alone", "always"),
    "sample.labels": Field(
        None,
        Tuple(Either(Int(0, 1_000_000), Text("a class's name")), empty=False),
        "classes, by number or name, repeated over the images; unset: all classes in turn",
        "always",
    ),
    "sample.ema": Field(True, Bool(), "draw with the averaged weights", "always"),
    "sample.step": Field(
        None, Int(0, 2**31 - 1), "step of the checkpoint; unset: the newest", "always"
    ),
    "sample.progressive": Field(
        False,
        Bool(),
        "sample: also show how the first images came about: progressive.png, .npz and strip.png",
        "always",
    ),
    "sample.shared_t": Field(
        None,
        Tuple(Float(), empty=False),
        "sample: also draw shared.png: several samples from one x_t at each of these times; unset: none",
        "always",
    ),
    # ---- edit
    "edit.images": Field(
        None,
        Tuple(Text("a path"), empty=False),
        "images to work on: files, or folders of them; unset: the first sample.num_images test images",
        "always",
    ),
    "edit.keep": Field(
        "mask",
        Choice(("mask", "grey", "coarse", "nothing")),
        "inpaint: what is kept of an image: pixels, its grey values, the means of blocks, or nothing but a start",
        "always",
    ),
    "edit.mask": Field(
        None,
        Text("a path"),
        "inpaint, keep=mask: grey PNG of the images' size; black is kept, white drawn anew; unset: none",
        "always",
    ),
    "edit.factor": Field(
        4,
        Int(2, 16_384),
        "inpaint, keep=coarse: side of the blocks, by which it enlarges",
        "always",
    ),
    "edit.start_t": Field(
        None,
        Float(),
        "inpaint: time to start from, with the image and its noise; unset: from noise alone",
        "always",
    ),
    "edit.resamplings": Field(
        1,
        Int(1, 10_000),
        "inpaint: how often each stretch of steps is done (RePaint); 1: once",
        "always",
    ),
    "edit.jump": Field(10, Int(1, 1_000_000), "inpaint: steps in a stretch", "always"),
    "edit.times": Field(
        None,
        Tuple(Float(), empty=False),
        "interpolate: times to mix images at; unset: an eighth, two, ... eight eighths of all",
        "always",
    ),
    "edit.num_between": Field(7, Int(1, 10_000), "interpolate: images between two", "always"),
    "edit.latents": Field(
        False,
        Bool(),
        "interpolate: also along the arc between the x_T that ddim or ode_adaptive makes the images of",
        "always",
    ),
    "edit.iterations": Field(
        0,
        Int(0, 10_000),
        "interpolate, latents of ddim: fixed-point iterations a step in finding x_T; 0: plain inversion",
        "always",
    ),
    # ---- eval
    "eval.num_images": Field(1000, Int(1, 1_000_000_000), "images to measure, at most", "always"),
    "eval.batch_size": Field(
        250, Int(1, 1_000_000), "images measured together; no result depends on it", "always"
    ),
    "eval.split": Field(
        "test", Choice(("test", "train")), "images that --mode=evaluate measures", "always"
    ),
    "eval.metrics": Field(
        ("bpd",),
        Tuple(Choice(("bpd", "ode_bpd")), empty=False),
        "what --mode=evaluate measures; bpd, ode_bpd: bits/dim by the variational bound, or exact, by the ODE",
        "always",
    ),
    "eval.seed": Field(
        0, SEEDS, "of the noise; that of image i depends on this seed and i alone", "always"
    ),
    "eval.ema": Field(True, Bool(), "measure the averaged weights", "always"),
    "eval.step": Field(
        None, Int(0, 2**31 - 1), "step of the checkpoint; unset: the newest", "always"
    ),
    "eval.num_steps": Field(
        None,
        Int(1, 1_000_000),
        "bound: steps of the chain, of ddpm at most process.num_timesteps; unset: all, or as many as spacing lists",
        "always",
    ),
    "eval.spacing": Field(
        "uniform",
        SPACING,
        "bound: times of these steps: a rule, or times; without the last among them L_T is large",
        "always",
    ),
    "eval.u_min": Field(
        None,
        Float(0, 1, open=True),
        "vp, subvp, ve: u of the last point before the data; unset: bpd: 1e-3, ve: 1e-5; ode_bpd: 1e-5",
        "always",
    ),
    "eval.num_terms": Field(
        None,
        Int(1, 1_000_000),
        "bound: terms of each image, drawn half evenly and half where they are large, L_0 among them; unset: all",
        "always",
    ),
    "eval.variance": Field(
        None,
        VARIANCE,
        "bound: variance of the steps, beta_t, the posterior's, or the network's; unset: process.variance",
        "always",
    ),
    "eval.clip": Field(True, Bool(), "bound: limit each prediction of x_0 to [-1, 1]", "always"),
    "eval.approximate_cdf": Field(
        False, Bool(), "bound: the decoder's tanh approximation of older codes", "always"
    ),
    "eval.num_dequantizations": Field(
        1,
        Int(1, 10_000),
        "ode_bpd: dequantisations of each image, with probes of their own",
        "always",
    ),
    "eval.num_probes": Field(
        1, Int(1, 10_000), "ode_bpd: probes of the divergence of each dequantisation", "always"
    ),
    "eval.probes": Field(
        "rademacher",
        Choice(("rademacher", "gaussian")),
        "ode_bpd: distribution of the probes: signs, or normal",
        "always",
    ),
    "eval.rtol": Field(
        1e-5, Float(1e-7, 1), "ode_bpd: relative tolerance of a step of the ODE", "always"
    ),
    "eval.atol": Field(
        1e-5, Float(1e-9, 1), "ode_bpd: absolute tolerance of a step of the ODE", "always"
    ),
    "eval.max_steps": Field(
        1000,
        Int(1, 1_000_000),
        "ode_bpd: most steps of the ODE, those that were tried again included",
        "always",
    ),
    # ---- mesh
    "mesh.data": Field(
        -1,
        Int(-1, 1_000_000),
        "devices along the batch alone; -1: all that are left; of a CPU's cores the most that share the batch, "
        "32 images or more each",
        "always",
    ),
    "mesh.fsdp": Field(
        1,
        Int(1, 1_000_000),
        "devices along the batch over which parameters, averages and the optimiser's state are divided too",
        "always",
    ),
}
