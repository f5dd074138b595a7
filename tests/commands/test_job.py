"""What jobs have in common: here, what a job says when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_jax.commands import job


def test_a_job_says_where_each_of_its_pictures_is_but_not_where_each_image_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "samples" / "a-job"
    (folder / "png").mkdir(parents=True)
    for name in ("grid.png", "strip.png", "images.npz", "png/000000.png"):
        (folder / name).write_bytes(b"")
    job.save_result(tmp_path, "sample", folder, {"num_images": 1}, "1 images")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"1 images in {folder}",
        f"grid {folder / 'grid.png'}",
        f"strip {folder / 'strip.png'}",
        f"results {tmp_path / 'results' / 'sample.json'}",
    ]
    assert json.loads((folder / "job.json").read_text())["job"] == "a-job"
