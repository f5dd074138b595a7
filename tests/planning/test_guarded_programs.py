"""Operations, bytes, temporaries, collectives and cycles of four train steps are what they were."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from guarded_programs import FILE, PROGRAMS, compiler

KNOWN = json.loads(FILE.read_text())
# A compiler of one version is deterministic; what is allowed is what a harmless change may cost.
TOLERANCE = 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_takes_no_more_than_it_did(name: str):
    if PROGRAMS[name][0] and importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, of the extra [tpu]")
    if KNOWN[name]["compiler"] != compiler(name):
        pytest.skip(f"the figures are of {KNOWN[name]['compiler']}, not of {compiler(name)}")
    code = (
        f"from guarded_programs import figures; import json; print(json.dumps(figures({name!r})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        stdout=subprocess.PIPE,
        timeout=1200,
    )
    figures = json.loads(found.stdout.splitlines()[-1])
    for kind in ("flops", "bytes", "temporaries", "cycles"):
        assert figures[kind] == pytest.approx(KNOWN[name][kind], rel=TOLERANCE), kind
    assert figures["collectives"] == KNOWN[name]["collectives"]
