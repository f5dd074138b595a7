"""Bad input is answered with status 2 and one line: what, which value, what is allowed."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import Outcome, digits_in, environment, finish, run, start, write_config

from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import FIELDS, default_config
from diffusion_jax.data.sources import fashion_mnist
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.options.kinds import Choice


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    assert outcome.status == 2, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    assert outcome.out == ""
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Starts a training with these config fields; it must leave no run behind if it is refused."""

    def train(*fields: str) -> Outcome:
        workdir = tmp_path / "run"
        outcome = run(
            f"--config={tiny}", f"--workdir={workdir}", *[f"--config.{field}" for field in fields]
        )
        assert not (workdir / "checkpoints").exists()
        assert not (workdir / "config.json").exists()
        return outcome

    return train


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    outcome = run(f"--config={tiny}", f"--workdir={workdir}", "--config.train.num_steps=2")
    assert outcome.status == 0, outcome.err
    return workdir


# The command line


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["--mode=trian"], ["'trian'", *MODES, "Did you mean 'train'?"]),
        (["--confg=x.py"], ["--confg=x.py; did you mean --config? (see --help)"]),
        (["--train.num_steps=5"], ["did you mean --config.train.num_steps?"]),
        (["-workdr", "x"], ["did you mean --workdir?"]),
        (["x", "--trian.num_steps=5"], ["did you mean --config.train.num_steps?"]),
        (["--mode=sample"], ["--config=FILE", "or --workdir=FOLDER of a run is needed"]),
        (["configs/digits.py"], ["configs/digits.py"]),
        (["--workdir"], ["--workdir", "expected one argument"]),
        (["--config.train.num_steps"], ["--config.train.num_steps=VALUE"]),
        ([], ["--config=FILE", "configs/digits.py"]),
        (["--workdir=runs/x"], ["--workdir: no run in runs/x to continue", "--config=FILE"]),
        (["--workdir=runs/x", "--mode=plan"], ["--workdir", "runs/x", "--config=FILE"]),
        (["--mode=sample", "--allow_config_change"], ["--allow_config_change", "--mode=train"]),
        (["--config=no/such.py"], ["no such file", "no/such.py"]),
        (["--config=no/such.py", "--mode=sample"], ["no such file", "no/such.py"]),
    ],
)
def test_wrong_flags_are_named(arguments: list[str], fragments: list[str]) -> None:
    assert_refused(run(*arguments), *fragments)


def test_a_real_process_answers_a_wrong_flag_and_a_wrong_field(tiny: Path) -> None:
    for argument, fragment in {
        "--mode=no": "'no'",
        "--config.train.batchsize=8": "'train.batchsize'. Did you mean 'train.batch_size'?",
    }.items():
        process = start([f"--config={tiny}", argument], environment())
        assert_refused(finish(process), fragment)


# The config file


