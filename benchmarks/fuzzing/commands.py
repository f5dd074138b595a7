"""Command lines of random fields, and config files."""

import math
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from diffusion_jax import config as config_lib, main
from diffusion_jax.commands.signals import handled
from diffusion_jax.config import FIELDS, default_config
from diffusion_jax.experiment import build
from diffusion_jax.options.kinds import Choice, Either, Float, Int, Kind, Tuple
from fuzzing.loader import REFUSED, RIGHT, UNKNOWABLE, WRONG, Loader, same
from fuzzing.mutations import Rng, mutated, pick

VALUES = (
    *(
        "",
        " ",
        "0",
        "-0",
        "1",
        "-1",
        "2",
        "3",
        "16",
        "0.5",
        "1e-3",
        "1e3",
        "1e5",
        "1e308",
        "1e309",
        "nan",
        "-inf",
    ),
    *(
        "inf",
        str(2**31),
        str(2**63),
        str(10**30),
        "9" * 5000,
        "0x10",
        "1_000",
        "٣",
        "１",
        "½",
        "true",
        "False",
        "none",
    ),
    *(
        "None",
        "()",
        "[]",
        "(1,2)",
        "[1, 2",
        "1,2,2",
        "1,,2",
        ",",
        "((1,2),3)",
        "[[[[]]]]",
        "(" * 500,
        "a,b",
        "x" * 3000,
    ),
    *(
        "é",
        "日本",
        "\ud800",
        "\0",
        "a\nb",
        "\x1b[31m",
        "../../etc/passwd",
        "/dev/zero",
        "/",
        "~",
        "~nobody/x",
        "gs://x/y",
    ),
    *(
        "file:///x",
        "uniform",
        "linear",
        "cosine",
        "karras",
        "ddim",
        "heun",
        "ve",
        "__class__",
        "{}",
        '{"a": 1}',
        "$HOME",
    ),
    *(
        "9007199254740993.0",
        "1e-400",
        "0.1e1",
        "+5",
        "1.",
        ".5",
        "--5",
        "1e5.5",
        "5e-324",
        "3.5e38",
        "-1e-320",
    ),
)
NAMES = (
    "",
    ".",
    "model",
    "model.",
    ".seed",
    "model.channels.x",
    "__class__",
    "train.__init__",
    "lock",
    "x" * 3000,
    "é",
    "a\nb",
)


def random_value(kind: Kind, rng: Rng) -> str:
    """Returns a text for a field of some kind: often nearly a right one."""
    if rng.integers(3) == 0:
        return pick(rng, VALUES)
    if isinstance(kind, Choice):
        name = pick(rng, kind.names)
        return pick(rng, [name, name, name.upper(), name[:-1], f" {name}"])
    if isinstance(kind, Int):
        low = int(max(kind.low, -(10**6)))
        high = int(min(kind.high, 10**6))
        return str(
            pick(
                rng,
                [
                    low,
                    high,
                    low - 1,
                    high + 1,
                    int(rng.integers(low, high + 1)),
                    int(kind.high) if math.isfinite(kind.high) else 7,
                ],
            )
        )
    if isinstance(kind, Float):
        low, high = max(kind.low, -1e6), min(kind.high, 1e6)
        return repr(
            float(pick(rng, [low, high, rng.uniform(low, high), -rng.uniform(0, 1), low * 2 - 1]))
        )
    if isinstance(kind, Tuple):
        return ",".join(random_value(kind.item, rng) for _ in range(int(rng.integers(1, 5))))
    if isinstance(kind, Either):
        return random_value(pick(rng, [kind.first, kind.second]), rng)
    return pick(rng, ["true", "false", "/nowhere", "a"])


def assignments(rng: Rng) -> list[tuple[str, str]]:
    """Returns some fields with values."""
    made = []
    for _ in range(int(rng.integers(1, 5))):
        name = pick(rng, list(FIELDS)) if rng.integers(15) else pick(rng, NAMES)
        kind = FIELDS[name].kind if name in FIELDS else Float()
        made.append((name, random_value(kind, rng)))
    return made


