"""Which sampler draws the pictures of a training."""

from pathlib import Path

import pytest

from diffusion_jax.config import default_config, load_file, override
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.build import Experiment

CONFIGS = Path(__file__).parents[2] / "configs"


def experiment(**fields: str) -> Experiment:
    config = default_config()
    tiny = {"model.name": "mlp", "process.schedule": "cosine", "model.num_classes": "3"}
    override(config, list((tiny | {"train.label_dropout": "0.1"} | fields).items()))
    return build.build(config, (8, 8, 1), 3)


def drawn_by(exp: Experiment) -> tuple[str, int | None]:
    fields = sampling.for_pictures(exp).config.sampler
    return fields.name, fields.num_steps


def test_a_fast_solver_draws_the_pictures_of_a_training_if_no_sampler_is_named() -> None:
    exp = experiment()
    assert drawn_by(exp) == ("dpmpp_2m", 20)
    assert sampling.for_pictures(exp).config.sampler.spacing == "trailing"
    assert exp.sampler_name == "ancestral"  # What --mode=sample takes is another matter.
    assert drawn_by(experiment(**{"train.sample_steps": "7"})) == ("dpmpp_2m", 7)
    assert sampling.sampler_of(sampling.for_pictures(exp)).grid.num_steps == 20


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler.name": "ddim"},
        {"sampler.num_steps": "500"},
        {"sampler.spacing": "trailing"},
        {"sampler.variance": "fixed_small"},
        {"train.sample_steps": "0"},
        {"process.num_timesteps": "20"},  # No more steps than the solver would take.
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_sampler_group_draws_them_where_it_says_how(fields: dict[str, str]) -> None:
    exp = experiment(**fields)
    assert sampling.for_pictures(exp) is exp


def test_guidance_and_clipping_of_the_pictures_are_those_of_the_sampler_group() -> None:
    exp = experiment(**{"sampler.guidance_scale": "2", "sampler.clip": "false"})
    fields = sampling.for_pictures(exp).config.sampler
    assert (fields.name, fields.guidance_scale, fields.clip) == ("dpmpp_2m", 2, False)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_recipes_of_a_paper_keep_its_sampler(path: Path) -> None:
    config = load_file(str(path))
    if path.stem.startswith(("digits", "fashion")):
        config.model.attention_resolutions = ()
    exp = build.build(config, (32, 32, 3), 10)
    ours = ("digits", "fashion_mnist", "image_folder")  # Others say how to draw.
    assert (sampling.for_pictures(exp) is not exp) == (path.stem in ours)
