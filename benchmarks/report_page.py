"""Size and cost of the page of a run: bytes, seconds to write it, and what a browser needs to load it.

    python benchmarks/report_page.py WORKDIR

Chromium, where it is installed, loads the page three times with an empty profile, in a window of 500 pixels, the
narrowest that it has, and of 1440. The time is from the start of the navigation to the load event; the shift is the sum
of all layout shifts.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROBE = """<script>
let shift = 0;
const add = (entries) => entries.forEach((e) => shift += e.value);
const observer = new PerformanceObserver((list) => add(list.getEntries()));
observer.observe({type: "layout-shift", buffered: true});
addEventListener("load", () => {
  const load = performance.now();
  add(observer.takeRecords());
  const told = {load, shift, inside: innerWidth, scrolls: document.documentElement.scrollWidth};
  document.body.append(Object.assign(document.createElement("pre"), {id: "told", textContent: JSON.stringify(told)}));
});
</script></body>"""


def loaded(browser: str, page: Path, width: int) -> dict[str, Any]:
    """Returns what a browser window of a width says of the page."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text().replace("</body>", PROBE))
        command = [
            *(
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={folder}/profile",
            ),
            *(f"--window-size={width},900", "--timeout=10000", "--dump-dom", copy.as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    if told is None:
        raise SystemExit(f"{browser} did not finish the page")
    return json.loads(told[1])


def main() -> None:
    from diffusion_jax.report.page import write_page

    workdir = page = Path(sys.argv[1])
    for _ in range(2):
        started, busy = time.perf_counter(), time.process_time()
        page = write_page(workdir)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        print(f"written in {seconds:.2f} s ({busy:.2f} s busy), {page.stat().st_size:,} bytes")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for width in (500, 1440) if browser else ():
        for _ in range(3):
            told = loaded(str(browser), page, width)
            print(
                f"{width} px: loaded in {told['load']:.0f} ms, shift {told['shift']:.3g}, "
                f"{told['scrolls']} of {told['inside']} px wide"
            )


if __name__ == "__main__":
    main()
