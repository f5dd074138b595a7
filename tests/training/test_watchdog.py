"""A step that hangs is told with the stacks of all threads, and ends the process; slow work between steps is not."""

import subprocess
import sys

SCRIPT = """
import sys, threading, time
from diffusion_jax.training.watchdog import Watchdog
watchdog = Watchdog(1.0)
for step in range(1, 4):
    time.sleep(0.6)
    watchdog.done(step)
with watchdog.paused():
    time.sleep(2)
def forgotten():
    time.sleep(60)
threading.Thread(target=forgotten, daemon=True).start()
if sys.argv[1] == "hang":
    time.sleep(60)
watchdog.close()
time.sleep(2)
print("over")
"""


def start(how: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_hanging_step_ends_the_process_with_the_stacks_of_all_threads_and_nothing_else_does():
    processes = start("hang"), start("end")
    (out, err), (other, nothing) = (process.communicate(timeout=120) for process in processes)
    assert processes[0].returncode == 1 and out == ""
    first = err.splitlines()[0]
    assert first.startswith("error: no step has ended for 1 s") and "step 3" in first
    assert "in forgotten" in err and err.count("Thread 0x") + err.count("Current thread") >= 3
    assert processes[1].returncode == 0 and other == "over\n" and nothing == ""
