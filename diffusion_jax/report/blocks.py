"""What a section of the page consists of; the template has a macro for each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar


class Block:
    """A part of a section; `kind` names its macro."""

    kind: ClassVar[str]


@dataclasses.dataclass(frozen=True)
class Note(Block):
    """A remark, such as what is missing, and the command that makes it."""

    text: str
    command: str | None = None
    kind: ClassVar = "note"


@dataclasses.dataclass(frozen=True)
class Card(Block):
    """A preformatted text."""

    text: str
    caption: str
    kind: ClassVar = "card"


@dataclasses.dataclass(frozen=True)
class Facts(Block):
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    caption: str
    kind: ClassVar = "facts"


@dataclasses.dataclass(frozen=True)
class Table(Block):
    """A table, whose first column names the rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar = "table"


@dataclasses.dataclass(frozen=True)
class Details(Block):
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar = "details"


@dataclasses.dataclass(frozen=True)
class Picture(Block):
    """A picture, with its size on the page.

    Attributes:
      source: A data URI.
      width: Width in CSS pixels; a narrower page shrinks it.
      height: Height likewise.
      alt: What it shows, for those who do not see it.
      caption: A line below it.
      coarse: Whether its pixels are to be seen.
    """

    source: str
    width: int
    height: int
    alt: str
    caption: str = ""
    coarse: bool = False
    kind: ClassVar = "picture"


@dataclasses.dataclass(frozen=True)
class Row(Block):
    """Blocks beside each other, where the page is wide enough."""

    blocks: Sequence[Block]
    kind: ClassVar = "row"


@dataclasses.dataclass(frozen=True)
class Frame:
    """A position of a slider.

    Attributes:
      label: What the slider says there.
      pictures: What is seen there.
      printed: Whether it is seen on paper too, where nothing slides.
    """

    label: str
    pictures: Sequence[Picture]
    printed: bool = True


@dataclasses.dataclass(frozen=True)
class Slider(Block):
    """Pictures of which one position is seen at a time.

    Attributes:
      name: Part of the ids of its elements, which no other slider has.
      label: What slides.
      frames: Positions.
      start: Number of the first one seen.
    """

    name: str
    label: str
    frames: Sequence[Frame]
    start: int
    kind: ClassVar = "slider"


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a chart, in the chart's own coordinates.

    Attributes:
      label: Its name in the legend.
      color: Number of its color.
      path: `d` of an SVG path.
      dots: Points that are marked: x, y, and what they say.
    """

    label: str
    color: int
    path: str
    dots: Sequence[tuple[float, float, str]]


@dataclasses.dataclass(frozen=True)
class Chart(Block):
    """Curves; see `charts.chart`.

    Attributes:
      title: What is drawn.
      axis: What x is.
      lines: The curves.
      bands: Areas behind them; the path of each is its outline.
      x_ticks: Places and texts along x.
      y_ticks: Places and texts along y.
      said: What the curves say, in words.
      remark: What was left out or thinned; "" if nothing was.
    """

    title: str
    axis: str
    lines: Sequence[Line]
    bands: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    said: str
    remark: str = ""
    kind: ClassVar = "chart"
