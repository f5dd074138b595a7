# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from .decoder import (
    check_levels as check_levels,
    discretized_gaussian as discretized_gaussian,
    gaussian_density as gaussian_density,
)
from .divergence import (
    PROBES as PROBES,
    draw_probes as draw_probes,
    exact_divergence as exact_divergence,
    hutchinson as hutchinson,
)
from .exact import (
    Likelihood as Likelihood,
    bits_per_dim as bits_per_dim,
    dequantize as dequantize,
    dequantized_likelihood as dequantized_likelihood,
    exact_likelihood as exact_likelihood,
    flow_likelihood as flow_likelihood,
)
from .progressive import rate_distortion as rate_distortion
from .vlb import (
    VLB as VLB,
    variational_bound as variational_bound,
)
