"""What is seen of an image job where there is no terminal."""

from __future__ import annotations

import pytest

from diffusion_jax.commands import images_bar


def test_a_log_says_how_far_a_job_is_also_within_a_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images_bar, "LINE_EVERY", -1.0)
    with images_bar.ImagesBar(10, 20, 4, finished=2) as bar:
        bar.advance(10)
        bar.done(4)
        bar.advance(2)
    said = [line.partition("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["4 of 10 images", "6 of 10 images", "6.4 of 10 images"]


def test_a_log_has_no_line_while_the_last_one_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    with images_bar.ImagesBar(10, 20, 4) as bar:
        bar.advance(10)
        bar.done(4)
    assert capsys.readouterr().err == ""
