# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from .averages import (
    Exponential as Exponential,
    Fit as Fit,
    PowerFunction as PowerFunction,
    fit as fit,
    step_weights as step_weights,
    weighted_sum as weighted_sum,
)
from .loggers import LOGGERS as LOGGERS, Logger as Logger
from .optimizer import (
    DECAYS as DECAYS,
    ema_decay as ema_decay,
    exact_ema_decay as exact_ema_decay,
    make_optimizer as make_optimizer,
    power_decay as power_decay,
)
from .state import (
    TrainState as TrainState,
    create_state as create_state,
)
from .step import (
    make_multi_step as make_multi_step,
    make_train_step as make_train_step,
)
