"""A folder has one owner, also where owners are killed, hosts differ, and several want it at once."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import owner as owner_module, ownership, stopping
from diffusion_jax.lifecycle.owner import claim_of, read_owner, start_ticks_of
from diffusion_jax.lifecycle.ownership import Lock
from diffusion_jax.reporting import results

KILLED = """
import os, signal, sys
from pathlib import Path
from diffusion_jax.lifecycle.ownership import Lock
Lock(Path(sys.argv[1]), "--mode=train").acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock.json"


@pytest.fixture
def left(path: Path) -> Path:
    """A lock whose owner was killed."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL and path.exists()
    return path


def write_owner(path: Path, **fields: object) -> None:
    """Writes a lock of this process, but for some fields."""
    claim = json.loads(claim_of("--mode=train", path.parent))
    path.write_text(json.dumps({**claim, **fields}))


def test_a_second_owner_is_refused_and_told_of_the_first_until_that_has_released(path: Path):
    first, second = Lock(path, "--mode=train"), Lock(path, "--mode=train")
    first.acquire()
    with pytest.raises(InputError, match="is in use by --mode=train") as refused:
        second.acquire()
    for said in (socket.gethostname(), f"pid {os.getpid()}", "since 2", str(path.parent)):
        assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    first.check()
    first.release()
    assert not list(path.parent.iterdir())
    second.acquire()
    second.release()


def test_a_lock_whose_owner_was_killed_is_taken_over_with_a_word(
    left: Path, capsys: pytest.CaptureFixture[str]
):
    lock = Lock(left, "--mode=train")
    lock.acquire()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: --mode=train on ") and "is gone; taken over" in line
    lock.release()
    assert not list(left.parent.iterdir())


def test_a_lock_that_was_copied_with_its_folder_is_not_the_owners_and_a_linked_folder_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`cp -r` of a workdir while it is trained in."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    first = Lock(run / "lock.json", "--mode=train")
    first.acquire()
    shutil.copytree(run, copy)
    second = Lock(copy / "lock.json", "--mode=train")
    second.acquire()
    assert "is a copy of the lock of --mode=train" in capsys.readouterr().err
    first.check()
    second.release()
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(InputError, match="in use by"):
        Lock(tmp_path / "link" / "lock.json", "--mode=train").acquire()
    first.release()


def test_an_owner_that_was_killed_and_not_waited_for_is_gone(path: Path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as killed:
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # It stays a zombie.
        lock = Lock(path, "--mode=train")
        lock.acquire()
        lock.release()


def test_another_process_with_the_number_of_an_owner_that_is_gone_is_not_the_owner(path: Path):
    start_ticks = start_ticks_of(os.getpid())
    assert start_ticks is not None and start_ticks > 0
    write_owner(path, start_ticks=start_ticks - 1)
    lock = Lock(path, "--mode=train")
    lock.acquire()
    lock.release()


def test_an_owner_on_another_host_is_heard_by_its_signs_of_life(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "STALE_AFTER_SECONDS", 1.0)
    owner = Lock(path, "--mode=train")
    with monkeypatch.context() as patch:
        patch.setattr(owner_module, "this_system", lambda: "another system")
        patch.setattr(socket, "gethostname", lambda: "another host")
        owner.acquire()
    with pytest.raises(
        InputError, match=f"on another host, pid .*; if that is gone, delete {path}"
    ):
        Lock(path, "--mode=train").acquire()
    owner._released.set()  # It is silent, as after a kill.
    taker = Lock(path, "--mode=train")
    taker.acquire()
    assert "for its heartbeat" in capsys.readouterr().err
    with pytest.raises(RunError, match="was taken over by --mode=train on"):
        owner.check()
    owner.release()
    taker.check()
    taker.release()


def test_a_damaged_lock_is_held_while_it_is_written_and_taken_over_when_it_is_old(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    live = json.loads(claim_of("--mode=train", path.parent))
    fields = ({"pid": 2**70}, {"pid": -1}, {"pid": True}, {"host": "a\nb"}, {"since": {}})
    damages = [json.dumps({**live, **changed}) for changed in fields]
    for damage in ("", "{", "[1]", '{"pid": "x"}', '{"what": 1}', "[" * 10**5, *damages):
        path.write_text(damage)
        os.utime(path, (1, 1))
        lock = Lock(path, "--mode=train")
        lock.acquire()
        lock.release()


def test_a_pipe_in_the_place_of_a_lock_hangs_nobody(path: Path):
    os.mkfifo(path)
    os.utime(path, (1, 1))
    lock = Lock(path, "--mode=train")
    lock.acquire()
    lock.release()
    assert not path.exists()


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def contend(path: Path, number: int) -> list[Lock]:
    """Returns which of several that want a lock at the same moment have got it."""
    together, won = threading.Barrier(number), []

    def want() -> None:
        lock = Lock(path, "--mode=train")
        together.wait()
        with contextlib.suppress(InputError):
            lock.acquire()
            won.append(lock)

    threads = [threading.Thread(target=want) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_find_an_owner_gone_at_once_one_takes_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
):
    """A second lock is left too, by one that was killed while it took over."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for i in range(20):
        write_owner(path, start_ticks=1)
        if i % 2:
            owner = read_owner(path)
            assert owner is not None
            write_owner(path.with_name(f"{path.name}.{owner.token}"), start_ticks=1)
        won = contend(path, 8)
        assert len(won) == 1
        won[0].check()
        won[0].release()
        assert not list(path.parent.iterdir())


