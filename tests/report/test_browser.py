"""The page in Chromium, where it is installed: no error, a slider that slides, two widths, two schemes, paper."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_rest, write_training

from diffusion_jax.report.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium or google-chrome on the PATH"
)

# Writes into the page what a reader meets in frames of two widths, and how the sliders answer the keyboard.
PROBE = """
const shifts = [];
new PerformanceObserver((list) => shifts.push(...list.getEntries())).observe({type: "layout-shift", buffered: true});
const seen = (root) => [...root.querySelectorAll("#slider-reverse .frame")].flatMap(
  (frame) => getComputedStyle(frame).visibility === "visible" ? [frame.dataset.label] : []);
const widthsOf = async (width) => {
  const frame = Object.assign(document.createElement("iframe"), {srcdoc: page, width, height: 800, frameBorder: 0});
  document.body.append(frame);
  await new Promise((done) => frame.onload = done);
  const root = frame.contentDocument.documentElement;
  const widest = Math.max(...[...root.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, .skip"))
    .map((e) => e.getBoundingClientRect().right));
  const found = {inside: frame.contentWindow.innerWidth, scrolls: root.scrollWidth, widest};
  frame.remove();
  return found;
};
const page = document.documentElement.outerHTML.replace(/<script id="probe">[^]*?<\\/script>/, "");
addEventListener("load", async () => {
  const input = document.querySelector("#reverse-position");
  const told = {before: seen(document), output: [], focus: false};
  for (const value of [0, 4]) {
    input.value = value;
    input.dispatchEvent(new Event("input", {bubbles: true}));
    told.output.push([...seen(document), document.querySelector("#slider-reverse output").value]);
  }
  input.focus();
  told.focus = document.activeElement === input;
  told.shift = shifts.reduce((sum, shift) => sum + shift.value, 0);
  told.background = getComputedStyle(document.body).backgroundColor;
  told.broken = [...document.images].filter((image) => !image.naturalWidth).length;
  told.load = performance.getEntriesByType("navigation")[0].domComplete;
  told.phone = await widthsOf(360);
  told.desktop = await widthsOf(1440);
  document.body.append(Object.assign(document.createElement("pre"), {id: "told", textContent: JSON.stringify(told)}));
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_rest(write_training(tmp_path_factory.mktemp("runs") / ("a-very-long-name" * 6)))
    return write_page(run, [write_training(tmp_path_factory.mktemp("runs") / "other")])


def browse(page: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *quiet, profile, "--virtual-time-budget=5000", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def probed(page: Path, *flags: str) -> dict[str, Any]:
    copy = page.with_name("probed.html")
    probe = f'<script id="probe">{PROBE}</script></body>'
    copy.write_text(page.read_text().replace("</body>", probe))
    told = re.search(r'<pre id="told">(.*?)</pre>', browse(copy, "--dump-dom", *flags))
    assert told
    return json.loads(told[1])


def test_a_reader_can_slide_and_never_scrolls_sideways(page: Path) -> None:
    told = probed(page, "--window-size=1440,900")
    assert told["before"] == ["t = 250"]
    assert told["output"] == [["t = 999", "t = 999"], ["t = 0", "t = 0"]]
    assert told["focus"] and told["shift"] == 0 and told["broken"] == 0
    assert told["load"] < 1000
    for width, name in ((360, "phone"), (1440, "desktop")):
        found = told[name]
        assert found["inside"] == width
        assert found["scrolls"] <= width and found["widest"] <= width, name


def test_the_page_follows_the_readers_light_or_dark(page: Path) -> None:
    found = [
        probed(page, f"--blink-settings=preferredColorScheme={scheme}")["background"]
        for scheme in (1, 0)
    ]
    assert found == ["rgb(252, 252, 251)", "rgb(21, 24, 27)"]


def test_the_page_prints(page: Path) -> None:
    paper = page.with_name("page.pdf")
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
