# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from . import (
    checkpoints as checkpoints,
    commands as commands,
    config as config,
    data as data,
    errors as errors,
    experiment as experiment,
    features as features,
    keys as keys,
    likelihood as likelihood,
    losses as losses,
    metrics as metrics,
    models as models,
    ops as ops,
    options as options,
    parallel as parallel,
    planning as planning,
    processes as processes,
    reporting as reporting,
    runs as runs,
    samplers as samplers,
    training as training,
)
from .config import default_config as default_config
from .errors import InputError as InputError, RunError as RunError
from .likelihood import (
    exact_likelihood as exact_likelihood,
    variational_bound as variational_bound,
)
from .losses import loss_function as loss_function
from .models import (
    DiffusionModel as DiffusionModel,
    UNet as UNet,
    as_functions as as_functions,
    classifier_free as classifier_free,
    clip_denoised as clip_denoised,
)
from .processes import (
    DDPM as DDPM,
    VE as VE,
    VP as VP,
    make_grid as make_grid,
    make_schedule as make_schedule,
)
from .runs import load_run as load_run
from .samplers import (
    ancestral as ancestral,
    ddim as ddim,
    image_keys as image_keys,
    sample_loop as sample_loop,
)

__all__: list[str]
__version__: str