@pytest.fixture
def stuck(path: Path) -> Path:
    """A lock whose owner is gone, and that another one, which lives, has begun to take over."""
    write_owner(path, start_ticks=1)
    owner = read_owner(path)
    assert owner is not None
    write_owner(path.with_name(f"{path.name}.{owner.token}"), what="--mode=taker")
    return path


@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_one_that_is_stuck_while_it_takes_over_is_named_and_not_waited_for_without_an_end(
    stuck: Path, wait: float
):
    with pytest.raises(InputError, match=f"is in use by --mode=taker on .*, pid {os.getpid()}"):
        Lock(stuck, "--mode=train").acquire(wait)
    assert len(list(stuck.parent.iterdir())) == 2


def test_a_signal_ends_the_wait_for_one_that_takes_over(stuck: Path):
    stopping.request("SIGTERM")
    try:
        with pytest.raises(stopping.Stopped):
            Lock(stuck, "--mode=train").acquire(60.0)
    finally:
        stopping.forget()


def test_an_owner_notices_that_its_folder_was_deleted_or_moved(tmp_path: Path):
    for remove in (lambda f: f.rename(tmp_path / "moved"), lambda f: (f / "lock.json").unlink()):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        lock = Lock(folder / "lock.json", "--mode=train")
        lock.acquire()
        remove(folder)
        with pytest.raises(RunError, match=f"{folder} was deleted or moved while this command ran"):
            lock.check()
        lock.release()


def test_results_that_two_commands_write_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = results._last

    def slowly(path: Path) -> object:
        found = read(path)
        time.sleep(0.05)  # Time for the others to read the same.
        return found

    monkeypatch.setattr(results, "_last", slowly)
    names = [f"metric {i}" for i in range(4)]
    add: Callable[[str], object] = lambda n: results.add_metric(tmp_path, "evaluate", n, {})  # noqa: E731
    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((tmp_path / "results" / "evaluate.json").read_text())
    assert set(names) < set(kept)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["evaluate.json"]


@pytest.mark.parametrize("what", ["folder", "link to nothing", "link to itself"])
def test_what_cannot_be_replaced_by_a_lock_is_named(path: Path, what: str):
    path.mkdir() if what == "folder" else path.symlink_to(path if "itself" in what else "nowhere")
    with contextlib.suppress(NotImplementedError):
        os.utime(path, (1, 1), follow_symlinks=False)
    with pytest.raises(InputError, match=f"if that is gone, delete {path}"):
        Lock(path, "--mode=train").acquire()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_was_deleted_while_a_command_owns_it_is_not_made_anew(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    ownership.own(folder, "--mode=train")
    shutil.rmtree(folder)
    with (
        pytest.raises(RunError, match="was deleted or moved"),
        ownership.owned_write(folder / "x" / "y"),
    ):
        pass
    ownership.release()
    assert not folder.exists()
