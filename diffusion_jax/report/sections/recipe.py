"""What was trained, and where: the recipe card, the fields that matter, versions and devices."""

from __future__ import annotations

import ast
from typing import Any

from diffusion_jax import config as config_lib, recipes
from diffusion_jax.errors import InputError
from diffusion_jax.report.blocks import Block, Card, Details, Facts, Note, Row, Table
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, entries, number, part, text

# What each line of the recipe says, from which fields.
_LINES = {
    "Data": ("data.name", "data.image_size"),
    "Network": ("model.name", "model.channels", "model.channel_mult", "model.dtype"),
    "Classes": ("model.num_classes",),
    "Process": ("process.name", "process.schedule", "process.num_timesteps"),
    "Prediction": ("process.prediction",),
    "Loss": ("loss.name", "loss.weighting"),
    "Learning rate": ("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.decay"),
    "Averages": ("optimizer.ema_decay", "optimizer.ema_decays", "optimizer.ema_lengths"),
    "Training": ("train.num_steps", "train.batch_size"),
    "Seed": ("seed",),
}


def recipe(inputs: Inputs) -> list[Block]:
    """Returns the recipe, the environment and all fields that were set."""
    run = inputs.run
    blocks: list[Block] = [Note(problem) for problem in run.problems]
    if not run.fields:
        return [*blocks, Note("There is no config yet: train a run.", run.training())]
    if card := recipe_card(run):
        blocks.append(Card(*card))
    trained = run.result("train")
    if not trained:
        blocks.append(
            Note(
                "The training has not ended yet, so the number of parameters, the data and the versions are not known. "
                "The same command as before continues it:",
                run.training(),
            )
        )
    blocks.append(Row([_facts(run, trained), _environment(run, trained)]))
    return [*blocks, _changed(run)]


def recipe_card(run: RunFolder) -> tuple[str, str] | None:
    """Returns the docstring of the recipe that decides the same trained result as the run's config, and its name."""
    if run.config_hash is None:
        return None
    for path in map(recipes.file_of, recipes.names()):
        try:
            same = config_lib.config_hash(config_lib.load_file(str(path))) == run.config_hash
        except InputError:  # A user's own file.
            continue
        if same and (card := ast.get_docstring(ast.parse(path.read_text()))):
            return card, f"Recipe card of configs/{path.name}, whose config hash this run has"
    return None


def _facts(run: RunFolder, trained: dict[str, Any]) -> Facts:
    rows = []
    for line, names in _LINES.items():
        known = [name for name in names if run.fields.get(name) not in (None, [])]
        if known:
            rows.append((line, "; ".join(f"{_leaf(n)} {text(run.fields[n])}" for n in known)))
    if data := part(trained.get("data")):
        shape = entries(data.get("image_shape")) or ["?"]
        rows.insert(
            1,
            (
                "Images",
                f"{text(data.get('num_images'))} to train on, {text(data.get('num_test_images'))} held out, "
                + " × ".join(map(str, shape)),
            ),
        )
    origin = trained.get("init_from")
    if isinstance(origin, dict):
        begins = (
            f"averaged parameters of {text(origin.get('workdir'))}, step {text(origin.get('step'))}"
        )
        rows.append(("Begins from", begins))
    parameters = trained.get("parameters")
    rows.append(("Parameters", f"{parameters:,}" if isinstance(parameters, int) else "unknown"))
    return Facts(rows, "Recipe")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _environment(run: RunFolder, trained: dict[str, Any]) -> Facts:
    versions = part(trained.get("provenance"))
    last = run.rows[-1]["step"] if run.rows else trained.get("step")
    rows = [
        ("Step", f"{text(last)} of {text(run.fields.get('train.num_steps'))}"),
        ("Config hash", text(trained.get("config_hash") or run.config_hash)),
        ("Device", text(versions.get("device"))),
        *((name, text(value)) for name, value in versions.items() if name != "device"),
    ]
    if (seconds := number(trained.get("train_seconds"))) is not None:
        rows.insert(1, ("Training time", f"{seconds / 60:,.1f} minutes of steps"))
    return Facts(rows, "Environment")


def _changed(run: RunFolder) -> Block:
    known = config_lib.FIELDS
    rows = [
        (name, text(value), text(known[name].default) if name in known else "unknown field")
        for name, value in run.fields.items()
        if name not in known or text(value) != text(known[name].default)
    ]
    header = ("Field", "Value", "Default")
    return Details(
        f"{len(rows)} fields differ from their defaults",
        [Table("Fields that differ from their defaults", header, rows)],
    )
