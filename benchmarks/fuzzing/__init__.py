"""Readers of this library against mutated files: what is mutated, how each reader is asked, what counts as right."""

from fuzzing.loader import Loader


def loaders() -> dict[str, type[Loader]]:
    """Returns all loaders by name."""
    from fuzzing import archives, commands, jobs, picture_files, prepared, saved, workdirs

    modules = (workdirs, jobs, picture_files, archives, prepared, saved, commands)
    return {loader.name: loader for module in modules for loader in module.LOADERS}
