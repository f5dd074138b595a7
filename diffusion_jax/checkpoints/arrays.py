"""Arrays of a checkpoint: named pytrees written and read by Orbax, and their comparison with a template.

Each part has a folder of its own, so that one can be verified and read without the others.

Orbax takes half a second to import, so it is imported when first used.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

# With a bounded file size, several threads can hash a large checkpoint.
DATA_FILE_BYTES = 64 << 20

# Pytrees by name.
Parts = Mapping[str, Any]


def save_args(parts: Parts) -> Any:
    """Returns Orbax's arguments for saving the parts."""
    import orbax.checkpoint as ocp

    trees = {
        name: ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=DATA_FILE_BYTES)
        for name, tree in parts.items()
    }
    return ocp.args.Composite(**trees)


def read(directory: epath.Path, template: Parts) -> dict[str, Any]:
    """Returns the parts with the structure, shapes, dtypes and shardings of the template.

    A leaf without a sharding is put on the first local device.
    """
    import orbax.checkpoint as ocp

    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    parts = {}
    for name, tree in template.items():
        item = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default
            ),
            tree,
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args)
        parts[name] = handler().restore(directory / name, args=args)
    return parts


def describe(parts: Parts) -> dict[str, dict[str, str]]:
    """Returns "dtype[shape]" of every leaf of each part by its path, such as "dense/bias"."""
    return {
        name: {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in parts.items()
    }


def is_description(saved: object) -> bool:
    """Whether a value from a file has the form of `describe`'s result."""
    return isinstance(saved, dict) and all(
        isinstance(part, dict)
        and all(isinstance(leaf, str) and leaf.isprintable() for leaf in part.values())
        for part in saved.values()
    )


def misfit(saved: dict[str, dict[str, str]], template: Parts) -> str:
    """Returns how a template's leaves differ from the saved ones, or "" if they agree."""

    def flat(parts: dict[str, dict[str, str]]) -> dict[str, str]:
        return {
            f"{part}/{path}".rstrip("/"): leaf
            for part, leaves in parts.items()
            for path, leaf in leaves.items()
        }

    wanted = flat(describe(template))
    there = flat({name: saved.get(name, {}) for name in template})
    differences = [
        f"{name} is {there.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


@functools.cache
def handler() -> Any:
    """Returns the Orbax handler of one part."""
    import orbax.checkpoint as ocp

    class Handler(ocp.PyTreeCheckpointHandler):
        """Defers an error at the start of a save to its writes, where it is reported to the other processes."""

        async def async_save(self, *arguments: Any, **named: Any) -> list[Any]:
            try:
                return await super().async_save(*arguments, **named) or []
            except Exception as error:
                failed = concurrent.futures.Future()
                failed.set_exception(error)
                return [failed]

    # Slicing replicated arrays so that every replica writes a part compiles one program per shape:
    # on 8 devices the first save of 36 M parameters blocked for 35 s instead of 0.3 s.
    array_handler = ocp.type_handlers.ArrayHandler(
        use_replica_parallel=False, enable_write_sharding_file=False
    )
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, array_handler))
    # Trained weights hardly compress, and zstd takes CPU time from the training.
    return Handler(use_compression=False, use_zarr3=True, type_handler_registry=registry)
