"""papermill's command line, ended at once when the process that started it is gone, however that went.

The starter holds one end of a pipe whose other end is standard input here; it closes when the starter dies, even by
SIGKILL. The kernel notices that papermill is gone. Started as a script, so that nothing heavy is imported.
"""

import os
import signal
import sys
import threading

if __name__ == "__main__":
    threading.Thread(target=lambda: os.read(0, 1) or os.kill(os.getpid(), signal.SIGKILL), daemon=True).start()
    # A grammar of web addresses, for which no notebook is looked through; to build it takes most of papermill's start.
    sys.modules["rfc3987_syntax"] = None
    from papermill.cli import papermill

    sys.exit(papermill())
