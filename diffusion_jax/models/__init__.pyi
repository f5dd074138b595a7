# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from . import networks as networks
from .denoiser import (
    Prediction as Prediction,
    complete as complete,
)
from .diffusion_model import (
    DiffusionModel as DiffusionModel,
    Output as Output,
)
from .flow import (
    field_of as field_of,
)
from .guidance import (
    classifier_free as classifier_free,
    classifier_guided as classifier_guided,
    clip_denoised as clip_denoised,
    dynamic_threshold as dynamic_threshold,
)
from .inputs import (
    INPUTS as INPUTS,
    Inputs as Inputs,
    level_inputs as level_inputs,
    unit_inputs as unit_inputs,
    ve_inputs as ve_inputs,
)
from .networks import (
    MLP as MLP,
    NETWORKS as NETWORKS,
    PRESETS as PRESETS,
    ClassifierUNet as ClassifierUNet,
    Model as Model,
    NetworkKind as NetworkKind,
    UNet as UNet,
    as_functions as as_functions,
    count_parameters as count_parameters,
    preset as preset,
)
from .preconditioning import (
    PREDICTIONS as PREDICTIONS,
    Preconditioning as Preconditioning,
    PredictionKind as PredictionKind,
    edm as edm,
    velocity as velocity,
)
