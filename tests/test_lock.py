"""The lock of a job: one holder at a time, through contention, death, and machines that see only files."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ddpm.errors import UserError
from ddpm.pipeline import locks

ROOT = Path(__file__).parent.parent


def start(folder: Path, body: str, beat: float = 0.1, stale: float = 1.0) -> subprocess.Popen:
    """A process that runs `body` while it holds the lock, with `say` for a line on its stdout."""
    code = (
        "import sys, time, os\nfrom pathlib import Path\nfrom ddpm.pipeline.locks import held\n"
        f"say = lambda text: print(text, flush=True)\nwith held(Path({str(folder)!r}), {beat}, {stale}):\n"
    ) + "".join(f"    {line}\n" for line in body.splitlines())
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def foreign(folder: Path, **changes: object) -> Path:
    """A lock as a process of another machine would have left it."""
    folder.mkdir(parents=True)
    path = folder / "lock-1"
    holder = {"pid": os.getpid(), "born": "1", "machine": "another", "host": "far", "slurm": "17"}
    path.write_text(json.dumps(holder | changes))
    return path


def take(folder: Path, stale: float = 1.0) -> float:
    """Hold the lock for a moment; the seconds until it was there."""
    begun = time.monotonic()
    with locks.held(folder, 0.1, stale):
        assert [p.name[:5] for p in folder.iterdir()] == ["lock-"]
        return time.monotonic() - begun


def test_a_free_lock_is_taken_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """No wait; afterwards neither lock nor folder."""
    seconds = take(tmp_path / "a" / "b")
    assert seconds < 0.5
    assert not (tmp_path / "a" / "b").exists()


def test_a_second_copy_waits(tmp_path: Path) -> None:
    """It says for whom, and gets the lock when the first one releases it."""
    first = start(tmp_path / "x", "say('in')\ntime.sleep(1.5)\nsay('out')")
    assert first.stdout.readline() == "in\n"
    second = start(tmp_path / "x", "say('in')")
    assert second.stdout.readline() == "in\n"
    assert first.poll() is not None or first.stdout.readline() == "out\n"
    assert first.wait(5) == 0 and second.wait(5) == 0
    assert f"held by process {first.pid} on" in second.stderr.read()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_of_this_machine_is_succeeded_at_once(tmp_path: Path, end: signal.Signals) -> None:
    """However it died: no wait for a sign of life."""
    first = start(tmp_path / "x", "say('in')\ntime.sleep(60)")
    assert first.stdout.readline() == "in\n"
    first.send_signal(end)
    first.wait(5)
    seconds = take(tmp_path / "x", stale=1000)
    assert seconds < 1


def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    """This very process's number, but another start."""
    foreign(tmp_path / "x", machine=locks.machine())
    assert take(tmp_path / "x", stale=1000) < 1


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    """A holder that ended and was not yet reaped by its parent."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    when = locks.born(child.pid)
    foreign(tmp_path / "x", machine=locks.machine(), pid=child.pid, born=when)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert take(tmp_path / "x", stale=1000) < 1
    child.wait()


def test_a_holder_elsewhere_is_dead_after_no_sign_of_life(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its file does not change for the time that is allowed; who it was is said."""
    foreign(tmp_path / "x")
    seconds = take(tmp_path / "x", stale=0.6)
    assert 0.6 <= seconds < 2.5
    said = capsys.readouterr().err
    assert f"held by process {os.getpid()} on far, Slurm job 17; waiting" in said and "is dead; taking" in said


@pytest.mark.parametrize("skew", [-7200, 0, 7200])
def test_a_live_holder_elsewhere_is_waited_for(tmp_path: Path, skew: int) -> None:
    """As long as its file is touched, whatever its clock says."""
    path, done = foreign(tmp_path / "x"), threading.Event()

    def beat() -> None:
        for _ in range(12):
            os.utime(path, (time.time() + skew, time.time() + skew))
            done.wait(0.2)
        path.unlink()

    threading.Thread(target=beat).start()
    seconds = take(tmp_path / "x", stale=1.0)
    assert seconds >= 2.2


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_torn_lock_is_like_one_from_elsewhere(tmp_path: Path, content: str) -> None:
    """Nobody can say whose it is: it must show no life for the time that is allowed."""
    foreign(tmp_path / "x").write_text(content)
    seconds = take(tmp_path / "x", stale=0.5)
    assert seconds >= 0.5


def test_a_holder_that_was_taken_for_dead_ends(tmp_path: Path) -> None:
    """Stopped for long, succeeded as if from another machine, and woken: it ends before its next sign of life."""
    first = start(tmp_path / "x", "say('in')\ntime.sleep(60)\nsay('still there')")
    assert first.stdout.readline() == "in\n"
    first.send_signal(signal.SIGSTOP)
    path = tmp_path / "x" / "lock-1"
    path.write_text(path.read_text().replace(locks.machine(), "another"))
    with locks.held(tmp_path / "x", 0.1, 0.5):
        first.send_signal(signal.SIGCONT)
        assert first.wait(5) == 75
        assert [p.name for p in (tmp_path / "x").iterdir()] == ["lock-2"]
    said, errors = first.communicate()
    assert said == "" and "another copy has taken over; this one ends" in errors


