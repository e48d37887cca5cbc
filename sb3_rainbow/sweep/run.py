"""One attempt at one run, in a process of its own: ``python -m sb3_rainbow.sweep.run`` and the run as JSON."""

import os
import signal
import sys
import threading

from sb3_rainbow.sweep.attempt import begin
from sb3_rainbow.sweep.search import optimize
from sb3_rainbow.sweep.suite import Run
from sb3_rainbow.sweep.training import train


def end_with_parent() -> None:
    """End at once when whoever started this process ends: it holds the other end of the standard input."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Make one attempt at the run that the first argument says."""
    end_with_parent()
    # RL Zoo would take an interrupt for the training's end, and save a model that is not ready
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = Run.from_json(sys.argv[1])
    if run.is_done:  # by an attempt that was taken for dead
        return
    attempt = begin(run.folder)
    (optimize if run.search else train)(run, attempt)


if __name__ == "__main__":
    main()