def says(text: str, value: Any) -> bool:
    """Whether a value is what a text says, by another reading of it than the config's."""
    if value is None:
        return text.lower() == "none"
    if isinstance(value, bool):
        return text.lower() in (("true", "1") if value else ("false", "0"))
    if isinstance(value, int):
        try:
            return Decimal(text) == value
        except InvalidOperation:
            return False
    if isinstance(value, float):
        try:
            return abs(Decimal(text) - Decimal(value)) <= Decimal(math.ulp(value))
        except InvalidOperation:
            return False
    if isinstance(value, tuple):
        items = [item for item in text.strip().strip("()[]").split(",") if item.strip()]
        return len(items) == len(value) and all(map(says, (i.strip() for i in items), value))
    return text == value


class Fields(Loader):
    """Fields of the command line, then all checks that need no data."""

    name = "fields"

    def make(self, folder: Path) -> None:
        self.fields: list[tuple[str, str]] = []

    def mutate(self, folder: Path, rng: Rng) -> str:
        self.fields = assignments(rng)
        return " ".join(f"--config.{name}={value[:80]!r}" for name, value in self.fields)

    def read(self, folder: Path) -> Any:
        _, fields = main.parse(
            ["--config=x.py", *(f"--config.{name}={value}" for name, value in self.fields)]
        )
        config = default_config()
        config_lib.override(config, fields)
        build.validate(config)
        return dict(config_lib.fields(config))

    def judge(self, value: Any, said: str, folder: Path) -> str:
        wanted = dict(self.fields)
        for name in FIELDS:
            right = (
                says(wanted[name], value[name])
                if name in wanted
                else same(value[name], self.expected[name])
            )
            if not right:
                return WRONG
        return RIGHT


class Commands(Loader):
    """Whole commands of random flags and fields, none of which can start: status 2 and one line, or 0 for a help."""

    name = "commands"
    flags = (
        *(
            "--mode=train",
            "--mode=sample",
            "--mode=inpaint",
            "--mode=interpolate",
            "--mode=evaluate",
            "--mode=x",
            "--mode",
        ),
        *(
            "--help",
            "--help=train",
            "--help=x",
            "-h",
            "--x",
            "x",
            "",
            "--config",
            "--config.",
            "--config.seed",
            "--config=/",
        ),
        *(
            "--config=nowhere.py",
            "--allow_config_change",
            "--allow_config_change=1",
            "--topology=x",
            "--workdir=",
            "--=",
            "-",
        ),
        *(
            "--coordinator=x",
            "--num_processes=0",
            "--process_id=-1",
            "--workdir=gs://x/y",
            "--workdir=/dev/null/x",
            "--",
        ),
        *(
            "--config.seed=1",
            "--workdir=\0",
            "--config=\0",
            "--config=/dev/null",
            "--workdir=" + "x" * 5000,
            "--config=" + "é" * 300,
        ),
    )

    def make(self, folder: Path) -> None:
        (folder / "config.py").write_text(
            "from diffusion_jax.config import default_config as get_config\n"
        )
        (folder / "run").mkdir()
        (folder / "run" / "config.json").write_text(config_lib.to_json(default_config()))
        self.argv: list[str] = ["--help"]

    def mutate(self, folder: Path, rng: Rng) -> str:
        some = [pick(rng, self.flags) for _ in range(int(rng.integers(4)))]
        some += [f"--config.{name}={value}" for name, value in assignments(rng)]
        some = [some[i] for i in rng.permutation(len(some))]
        folder = self.place
        given = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
        # No data, and no checkpoint: else a command that is right would begin to train.
        ended = [
            "--config.data.name=image_folder",
            "--config.data.source_dir=/nowhere",
            "--config.data.image_size=8",
        ]
        modes = {"--mode=train"} & set(some) or not any(flag.startswith("--mode=") for flag in some)
        self.argv = [*given, *some, *(ended if modes else [])]
        return repr([argument[:60] for argument in self.argv])

    def read(self, folder: Path) -> Any:
        try:
            return main.main(self.argv)
        except SystemExit as ended:
            return ended.code or 0

    def judge(self, value: Any, said: str, folder: Path) -> str:
        if value == 0:
            return RIGHT if "usage" in said or "group" in said or "config" in said else WRONG
        lines = [line for line in said.splitlines() if not line.startswith(("warning:", "note:"))]
        if value in (1, 2) and len(lines) == 1 and lines[0].startswith("error:"):
            return REFUSED
        return WRONG


