"""The README of an exported model: what it is, how it was made, what was measured, and how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

USES = {
    "diffusers": """```python
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("FOLDER")(batch_size=16, num_inference_steps=1000).images
```""",
    "diffusers, with classes": """```python
from diffusers import DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("FOLDER", subfolder="unet")  # Its last class is none at all.
scheduler = DDPMScheduler.from_pretrained("FOLDER", subfolder="scheduler")
```""",
    "single": """```bash
python -m diffusion_jax.main --mode=import --source=FOLDER --workdir=runs/imported
python -m diffusion_jax.main --mode=sample --workdir=runs/imported
```""",
    "stablehlo": """```python
import jax
import numpy as np

sample = jax.export.deserialize(open("FOLDER/sampler.stablehlo", "rb").read()).call
images = sample(np.uint32(0), np.arange(16, dtype=np.int32)LABELS)  # Seed, indices of the images.
```

It needs the packages jax and flatbuffers.""",
}


def model_card(
    title: str,
    form: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Any],
    *,
    classes: Sequence[str] = (),
    conditional: bool = False,
    picture: str | None = None,
) -> str:
    """Returns the card as Markdown.

    Args:
      title: Of the model.
      form: What is exported: "diffusers", "single" or "stablehlo".
      facts: Of the recipe, by name.
      metrics: Results of `--mode=evaluate` by metric; each has "value" or numbers of its own.
      fields: All fields of its config, in groups.
      classes: Names of the classes.
      conditional: Whether the network is given classes.
      picture: Name of a file of samples beside the card; None: there is none.
    """
    use = "diffusers, with classes" if form == "diffusers" and conditional else form
    labels = ", np.zeros(16, np.int32)" if conditional else ""
    sections = {
        "Use": USES[use].replace("LABELS", labels).splitlines(),
        "Recipe": _table({**facts, **({"classes": ", ".join(classes)} if classes else {})}),
        "Measured": _metrics(metrics) or ["Nothing was measured: `--mode=evaluate` does it."],
        "Config": ["```json", json.dumps(fields, indent=2), "```"],
    }
    lines = [*_head(title, form), *([f"![Samples]({picture})", ""] if picture else [])]
    for name, section in sections.items():
        lines += [f"## {name}", "", *section, ""]
    return "\n".join(lines)


def _head(title: str, form: str) -> list[str]:
    """Returns what hubs read of a model, and the title."""
    return [
        "---",
        f"library_name: {'diffusers' if form == 'diffusers' else 'jax'}",
        "pipeline_tag: unconditional-image-generation",
        "tags: [diffusion, image-generation, diffusion_jax]",
        "---",
        f"# {title}",
        "",
    ]


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a table of each metric's numbers and what they depend on."""
    lines = []
    for name, result in metrics.items():
        numbers = {
            key: value
            for key, value in result.items()
            if isinstance(value, (int, float, str)) and not isinstance(value, bool)
        }
        lines += [f"### {name}", "", *_table(numbers), ""]
    return lines[:-1]


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
