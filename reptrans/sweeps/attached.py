"""papermill's command line, ended at once when the process that started it is gone, however that went.

The starter holds one end of a pipe whose other end is standard input here; it closes when the starter dies, even by
SIGKILL. The kernel notices that papermill is gone. Started as a script, so that nothing heavy is imported.
"""

import os
import signal
import sys
import threading


def _end_with_the_starter() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    from papermill.cli import papermill

    sys.exit(papermill())
