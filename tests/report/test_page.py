"""The page of a run: what it shows, what it says of missing and damaged parts, and that it is valid HTML."""

import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import numpy as np
import pytest
from run_folders import noise, rows, write_json, write_rest, write_rows, write_training

from diffusion_jax.config import default_config, load_file, to_json
from diffusion_jax.planning.chips import chip_of
from diffusion_jax.reading.metrics_rows import line_of
from diffusion_jax.report.drawn import keep
from diffusion_jax.report.page import write_page
from diffusion_jax.report.sections.registry import SECTIONS
from diffusion_jax.reporting.pictures import save_png

MOST_BYTES = 5_000_000


def parsed(page: Path) -> Element:
    """Returns the tree of a page, which is valid, accessible and complete in itself."""
    assert page.stat().st_size <= MOST_BYTES
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    tree: Element = parser.parse(page.read_text())
    every = list(tree.iter())
    ids = [e.get("id") for e in every if e.get("id")]
    assert len(ids) == len({*ids})
    referring = ("for", "aria-labelledby")
    assert {e.get(a) for e in every for a in referring if e.get(a)} <= {*ids}
    for e in every:
        for attribute in ("src", "href"):
            target = e.get(attribute, "#main")
            assert target.startswith("data:") or target[1:] in ids and target[0] == "#", target
    for image in tree.iter("img"):
        assert image.get("alt") and int(image.get("width", 0)) and int(image.get("height", 0))
    assert len(list(tree.iter("h1"))) == len(list(tree.iter("main"))) == 1
    assert [s.get("id") for s in tree.iter("section")] == [s.name for s in SECTIONS]
    return tree


def section(tree: Element, name: str) -> Element:
    return next(s for s in tree.iter("section") if s.get("id") == name)


def words(element: Element) -> str:
    main = next(element.iter("main"), element)  # Neither the style nor the script.
    return " ".join(" ".join(main.itertext()).split())


def areas(element: Element) -> list[Element]:
    return [e for e in element.iter() if e.get("class", "").startswith("band ") and e.get("d")]