def test_an_answer_that_nfs_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """link(2) succeeds and its repetition says that the name exists: the lock is this process's own."""
    link = Path.hardlink_to

    def twice(self: Path, target: Path) -> None:
        link(self, target)
        raise FileExistsError(self)

    monkeypatch.setattr(Path, "hardlink_to", twice)
    assert take(tmp_path / "x", stale=1000) < 1


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exFAT and some clouds' are: the folder, and what would be right; other refusals stay what they are."""
    for number, kind in ((errno.EPERM, UserError), (errno.EACCES, PermissionError)):

        def refuse(self: Path, target: Path, number: int = number) -> None:
            raise PermissionError(number, "refused")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(kind) as caught, locks.held(tmp_path / "x", 0.1, 0.5):
            pass
        assert (f"{tmp_path / 'x'}: this file system has no hard links" in str(caught.value)) == (kind is UserError)


def test_a_folder_that_goes_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was to be made and is not when looked at: made again. Anything else there is an error."""
    make, trouble = Path.mkdir, [FileExistsError(errno.EEXIST, "there")]

    def gone(self: Path, *of: object, **named: object) -> None:
        if trouble:
            raise trouble.pop()
        make(self, *of, **named)

    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "mkdir", gone)
    assert take(tmp_path / "x", stale=1000) < 1
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError):
            take(tmp_path / name)


def test_a_folder_that_is_another_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS answers ESTALE where the folder was removed and made again; any other trouble is an error."""
    number, trouble = locks._newest, [errno.ESTALE]

    def stale(folder: Path) -> int:
        if trouble:
            raise OSError(trouble.pop(), "trouble")
        return number(folder)

    monkeypatch.setattr(locks, "_newest", stale)
    assert take(tmp_path / "x", stale=1000) < 1
    trouble.append(errno.EIO)
    with pytest.raises(OSError, match="trouble"):
        take(tmp_path / "x")


def test_trouble_after_the_link_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predecessor cannot be read again at first: the lock that was just made goes, and is not waited for."""
    foreign(tmp_path / "x", machine=locks.machine())
    dead, trouble = locks._Watch.dead, [None, OSError(errno.ESTALE, "stale")]

    def stale(self: locks._Watch, path: Path) -> bool:
        if trouble and (error := trouble.pop(0)):
            raise error
        return dead(self, path)

    monkeypatch.setattr(locks._Watch, "dead", stale)
    assert take(tmp_path / "x", stale=1000) < 1 and not trouble


def test_two_that_find_the_same_dead_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One succeeds it, works and releases between the other's look and its link: the other does not hold it too."""
    foreign(tmp_path / "x", machine=locks.machine())
    dead, other = locks._Watch.dead, []

    def slow(self: locks._Watch, path: Path) -> bool:
        found = dead(self, path)
        if not other:
            other.append(start(tmp_path / "x", "say('in')\ntime.sleep(0.7)"))
            assert other[0].stdout.readline() == "in\n"
            # It holds lock-2; this one believes that lock-1 is the last and dead.
        return found

    monkeypatch.setattr(locks._Watch, "dead", slow)
    seconds = take(tmp_path / "x")
    assert other[0].wait(5) == 0 and seconds > 0.7


def test_a_new_lock_of_the_dead_ones_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was succeeded, that one released, and a third holds lock-1 anew, between another's look and its link."""
    foreign(tmp_path / "x", machine=locks.machine())
    dead, others = locks._Watch.dead, []

    def slow(self: locks._Watch, path: Path) -> bool:
        found = dead(self, path)
        if not others:
            (own,) = (tmp_path / "x").glob(".lock.*")
            content = own.read_text()
            for seconds in (0, 0.7):
                others.append(start(tmp_path / "x", f"say('in')\ntime.sleep({seconds})"))
                assert others[-1].stdout.readline() == "in\n"
                assert seconds or others[0].wait(5) == 0
            assert [p.name for p in (tmp_path / "x").iterdir()] == ["lock-1"]
            own.write_text(content)  # the one that released has removed it
        return found

    monkeypatch.setattr(locks._Watch, "dead", slow)
    seconds = take(tmp_path / "x")
    assert others[1].wait(5) == 0 and seconds > 0.7


def test_contention(tmp_path: Path) -> None:
    """Six processes, forty turns, some killed as they hold it: never two at once, and every turn is taken."""
    inside, count = tmp_path / "inside", tmp_path / "count"
    count.write_text("0")
    body = f"""
inside, count = Path({str(inside)!r}), Path({str(count)!r})
if inside.exists() and born(int(inside.read_text())) is not None:
    say('two at once'); os._exit(9)
inside.write_text(str(os.getpid()))
n = int(count.read_text())
time.sleep(0.01)
count.write_text(str(n + 1))
if len(sys.argv) > 1: os.kill(os.getpid(), 9)
inside.unlink()
""".strip()
    rng, running, turns = random.Random(0), [], 0
    code = "import sys, time, os\nfrom pathlib import Path\nfrom ddpm.pipeline.locks import born, held\nsay = print\n"
    code += f"while True:\n    with held(Path({str(tmp_path / 'x')!r}), 0.05, 1000):\n"
    code += "".join(f"        {line}\n" for line in body.splitlines()) + "    break\n"
    while turns < 40 or running:
        while turns < 40 and len(running) < 6:
            kill = ["die"] if rng.random() < 0.25 else []
            command = [sys.executable, "-c", code, *kill]
            running.append(
                (bool(kill), subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
            )
            turns += 1
        for item in [r for r in running if r[1].poll() is not None]:
            running.remove(item)
            assert item[1].returncode == (-9 if item[0] else 0), item[1].stdout.read()
        time.sleep(0.01)
    assert count.read_text() == "40"
