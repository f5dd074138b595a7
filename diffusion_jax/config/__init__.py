"""The configuration: one table of fields, and functions that load, check and compare configs.

A config is a locked `ConfigDict`. Only the commands see one; library functions take plain arguments.
"""

from __future__ import annotations

from diffusion_jax.config.checks import validate
from diffusion_jax.config.compare import (
    changes,
    config_hash,
    differing,
    is_free,
    is_settable,
    recipe_hash,
    settable_groups,
)
from diffusion_jax.config.data_fields import AUTO, left_open, with_num_classes, with_numbers
from diffusion_jax.config.field import Field
from diffusion_jax.config.loading import (
    default_config,
    fields,
    from_dict,
    load_file,
    locate,
    override,
    select,
    to_json,
)
from diffusion_jax.config.table import FIELDS, GROUPS, first_name, full_name, group_of
from diffusion_jax.config.usage import check_used, effective, options_of

__all__ = [
    "AUTO",
    "FIELDS",
    "GROUPS",
    "Field",
    "changes",
    "check_used",
    "config_hash",
    "recipe_hash",
    "default_config",
    "differing",
    "effective",
    "fields",
    "first_name",
    "from_dict",
    "full_name",
    "group_of",
    "is_free",
    "is_settable",
    "left_open",
    "load_file",
    "locate",
    "options_of",
    "override",
    "select",
    "settable_groups",
    "to_json",
    "validate",
    "with_num_classes",
    "with_numbers",
]