def commands(tree: Element) -> dict[str, str]:
    """Returns the command that each section names for what it lacks."""
    return {
        str(s.get("id")): words(code)
        for s in tree.iter("section")
        for code in [*s.iter("code")][:1]
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rest(write_training(tmp_path_factory.mktemp("runs") / "whole"))


def test_each_section_shows_what_the_run_has(whole: Path) -> None:
    tree = parsed(write_page(whole))
    assert {*commands(tree)} == {"comparison", "paper"}  # Nothing else is missing.
    assert "cannot be shown" not in words(tree)
    assert "1,234,567" in words(section(tree, "recipe")) and "0.10.2" in words(tree)
    assert "0123456789ab" in words(section(tree, "recipe"))
    training = section(tree, "training")
    assert len([*training.iter("{http://www.w3.org/2000/svg}svg")]) == 4
    assert "held-out loss (EMA)" in words(training) and "no published peak of cpu" in words(
        training
    )
    positions = {
        name: [f.get("data-label") for f in section(tree, name).iter("div") if f.get("data-label")]
        for name in ("samples", "reverse")
    }
    assert positions["samples"] == ["step 50", "step 100", "step 200"]
    assert positions["reverse"] == ["t = 999", "t = 750", "t = 500", "t = 250", "t = 0"]
    assert len([*section(tree, "reverse").iter("img")]) == 2 * 5
    assert "0 are near copies" not in words(section(tree, "neighbors"))
    assert len([*section(tree, "neighbors").iter("img")]) == 1
    metrics = words(section(tree, "metrics"))
    for said in ("12.35 ± 0.5", "pr_lite0: precision 0.75", "ddim, 20 evaluations", "99.5 ± 1"):
        assert said in metrics
    assert "total (bits/dim) 3.21 ± 0.02" in words(section(tree, "likelihood"))
    assert "guidance scale" in words(section(tree, "sweeps"))


def test_parts_that_are_missing_are_named_with_the_command_for_this_folder(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "a run")
    named = commands(parsed(write_page(workdir)))
    start = f"python -m diffusion_jax.main '--workdir={workdir}' --mode="
    assert (
        named["reverse"] == f"python -m diffusion_jax.main '--workdir={workdir}'"
    )  # No checkpoint.
    (workdir / "checkpoints" / "200").mkdir(parents=True)
    assert commands(parsed(write_page(workdir)))["reverse"] == f"{start}report"
    assert named["neighbors"].startswith(f"{start}evaluate --config.eval.metrics=nearest")
    assert named["likelihood"] == f"{start}evaluate --config.eval.metrics=bpd"
    assert "eval.sweep=sampler.num_steps" in named["sweeps"]


def test_an_empty_folder_has_a_page_that_says_how_to_begin(tmp_path: Path) -> None:
    tree = parsed(write_page(tmp_path))
    assert {*commands(tree)} == {s.name for s in SECTIONS}


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    workdir = write_training(tmp_path / evil.replace("/", "_"))
    saved = json.loads((workdir / "config.json").read_text())
    saved["data"]["name"] = evil
    write_json(workdir / "config.json", {**saved, evil: evil})
    write_json(workdir / "results" / "evaluate.json", {evil: {"value": 1.0, "features": evil}})
    sweep = [{evil: str(i), "nfe": i, evil + "x": 1.0 * i} for i in (1, 2)]
    write_json(workdir / "results" / "sweep.json", {"table": sweep})
    other = write_training(tmp_path / "'><img onerror=x>")
    tree = parsed(write_page(workdir, [other]))
    assert len([*tree.iter("script")]) == 2 and evil in words(section(tree, "metrics"))
    assert not [e for e in tree.iter() for a in e.attrib if a.startswith("on")]


def test_many_rows_are_thinned_and_spikes_survive(tmp_path: Path) -> None:
    workdir, made = write_training(tmp_path / "long"), rows(12_000)
    made[7001]["grad_norm"] = 4321.0
    write_rows(workdir, made)
    tree = parsed(write_page(workdir))
    assert "12,000 points are thinned to" in words(tree)
    said = [e.get("aria-label", "") for e in section(tree, "training").iter()]
    assert any("greatest 4,321" in text for text in said)
    paths = [e.get("d", "") for e in section(tree, "training").iter() if e.get("class") == "line"]
    assert all(path.count("L") < 1000 for path in paths)


def test_many_large_pictures_stay_within_the_size_of_a_page(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "large")
    for step in range(300, 2000, 100):
        save_png(workdir / "samples" / f"grid-{step:08}.png", noise(1800, 300, 3, step))
    others = [write_training(tmp_path / f"other{i}") for i in range(30)]
    for other in others:
        save_png(other / "samples" / "grid-00000300.png", noise(500, 500, 3))
    tree = parsed(write_page(workdir, others))
    assert "8 of 20 grids are shown" in words(tree) and "of 300 × 1800 pixels" in words(tree)
    assert "reached their limit" in words(tree) or len([*tree.iter("img")]) >= 38


def test_damage_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    workdir = write_rest(write_training(tmp_path / "damaged"))
    lines = [line_of(row) for row in rows(9)]
    lines[3] = lines[3].replace("loss", "lo5s", 1)
    (workdir / "metrics.jsonl").write_text("".join(lines) + '{"step": 99')
    (workdir / "samples" / "grid-00000050.png").write_bytes(b"\x89PNG")
    (workdir / "results" / "report" / "reverse.npz").write_bytes(b"PK\3\4")
    (workdir / "results" / "sweep.json").write_text("[")
    write_json(
        workdir / "results" / "evaluate.json", {"bpd": {"files": 7, "total": {"value": "x"}}}
    )
    tree = parsed(write_page(workdir))
    assert "metrics.jsonl is damaged in 1 of its lines (4)" in words(tree)
    assert "grid-00000050.png cannot be shown" in words(section(tree, "samples"))
    assert [f.get("data-label") for f in section(tree, "samples").iter("div")].count("step 100")
    for name in ("results/report/reverse.npz", "results/sweep.json"):
        assert f"{name} cannot be read" in words(tree)
    assert "total (bits/dim) not finite" in words(section(tree, "likelihood"))
    assert "bpd.npz, are gone" in words(section(tree, "likelihood"))


def test_values_that_are_not_finite_leave_gaps_that_are_counted(tmp_path: Path) -> None:
    workdir, made = write_training(tmp_path / "gaps"), rows(20)
    made[4] |= {"loss": None, "grad_norm": None}
    write_rows(workdir, made)
    metric = {"fd_lite0": {"value": float("nan"), "stderr": None}, "kid": {"value": None}}
    write_json(workdir / "results" / "evaluate.json", metric)
    page = write_page(workdir)
    assert "1 values that are not finite are left out" in words(parsed(page))
    assert "not finite" in words(section(parsed(page), "metrics"))
    assert not re.search(r"\b(nan|NaN|inf)\b", page.read_text())


def test_a_run_of_another_version_is_shown_with_its_fields(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "newer")
    saved = json.loads((workdir / "config.json").read_text())
    saved["train"]["flux_capacitor"] = 88
    del saved["optimizer"]
    write_json(workdir / "config.json", saved)
    recipe = words(section(parsed(write_page(workdir)), "recipe"))
    assert "config.json is of another version: saved config: unknown field" in recipe
    assert "train.flux_capacitor 88 unknown field" in recipe


def test_runs_are_set_side_by_side(tmp_path: Path) -> None:
    run, other = (
        write_training(tmp_path / "one"),
        write_training(tmp_path / "two", schedule="cosine"),
    )
    write_rest(other)
    (tmp_path / "far").mkdir()
    same_name = write_training(tmp_path / "far" / "one", 30)
    compared = section(parsed(write_page(run, [other, same_name, other])), "comparison")
    names = [str(run), "two", str(same_name)]
    legend = [words(item) for item in compared.iter("li")]
    assert legend[:3] == names
    heads = [[words(cell) for cell in row] for row in compared.iter("thead") for row in row]
    assert heads == [["Result", *names], ["Field", *names]]
    assert "process.schedule linear cosine linear" in words(compared)
    assert "fd_lite0 – 12.35 ± 0.5 –" in words(compared)
    assert len([*compared.iter("img")]) == 3


def test_moments_of_a_sampling_job_stand_in_for_those_of_the_page(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "run")
    job = workdir / "samples" / "step00000200-ddim"
    job.mkdir()
    frames = noise(2 * 4 * 8, 8, 1).reshape(2, 4, 8, 8, 1)  # Image by image.
    np.savez(job / "progressive.npz", frames=frames, times=np.array([3.0, 2.0, 1.0, 0.0]))
    shown = section(parsed(write_page(workdir)), "reverse")
    assert len([*shown.iter("img")]) == 4
    assert "progressive.npz has the predictions alone, not x_t" in words(shown)


def test_images_drawn_for_the_page_stand_beside_their_nearest_training_images(
    tmp_path: Path,
) -> None:
    workdir = write_training(tmp_path / "run")
    images, beside = noise(24, 8, 1).reshape(3, 8, 8, 1), noise(96, 8, 1).reshape(3, 4, 8, 8, 1)
    keep(workdir, "nearest", {"step": 40}, images=images, neighbors=beside, rms=np.ones((3, 4)))
    shown = section(parsed(write_page(workdir)), "neighbors")
    assert "an image drawn after step 40, then the 4 training images nearest to it" in words(shown)
    assert len([*shown.iter("img")]) == 1 and "eval.metrics=nearest" in words(shown)


def test_the_papers_tables_stand_beside_its_numbers_and_what_is_missing_has_a_command(
    tmp_path: Path,
) -> None:
    workdir = write_rest(write_training(tmp_path / "run"))
    other = write_rest(write_training(tmp_path / "other", prediction="v"))
    for name in ("progressive", "shared"):
        save_png(workdir / "samples" / "job" / f"{name}.png", noise(40, 40, 1))
    metrics = json.loads((workdir / "results" / "evaluate.json").read_text())
    metrics["fid"] = {"value": 4.56, "stderr": None, "images": {"num_images": 50000, "step": 40}}
    write_json(workdir / "results" / "evaluate.json", metrics)
    tree = parsed(write_page(workdir, [other], paper=True))
    shown = section(tree, "paper")
    assert "FID 4.56 50,000 images, step 40 3.17 13.51" in words(shown)
    assert "NLL, test (bits/dim) 3.21 ± 0.02" in words(shown) and "≤ 3.75 ≤ 3.70" in words(shown)
    assert "Inception score not measured – 9.46 ± 0.11" in words(shown)
    assert "ε, L_simple run: 4.56 9.46 ± 0.11 3.17" in words(shown)
    assert "v, fixed_large, simple: not in the paper other: FID not measured –" in words(shown)
    assert "12 0.90000 0.10000 – –" in words(
        shown
    )  # The last reverse step, of another chain than the paper's.
    assert len([*shown.iter("img")]) == 3 and len([*shown.iter("figure")]) >= 3
    named = [words(code) for code in shown.iter("code")]
    assert any("--mode=interpolate" in command for command in named)
    assert any("eval.metrics=is" in command for command in named)
    assert "cannot be shown" not in words(tree)


@pytest.mark.parametrize(
    "fields, row",
    [
        ({"loss.name": "vlb"}, "ε, L, fixed isotropic Σ"),
        ({"loss.name": "hybrid"}, None),
        ({"loss.weighting": "min_snr"}, None),
        ({"process.name": "vp"}, None),
        ({"loss.name": "vlb", "process.variance": "learned"}, None),
    ],
)
def test_a_recipe_stands_in_the_papers_row_only_if_it_is_the_papers(
    tmp_path: Path, fields: dict[str, str], row: str | None
) -> None:
    workdir = write_training(tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    for name, value in fields.items():
        group, leaf = name.split(".")
        config[group][leaf] = value
    write_json(workdir / "config.json", config)
    shown = words(section(parsed(write_page(workdir, paper=True)), "paper"))
    assert (f"{row} run" in shown) if row else ("not in the paper run" in shown)


def test_the_paper_section_of_an_empty_run_is_made_of_commands(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "run")
    shown = section(parsed(write_page(workdir, paper=True)), "paper")
    named = " ".join(words(code) for code in shown.iter("code"))
    for flag in ("sample.progressive=true", "sample.shared_t=249,499,749,999", "eval.metrics=bpd"):
        assert flag in named


def test_the_card_of_a_recipe_is_shown_and_a_config_of_ones_own_has_none(tmp_path: Path) -> None:
    own = write_training(tmp_path / "own", num_timesteps=123)
    assert "Recipe card" not in words(section(parsed(write_page(own)), "recipe"))
    packaged = write_training(tmp_path / "packaged")
    (packaged / "config.json").write_text(to_json(load_file("digits")))
    said = words(section(parsed(write_page(packaged)), "recipe"))
    assert "Recipe card of configs/digits.py, whose config hash this run has" in said


def test_the_loss_has_the_band_that_runs_of_its_recipe_keep_to(tmp_path: Path) -> None:
    own, packaged = (write_training(tmp_path / name, 100) for name in ("own", "packaged"))
    config = load_file("digits")
    config.seed = 123  # A band holds for any.
    (packaged / "config.json").write_text(to_json(config))
    charts = [*section(parsed(write_page(packaged)), "training").iter("figure")]
    labels = [words(item) for item in charts[0].iter("li")]
    assert labels[2:] == [f"expected {of} loss (digits, 3 runs)" for of in ("training", "held-out")]
    assert [len(areas(chart)) for chart in charts] == [2, 0, 0, 0]
    assert not areas(section(parsed(write_page(own)), "training"))


def test_utilization_is_the_share_of_the_published_peak(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "run")
    record = json.loads((workdir / "results" / "train.json").read_text())
    record["provenance"]["device"] = "2 x NVIDIA H100 80GB HBM3 (gpu)"
    write_json(workdir / "results" / "train.json", record)
    config = default_config()
    peak = chip_of("NVIDIA H100 80GB HBM3")
    assert peak is not None
    plan = {
        "memory": {"parameters": 4 * record["parameters"]},
        "mesh": {"fsdp": 1},
        "gflop_per_image": 0.25 * 2 * peak.flops[config.model.dtype] / 90.0 / 1e9,
    }
    write_json(
        workdir / "results" / "plan.json",
        {
            "batch_size": config.train.batch_size,
            "dtype": config.model.dtype,
            "image_shape": [8, 8, 1],
            "plans": [plan],
        },
    )
    said = words(section(parsed(write_page(workdir)), "training"))
    assert f"25.0% of 2 × {peak.name} in {config.model.dtype}" in said