@pytest.mark.parametrize(
    "text, fragments",
    [
        ("get_config = None", ["not callable"]),
        ("x = 1", ["get_config"]),
        ("def get_config(:", ["invalid syntax"]),
        ("raise RuntimeError('two\\nlines')", ["two lines"]),
        ("def get_config(): return {}", ["must return a ConfigDict"]),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 0})",
            ["lacks", "train.num_steps", "default_config()"],
        ),
        ("import no_such_module", ["no_such_module"]),
    ],
)
def test_a_config_file_that_gives_no_config_is_named(
    tmp_path: Path, text: str, fragments: list[str]
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    assert_refused(run(f"--config={path}"), str(path), *fragments)


@pytest.mark.parametrize(
    "line, fragments",
    [
        ("config.train.num_step = 3", ["num_step", "Did you mean", "num_steps"]),
        ("config.trian.num_steps = 3", ["trian", "Did you mean", "train"]),
        ("config.train.num_steps = 'three'", ["num_steps", "three", "int"]),
        ("config.train.num_steps = 3.5", ["num_steps", "3.5", "int"]),
        ("config.model.channel_mult = 2", ["channel_mult", "2", "tuple"]),
        ("config.model = 'unet'", ["model", "unet"]),
        ("config.model.channel_mult = ('a',)", ["model.channel_mult", "a", "each an integer"]),
        ("config.model.attention_resolutions = (4.5,)", ["attention_resolutions", "4.5"]),
    ],
)
def test_a_config_file_that_sets_a_field_wrongly_is_named(
    tmp_path: Path, line: str, fragments: list[str]
) -> None:
    path = write_config(tmp_path, line)
    assert_refused(run(f"--config={path}", f"--workdir={tmp_path / 'run'}"), *fragments)


# Fields


@pytest.mark.parametrize(
    "field, fragments",
    [
        ("train.num_stpes=3", ["'train.num_stpes'", "Did you mean 'train.num_steps'?"]),
        (
            "num_steps=3",
            ["'num_steps'", "'train.num_steps' or 'sampler.num_steps' or 'eval.num_steps'?"],
        ),
        ("train=3", ["'train'", "group of fields"]),
        ("=3", ["unknown config field ''"]),
        ("train.num_steps=many", ["train.num_steps", "'many'", "int"]),
        ("train.num_steps=2.5", ["train.num_steps", "'2.5'", "int"]),
        ("train.num_steps=nan", ["train.num_steps", "'nan'", "int"]),
        ("train.num_steps=inf", ["train.num_steps", "'inf'", "int"]),
        ("train.num_steps=none", ["train.num_steps", "'none'", "int"]),
        ("sampler.num_steps=all", ["sampler.num_steps", "'all'", "int"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "'fast'", "a finite number"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "nan", "at least 0"]),
        ("data.random_flip=maybe", ["data.random_flip", "'maybe'", "true or false"]),
        ("model.channel_mult=1,two", ["model.channel_mult", "'1,two'", "separated by commas"]),
        ("model.channel_mult=(1,", ["model.channel_mult", "'(1,'", "separated by commas"]),
        ("model.channel_mult=1,0", ["model.channel_mult", "(1, 0)", "from 1 to"]),
        ("model.channel_mult=()", ["model.channel_mult", "()", "from 1 to"]),
        ("model.channels=6", ["model.channels", "6", "divisible by 4"]),
        ("model.norm_groups=5", ["model.norm_groups", "5", "divide", "16"]),
        ("process.num_timesteps=0", ["process.num_timesteps", "0", "from 1 to"]),
        ("sampler.num_steps=21", ["sampler.num_steps is 21", "from 1 to 20"]),
        ("sampler.spacing=unifrom", ["sampler.spacing", "'unifrom'", "Did you mean 'uniform'?"]),
        ("sampler.spacing=0,20", ["sampler.spacing is (0, 20)", "distinct times from 0 to 19"]),
        ("sampler.spacing=3,7,3", ["sampler.spacing is (3, 7, 3)", "distinct"]),
        ("sample.shared_t=20", ["sample.shared_t is (20)", "distinct times from 0 to 19"]),
        ("sample.shared_t=t", ["sample.shared_t", "'t'", "separated by commas"]),
        ("model.num_classes=7", ["model.num_classes", "7", "digits has 10"]),
        ("sample.labels=3", ["sample.labels", "(3,)", "unconditional"]),
        ("mesh.data=9", ["mesh.data is 9", "9 device(s)", "there are 8"]),
        ("mesh.data=0", ["mesh.data", "0", "-1"]),
        ("seed=-1", ["seed", "-1", "from 0"]),
        ("seed=1e30", ["seed", "from 0"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    train: Callable[..., Outcome], field: str, fragments: list[str]
) -> None:
    assert_refused(train(field), *fragments)


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5"])
@pytest.mark.parametrize("name", ["beta_start", "beta_end"])
def test_beta_outside_0_to_1_is_refused(
    train: Callable[..., Outcome], name: str, value: str
) -> None:
    outcome = train("process.schedule=linear", f"process.{name}={value}")
    assert_refused(outcome, name, value, "(0, 1)")


CHOICES = {name: f.kind.names for name, f in FIELDS.items() if isinstance(f.kind, Choice)}


@pytest.mark.parametrize("field", list(CHOICES))
def test_an_unknown_choice_lists_the_known_ones(train: Callable[..., Outcome], field: str) -> None:
    known = CHOICES[field]
    misspelled = known[0] + "x"
    assert_refused(
        train(f"{field}={misspelled}"),
        field,
        repr(misspelled),
        f"Did you mean {known[0]!r}",
        *known,
    )


def test_labels_out_of_range_are_refused(train: Callable[..., Outcome]) -> None:
    outcome = train("model.num_classes=10", "sample.labels=3,10")
    assert_refused(outcome, "sample.labels", "(3, 10)", "from 0 to 9")


def test_an_image_size_that_the_unet_cannot_halve_is_refused(
    train: Callable[..., Outcome],
) -> None:
    outcome = train("model.name=unet", "model.channel_mult=1,1,1,1,1")
    assert_refused(outcome, "8x8", "divisible by 16", "5 levels")
    outcome = train("model.name=unet", "model.channel_mult=1,1", "model.attention_resolutions=5")
    assert_refused(outcome, "attention_resolutions", "5", "8, 4")


@pytest.mark.parametrize(
    ("field", "value"), [("remat", "blocks"), ("channel_mult", (1, 2)), ("norm_groups", 4)]
)
def test_a_field_of_another_model_is_refused_rather_than_ignored(field: str, value: object) -> None:
    config = default_config()
    config.model.name = "mlp"
    build.validate(config)
    config.model[field] = value
    with pytest.raises(InputError, match=f"model.{field} is .*, but the model 'mlp' has none"):
        build.validate(config)
    config.model.name = "unet"
    build.validate(config)


@pytest.mark.parametrize(
    ("weighting", "owner"),
    [("min_snr", "the weighting 'min_snr'"), (None, "an unset loss.weighting")],
)
def test_a_number_of_another_weighting_is_refused_rather_than_ignored(
    weighting: str | None, owner: str
) -> None:
    config = default_config()
    config.loss.weighting = weighting
    build.validate(config)
    config.loss.p2_k = 2.0
    with pytest.raises(
        InputError,
        match=f"^loss.p2_k is 2.0, but {owner} has none; leave it at its default, 1.0 .it is for p2.$",
    ):
        build.validate(config)
    config.loss.weighting = "p2"
    build.validate(config)


def test_images_that_are_neither_gray_nor_rgb_are_refused_before_training() -> None:
    with pytest.raises(InputError, match="digits holds images of 4 channels.*1 .*3"):
        build.build(default_config(), (8, 8, 4), 0)


def test_a_batch_that_devices_times_accumulation_do_not_divide_is_refused(
    train: Callable[..., Outcome],
) -> None:
    outcome = train("train.batch_size=12", "mesh.data=8")
    assert_refused(outcome, "train.batch_size is 12", "divisible by 8")
    outcome = train("train.batch_size=16", "train.accumulate=3", "mesh.data=-1")
    assert_refused(outcome, "train.batch_size is 16", "divisible by 3", "train.accumulate 3")


# Data


def test_missing_data_files_are_named(train: Callable[..., Outcome], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for name in ("cifar10", "fashion_mnist", "image_folder"):
        outcome = train(f"data.name={name}", f"data.source_dir={nowhere}", "data.image_size=28")
        if name == "cifar10":
            assert_refused(outcome, "image_size is 28", "32x32")
        else:
            assert_refused(outcome, str(nowhere), "does not exist")
    nowhere.mkdir()
    outcome = train("data.name=cifar10", f"data.source_dir={nowhere}")
    assert_refused(outcome, str(nowhere), "cifar-10-python.tar.gz")
    outcome = train("data.name=fashion_mnist", f"data.source_dir={nowhere}")
    assert_refused(outcome, str(nowhere), "train-images-idx3-ubyte.gz")
    outcome = train("data.name=tfds:mnist", f"data.source_dir={nowhere}")
    assert_refused(outcome, "'mnist'", str(nowhere), "array_record")


def test_corrupt_data_files_are_named(train: Callable[..., Outcome], tmp_path: Path) -> None:
    for name in fashion_mnist.FILES:
        (tmp_path / name).write_bytes(b"\x1f\x8b not gzip")
    outcome = train("data.name=fashion_mnist", f"data.source_dir={tmp_path}")
    assert_refused(outcome, str(tmp_path), "not a whole gzip file")
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"\x1f\x8b not a tar")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    outcome = train("data.name=cifar10", f"data.source_dir={archive}", f"data.sha256={sha256}")
    assert_refused(outcome, str(archive), "tar.gz")


def test_a_wrong_checksum_is_named(train: Callable[..., Outcome], tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"something else")
    outcome = train("data.name=cifar10", f"data.source_dir={tmp_path}", f"data.sha256={'0' * 64}")
    assert_refused(outcome, str(archive), "SHA-256", "0" * 64)
    outcome = train("data.name=cifar10", f"data.source_dir={tmp_path}")
    assert_refused(outcome, str(archive), "14 bytes", "170498071")


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_without_a_network_it_says_at_once_where_to_put_the_file(
    train: Callable[..., Outcome],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # Nothing listens there.
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "none")
    started = time.monotonic()
    outcome = train(f"data.name={name}")
    assert time.monotonic() - started < 5  # Retries would take minutes.
    assert_refused(outcome, "cannot download", "by hand", "source_dir", str(cache / "downloads"))


def test_a_folder_without_usable_images_is_named(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    fields = ["data.name=image_folder", f"data.source_dir={folder}"]
    assert_refused(train(*fields, "data.image_size=8"), str(folder), "no images", ".png")
    assert_refused(train(*fields), "image_size is unset", "at least 1", "--config.data.image_size=")
    assert_refused(
        train(fields[0], "data.image_size=8"),
        *("data.source_dir is unset", "image_folder", "--config.data.source_dir=FOLDER"),
    )
    (folder / "broken.png").write_bytes(b"not a picture")
    assert_refused(train(*fields, "data.image_size=8"), str(folder), "none of the 1 images")


@pytest.mark.parametrize("field", ["eval_every", "bpd_every"])
def test_held_out_figures_without_held_out_images_are_refused(
    train: Callable[..., Outcome], field: str
) -> None:
    outcome = train("data.test_fraction=0", f"train.{field}=2")
    assert_refused(outcome, "digits has no test images")


# The workdir


@pytest.mark.parametrize("below", ["", "run"])
def test_an_unwritable_workdir_is_named(tiny: Path, tmp_path: Path, below: str) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    workdir = in_the_way / below
    outcome = run(f"--config={tiny}", f"--workdir={workdir}")
    assert_refused(outcome, "--workdir", "cannot write", str(workdir))
    assert in_the_way.read_text() == "not a folder"


def test_sampling_without_a_run_or_a_checkpoint_says_so(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    outcome = run(f"--config={tiny}", "--mode=sample", f"--workdir={tmp_path / 'none'}")
    assert_refused(outcome, "no trained run", str(tmp_path / "none"), "config.json")
    assert not (tmp_path / "none").exists()
    shutil.copy(trained / "config.json", tmp_path)
    outcome = run("--mode=sample", f"--workdir={tmp_path}")
    assert_refused(outcome, "no checkpoint", str(tmp_path / "checkpoints"))
    outcome = run("--mode=sample", f"--workdir={trained}", "--config.sample.step=1")
    assert_refused(outcome, "no checkpoint 1", "available: 2")
    outcome = run("--mode=sample", f"--workdir={trained}", "--config=no/such.py")
    assert_refused(outcome, "--config: no such file: no/such.py")


@pytest.mark.parametrize(
    "field, fragments",
    [
        (
            "model.channels=32",
            ["model.channels", "fixed", "set sampler, sample, edit, eval, report, mesh"],
        ),
        ("process.variance=fixed_small", ["process.variance", "fixed"]),
        ("seed=1", ["seed", "fixed"]),
        ("sampler.nam=x", ["'sampler.nam'", "Did you mean 'sampler.name'?"]),
        ("sample.labels=1", ["sample.labels", "(1,)", "unconditional"]),
        ("sample.num_images=0", ["sample.num_images", "0", "from 1 to"]),
        ("sampler.num_steps=21", ["sampler.num_steps is 21", "20"]),
        ("sampler.spacing=0,20", ["sampler.spacing is (0, 20)", "from 0 to 19"]),
        ("sample.shared_t=0,20", ["sample.shared_t is (0, 20)", "from 0 to 19"]),
        ("sample.shared_t=3,7,3", ["sample.shared_t is (3, 7, 3)", "distinct"]),
        ("mesh.data=9", ["mesh.data", "9", "8"]),
    ],
)
def test_sampling_refuses_wrong_fields(trained: Path, field: str, fragments: list[str]) -> None:
    outcome = run("--mode=sample", f"--workdir={trained}", f"--config.{field}")
    assert_refused(outcome, *fragments)


@pytest.mark.parametrize(
    "text, fragment",
    [
        ('{"seed": 0', "delimiter"),
        ("[1, 2]", "object"),
        ('"seed"', "object"),
        (
            '{"train": {"num_stepz": 3}}',
            "Did you mean 'train.num_steps'?",
        ),
        ('{"train": {"num_steps": "three"}}', "three"),
        ('{"train": 3}', "'train'"),
        ("\xff", "config.json"),
    ],
)
def test_a_damaged_config_json_is_named(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    assert_refused(run("--mode=sample", f"--workdir={tmp_path}"), str(path), fragment)


def test_a_resume_with_another_config_lists_the_fields_and_the_flag(
    tiny: Path, trained: Path
) -> None:
    before = (trained / "config.json").read_text()
    changes = [
        "--config.optimizer.learning_rate=0.5",
        "--config.train.batch_size=8",
        "--config.seed=3",
    ]
    free = ["--config.train.num_steps=3", "--config.sampler.clip=false"]
    outcome = run(f"--config={tiny}", f"--workdir={trained}", *changes, *free)
    assert_refused(
        outcome,
        "optimizer.learning_rate: 0.001 -> 0.5",
        "train.batch_size: 16 -> 8",
        "seed: 0 -> 3",
        "--allow_config_change",
    )
    assert "num_steps" not in outcome.err and "clip" not in outcome.err
    assert (trained / "config.json").read_text() == before


@pytest.mark.slow
def test_a_run_whose_learning_rate_decays_is_made_longer_only_by_allowing_it(
    tiny: Path, tmp_path: Path
) -> None:
    def train(num_steps: int, *flags: str) -> Outcome:
        fields = ("--config.optimizer.decay=linear", f"--config.train.num_steps={num_steps}")
        return run(f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *fields, *flags)

    assert train(2).status == 0
    reason = "a decaying learning rate depends on it"
    assert_refused(train(3), "train.num_steps: 2 -> 3", reason, "--allow_config_change")
    assert train(3, "--allow_config_change").status == 0


@pytest.mark.slow
def test_a_resume_on_other_images_is_refused_unless_changes_are_allowed(
    tiny: Path, tmp_path: Path
) -> None:
    def train(value: int, *flags: str, count: int = 8) -> Outcome:
        folder = tmp_path / "pictures"
        shutil.rmtree(folder, ignore_errors=True)
        for i in range(count):
            path = folder / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), value + i).save(path)
        fields = {"data.name": "image_folder", "data.source_dir": folder, "data.image_size": 8}
        fields |= {"train.num_steps": 2 if value == 0 else 3, "data.test_fraction": 0.0}
        fields |= {"model.num_classes": "auto"}  # What it was found to be does not differ from it.
        return run(
            *(f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *flags),
            *[f"--config.{name}={field}" for name, field in fields.items()],
        )

    assert train(0).status == 0
    assert_refused(train(100), "other images", "image_folder", "--allow_config_change")
    assert_refused(train(0, count=9), "8 images", "now has 9", "--allow_config_change")
    assert train(100, "--allow_config_change").status == 0


def test_a_model_that_does_not_fit_the_checkpoint_is_refused_even_if_changes_are_allowed(
    tiny: Path, trained: Path
) -> None:
    before = (trained / "config.json").read_text()
    outcome = run(
        *(f"--config={tiny}", f"--workdir={trained}", "--allow_config_change"),
        "--config.model.channels=32",
    )
    assert_refused(outcome, "checkpoint", "does not fit", "dense")
    assert (trained / "config.json").read_text() == before


def test_results_that_are_not_results_are_not_overwritten(trained: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = workdir / "results" / "sample.json"
    path.write_text(json.dumps([1]))
    outcome = run("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=1")
    assert_refused(outcome, str(path), "move it away")
    assert json.loads(path.read_text()) == [1]