class ConfigFiles(Loader):
    """A config file in Python, its text damaged or hostile. What else it sets, cannot be known."""

    name = "config .py"
    text = """from diffusion_jax.config import default_config


def get_config():
    config = default_config()
    config.seed = 7
    config.model.channels = 32
    config.model.channel_mult = (1, 2, 2)
    config.train.num_steps = 2_000
    config.data.name = "image_folder"
    config.data.image_size = 32
    config.data.source_dir = "/data/pictures"
    return config
"""
    bodies = (
        *(
            "import sys; sys.exit(0)",
            "import sys; sys.exit('a\\nb')",
            "raise KeyboardInterrupt",
            "raise BaseException('a\\nb')",
        ),
        *(
            "raise SystemExit",
            "raise GeneratorExit",
            "raise StopIteration",
            "return None",
            "return {}",
            "return config.seed",
        ),
        *(
            "config.unlock(); config.model.me = config; return config",
            "return get_config()",
            "config.sed = 1; return config",
        ),
        *(
            "config.model = 1; return config",
            "config.model.channels = 'x'; return config",
            "del config.seed; return config",
        ),
        *(
            "config.unlock(); del config.model; return config",
            "config.unlock(); config['a.b'] = 1; return config",
        ),
        *(
            "config.data.source_dir = 'a\\nb'; return config",
            "config.unlock(); config.model.channels = object(); return config",
        ),
        *(
            "config.seed = 10**5000; return config",
            "config.seed = True; return config",
            "config.optimizer.learning_rate = float('nan'); return config",
        ),
        *(
            "config.model.channel_mult = [1, [2]]; return config",
            "config.model.channel_mult = ((1,),); return config",
        ),
        *(
            "import numpy; config.seed = numpy.int64(3); return config",
            "import numpy; config.unlock(); config.seed = numpy.arange(3); return config",
        ),
        *(
            "class E(Exception):\n        def __str__(self): raise ValueError\n    raise E",
            "raise Exception('\\ud800')",
        ),
        *(
            "x = 1 / 0",
            "import nowhere",
            "exec('(' * 10**5)",
            "assert False",
            "yield config",
            "warn",
        ),
        *(
            "import ml_collections as m; config.seed = m.FieldReference(None, field_type=int); return config",
        ),
    )

    def make(self, folder: Path) -> None:
        (folder / "config.py").write_text(self.text)

    def mutate(self, folder: Path, rng: Rng) -> str:
        sys.dont_write_bytecode = True
        path = folder / "config.py"
        if rng.integers(3) == 0:
            body = pick(rng, self.bodies)
            path.write_text(self.text.replace("return config", body), errors="surrogatepass")
            return body
        path.write_bytes(mutated(self.text.encode(), rng))
        return "bytes"

    def read(self, folder: Path) -> Any:
        with handled():  # As a command does.
            config = config_lib.load_file(str(folder / "config.py"))
        build.validate(config)
        config_lib.from_dict(config.to_dict())
        return dict(config_lib.fields(config))

    def judge(self, value: Any, said: str, folder: Path) -> str:
        return RIGHT if same(value, self.expected) else UNKNOWABLE


LOADERS = (Fields, Commands, ConfigFiles)
