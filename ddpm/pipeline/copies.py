"""Jobs as copies of one process that has loaded the packages already. No torch but there.

Loading torch takes seconds of a core, and many a job of a small grid takes no longer. While Snakemake runs jobs on this
machine, `serve` waits at a socket; `python -m ddpm job …` asks it (`request`) for a copy of itself (fork(2)) that gets
the command, folder, environment and open files of the process that asks. Nothing of ddpm is loaded before, so that a
copy runs the code that lies there. It ends with the process that asked, and fails alone. Where nobody answers, the job
runs in the process that asked, as it would without all this.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

# Where the socket lies.
PLACE = "DDPM_COPIES"
# What jobs load, besides ddpm's own modules; torch's optimisers load its compiler.
PACKAGES = ("torch", "torch._dynamo", "safetensors.torch", "tqdm", "PIL.Image", "scipy.stats", "torch_fidelity")


class Server:
    """A process that `serve`s jobs of one thread, while this object lives: it ends with the process that made it."""

    def __init__(self) -> None:
        place = Path(tempfile.mkdtemp(prefix="ddpm-")) / "socket"
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ddpm.pipeline.copies", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | one,
        )
        os.environ[PLACE] = str(place)

    def close(self) -> None:
        """Take no more jobs, and wait until those that run have ended."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def request(arguments: list[str]) -> int | None:
    """The exit status of `python -m ddpm` with these arguments, run by a copy; None where nobody answers."""
    if not (place := os.environ.get(PLACE)):
        return None
    asked = json.dumps({"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(place)
            socket.send_fds(connection, [len(asked).to_bytes(8)], [0, 1, 2])
            connection.sendall(asked)
            process = int.from_bytes(_received(connection, 8))
        except OSError:
            return None
        while True:
            try:
                return _received(connection, 1)[0]
            except KeyboardInterrupt:  # the copy, in a session of its own, says what that means
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT)
            except OSError:
                print("ddpm: the job's process was killed, for lack of memory perhaps", file=sys.stderr)
                return 137


def _received(connection: socket.socket, count: int) -> bytes:
    """The next `count` bytes; OSError where the other side has ended before."""
    found = b""
    while len(found) < count:
        if not (part := connection.recv(count - len(found))):
            raise ConnectionResetError
        found += part
    return found


def serve(place: str) -> None:
    """Copy this process for everybody who asks, until standard input ends; the copies end in `SystemExit`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who ask
    with suppress(ImportError):
        for name in PACKAGES:
            import_module(name)
    gc.collect()
    gc.freeze()  # so that copies share the memory of what is there
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(128)
        try:
            while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [], 10.0)[0]):
                if listener in ready:
                    connection, _ = listener.accept()
                    if os.fork() == 0:
                        listener.close()
                        raise SystemExit(_copy(connection))
                    connection.close()
                with suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
        finally:
            if listener.fileno() >= 0:  # of the process that serves
                listener.close()
                Path(place).unlink()
                Path(place).parent.rmdir()
    with suppress(ChildProcessError):
        while os.wait():
            pass


def _copy(connection: socket.socket) -> int:
    """Run what is asked for as the process that asks would; the exit status, which it is told."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size, files, *_ = socket.recv_fds(connection, 8, 3)
    asked = json.loads(_received(connection, int.from_bytes(size)))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update({name: value for name, value in asked["environment"].items() if name != PLACE})
    for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm"]:
        del sys.modules[name]
    sys.argv[1:] = asked["arguments"]
    connection.sendall(os.getpid().to_bytes(8))
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()
    status = 0
    try:
        runpy.run_module("ddpm", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        status = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([status & 255]))
    return status


def _follow(connection: socket.socket) -> None:
    """End with the process that asked, at once."""
    with suppress(OSError):
        if not connection.recv(1):
            os._exit(143)


if __name__ == "__main__":
    serve(sys.argv[1])
