"""Programs that end with all that they started.

A peer's script starts programs of its own, such as a compiler. One of those left
over would work beside the next peer, whose times would then be wrong.
"""

import contextlib
import os
import signal
import subprocess
import sys

# Seconds between the request to end and the kill: time to remove temporary files.
GRACE = 5.0


def run(command: list[str], timeout: float, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` in a process group of its own, of which nothing is left then."""
    with subprocess.Popen(command, start_new_session=True, **options) as child:
        try:
            out, _ = child.communicate(timeout=timeout)
        finally:
            # Whatever ended the wait: Ctrl-C reaches no other session.
            end(child)
    return subprocess.CompletedProcess(command, child.returncode, out)


def end(child: subprocess.Popen):
    """Ends a process, if it still runs, and its group."""
    if os.name == "nt":
        child.kill()
        return
    if child.poll() is None:
        signal_group(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    signal_group(child, signal.SIGKILL)


def signal_group(child: subprocess.Popen, which: signal.Signals):
    # A group of none does not exist; where only a zombie is in it, macOS refuses.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, which)


def exit_on_signals():
    """Makes a request to end this program an exception, so that it cleans up: it
    removes temporary files, and ends what it started."""
    for name in ("SIGTERM", "SIGHUP"):
        which = getattr(signal, name, None)
        # Under nohup, SIGHUP is to go on being ignored.
        if which and signal.getsignal(which) == signal.SIG_DFL:
            signal.signal(which, lambda number, _: sys.exit(128 + number))
