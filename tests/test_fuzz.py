"""No reader takes a damaged file for a sound one, nor answers with a traceback: a slice of `benchmarks/fuzz.py`."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from fuzzing import loaders
from fuzzing.loader import FAULTS, RIGHT
from fuzzing.mutations import fresh

# Each has a few cases here: in full they take minutes.
CASES = 9


@pytest.mark.parametrize("name", loaders())
def test_what_is_damaged_is_right_or_refused_or_named(name, tmp_path):
    loader = loaders()[name](tmp_path)
    for number in range(CASES):
        verdict = loader.case(1, number)
        assert verdict.outcome not in FAULTS, (number, verdict)


def test_the_fuzzer_sees_a_wrong_answer(tmp_path):
    loader = loaders()["index of folders"](tmp_path)
    fresh(loader.sound, loader.place)
    value = loader.read(loader.place)
    assert loader.judge(value, "", loader.place) == RIGHT
    assert loader.judge(value._replace(kinds="ggc"), "", loader.place) in FAULTS
