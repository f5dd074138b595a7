"""What a config leaves to the data: as many classes as they have, and classes by name."""

import re
import warnings
from collections.abc import Sequence

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import (
    changes,
    config_hash,
    default_config,
    left_open,
    validate,
    with_num_classes,
    with_numbers,
)
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build

ANIMALS = ("cat", "dog", "owl")


def config_of(num_classes: int | str, labels: Sequence[int | str] | None = None) -> ConfigDict:
    config = default_config()
    config.model.num_classes = num_classes
    config.sample.labels = labels
    return config


def test_auto_is_as_many_classes_as_the_data_have_and_compares_like_the_number() -> None:
    auto = config_of("auto")
    validate(auto)
    for number in (0, 3):
        found, given = with_num_classes(auto, number), config_of(number)
        assert found.model.num_classes == number and found.is_locked
        assert not changes(found, given) and config_hash(found) == config_hash(given)
    assert auto.model.num_classes == "auto"  # The user's own config stays as it is.
    assert with_num_classes(given, 5) is given


def test_what_the_data_have_to_say_is_known_by_name() -> None:
    assert left_open(config_of("auto", (0, "cat"))) == {"model.num_classes", "sample.labels"}
    assert left_open(config_of(3, (0, 1))) == left_open(config_of(0)) == set()


def test_classes_are_named_or_numbered() -> None:
    config = config_of(3, ("owl", 1, "cat", "owl"))
    validate(config)
    numbered = with_numbers(config, ANIMALS)
    assert numbered.sample.labels == (2, 1, 0, 2)
    assert config.sample.labels == ("owl", 1, "cat", "owl")
    assert with_numbers(numbered, ANIMALS) is numbered


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (("cat", "dgo"), ANIMALS, "no class 'dgo'; the classes are 0: cat, 1: dog, 2: owl. Did"),
        (("-1",), ANIMALS, "no class '-1'; the classes are 0: cat, 1: dog, 2: owl."),
        (("x\n" * 500,), ANIMALS, r"no class 'x\\\\nx\\\\n.*…'; the classes"),
        (("cat",), (), "has the name 'cat', but the run knows its 3 classes by number alone"),
    ],
)
def test_a_name_that_no_class_has_is_refused_with_the_classes(labels, names, message) -> None:
    with pytest.raises(InputError, match=f"sample.labels:? (there is )?{message}") as caught:
        with_numbers(config_of(3, labels), names)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_a_number_that_is_another_classs_name_is_told_apart() -> None:
    from_one = [str(i) for i in range(1, 11)]
    said = "2 is class 2: '3' (the one named '2' is number 1)"
    with pytest.warns(UserWarning, match=re.escape(said)):
        config = with_numbers(config_of(10, (2,)), from_one)
    assert config.sample.labels == (2,)
    padded = [f"{i:03}" for i in range(1, 11)]
    with pytest.warns(UserWarning, match=r"7 is class 7: '008' \(the one named '007' is number 6"):
        with_numbers(config_of(10, (7,)), padded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels, names in (((2,), [str(i) for i in range(10)]), ((2, "cat"), ANIMALS)):
            with_numbers(config_of(len(names), labels), names)
        assert with_numbers(config_of(10, ("2",)), from_one).sample.labels == (1,)


def test_an_experiment_has_the_number_of_classes_and_is_checked_with_it() -> None:
    config = config_of("auto", ("owl", 1))
    config.model.channels, config.model.norm_groups, config.model.channel_mult = 4, None, (1,)
    config.model.attention_resolutions = ()
    exp = build.build(config, (8, 8, 1), 3, ANIMALS)
    assert (exp.config.model.num_classes, exp.config.sample.labels) == (3, (2, 1))
    assert exp.conditional and exp.class_names == ANIMALS
    with pytest.raises(InputError, match="sample.labels is .* but the model is unconditional"):
        build.build(config, (8, 8, 1), 0)
    config.sample.labels = (5,)
    with pytest.raises(InputError, match=r"sample.labels is \(5,\); class numbers go from 0 to 2"):
        build.build(config, (8, 8, 1), 3, ANIMALS)
    config.sample.labels, config.train.label_dropout = None, 0.1
    config.model.num_classes = 0
    with pytest.raises(InputError, match=r"train.label_dropout is 0.1, but the model is uncond"):
        build.validate(config)
