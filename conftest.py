"""Every test, and every notebook kernel started by one, runs on the CPU with one thread and from nothing.

Stored outputs were made that way. A second OpenMP thread on busy cores costs many times what it brings, and networks
that lie in the data folder from earlier code would let a changed result pass for an unchanged one.
"""

import atexit
import os
import shutil
import tempfile

pytest_plugins = ["tolerating"]

_data = tempfile.mkdtemp(prefix="reptrans-tests-")
atexit.register(shutil.rmtree, _data, ignore_errors=True)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Named `data`, since notebooks print where a run lies: data/runs/...
os.environ["REPTRANS_DATA"] = os.path.join(_data, "data")
