# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from .affine import Affine as Affine
from .ddpm import (
    DDPM as DDPM,
    discrete_chain as discrete_chain,
)
from .dynamics import (
    SDE as SDE,
    simulate as simulate,
)
from .gaussian import (
    Posterior as Posterior,
    clip_x0 as clip_x0,
    eps_from_v as eps_from_v,
    eps_from_x0 as eps_from_x0,
    q_posterior as q_posterior,
    q_sample as q_sample,
    score_from_eps as score_from_eps,
    v_from_x0_eps as v_from_x0_eps,
    x0_from_eps as x0_from_eps,
    x0_from_v as x0_from_v,
)
from .grid import (
    SPACINGS as SPACINGS,
    make_grid as make_grid,
)
from .ncsn import (
    NCSN as NCSN,
    ladder_ratio as ladder_ratio,
    largest_distance as largest_distance,
    num_levels as num_levels,
)
from .ode import (
    Solution as Solution,
    SolverStats as SolverStats,
    solve as solve,
)
from .process import (
    Grid as Grid,
    Point as Point,
    Points as Points,
    Process as Process,
    Rates as Rates,
    namespace as namespace,
)
from .registry import (
    PROCESSES as PROCESSES,
    ProcessKind as ProcessKind,
)
from .reverse import (
    VARIANCES as VARIANCES,
    p_posterior as p_posterior,
    posterior_kl as posterior_kl,
)
from .schedules import (
    SCHEDULES as SCHEDULES,
    Schedule as Schedule,
    ScheduleArrays as ScheduleArrays,
    make_schedule as make_schedule,
    respace as respace,
    schedule_arrays as schedule_arrays,
    schedule_from_betas as schedule_from_betas,
    zero_terminal_snr as zero_terminal_snr,
)
from .sde import (
    VE as VE,
    VP as VP,
    ContinuousProcess as ContinuousProcess,
    SubVP as SubVP,
)
