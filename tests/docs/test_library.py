"""The program of docs/library.md runs from top to bottom."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.mark.slow
def test_the_page_is_one_program_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, object] = {}
    with jax.numpy_rank_promotion("allow"):  # As users have it.
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), namespace)
    drawn, digits = namespace["drawn"], namespace["digits"]
    assert drawn.shape == (2, *digits.image_shape)  # pyright: ignore[reportAttributeAccessIssue]
