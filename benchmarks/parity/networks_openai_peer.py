"""The side of improved- and guided-diffusion of `networks.py`: the case as JSON, and the folder to write to."""

# pyright: reportMissingImports=false

import argparse
import importlib
import json
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import torch
from networks_peer import images, randomize, serve, write

CLASSIFIER = "guided_diffusion_classifier"


def main() -> None:
    """Writes model.pt and io.npz, made by the library's own functions from its own flags."""
    case, folder = json.loads(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(case["code"]) / case["code_of"]))
    for name in ("blobfile", "mpi4py"):  # Neither is used here.
        sys.modules.setdefault(name, types.ModuleType(name))
    package = case["code_of"].replace("-", "_")
    script = importlib.import_module(f"{package}.script_util")
    if case["format"] == CLASSIFIER:
        return write_classifier(case, folder, script)
    parser = argparse.ArgumentParser()
    script.add_dict_to_argparser(parser, script.model_and_diffusion_defaults())
    flags = parser.parse_args(shlex.split(case["settings"]))
    model, diffusion = script.create_model_and_diffusion(
        **script.args_to_dict(flags, script.model_and_diffusion_defaults().keys())
    )
    randomize(model)
    x = images(case)
    # Not powers of two: with 4,000 steps the time is scaled.
    t = torch.linspace(3, flags.diffusion_steps - 100, len(x)).round().long()
    labels = torch.arange(len(x)) * 7 if flags.class_cond else None
    options = {} if labels is None else {"y": labels}
    wrapped = diffusion._wrap_model(model)  # It scales the time.

    def forward() -> torch.Tensor:
        return wrapped(x, t, **options)

    write(folder, x, t, forward, labels)
    save(case, folder, model)
    serve(case, forward, model)


def write_classifier(case: dict[str, Any], folder: str, script: Any) -> None:
    """Writes the same of a classifier."""
    model = make_classifier(case, script)
    randomize(model)
    x = images(case)
    t = torch.linspace(3, 900, len(x)).round().long()
    write(folder, x, t, lambda: model(x, t))
    save(case, folder, model)


def make_classifier(case: dict[str, Any], script: Any) -> Any:
    """Returns a classifier, made by the library's function, of case["classes"] classes if that is there."""
    parser = argparse.ArgumentParser()
    # Two flags of ours stand for what their function has as constants.
    ours = {"classifier_channel_mult": "", "classifier_head_channels": 64}
    script.add_dict_to_argparser(parser, script.classifier_defaults() | ours)
    flags = vars(parser.parse_args(shlex.split(case["settings"])))
    mult, heads = (flags.pop(name) for name in ours)
    make = script.EncoderUNetModel

    def with_ours(**options: Any) -> Any:
        options |= {"num_head_channels": heads, "out_channels": case.get("classes", 1000)}
        if (
            mult
        ):  # Their function was told of images of 64 pixels, since it knows no others' levels.
            factors = [ds * case["size"] // 64 for ds in options["attention_resolutions"]]
            options |= {"image_size": case["size"], "attention_resolutions": tuple(factors)}
            options["channel_mult"] = tuple(map(int, mult.split(",")))
        return make(**options)

    script.EncoderUNetModel = with_ours
    try:
        return script.create_classifier(**(flags | ({"image_size": 64} if mult else {})))
    finally:
        script.EncoderUNetModel = make


def save(case: dict[str, Any], folder: str, model: torch.nn.Module) -> None:
    """Writes model.pt, of fixtures in half precision, which holds all digits of their weights."""
    state = model.half().state_dict() if case.get("fixture") else model.state_dict()
    torch.save(state, f"{folder}/model.pt")


if __name__ == "__main__":
    main()
