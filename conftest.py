"""Every test, and every notebook kernel started by one, runs on the CPU with one thread.

Stored outputs were made that way, and a second OpenMP thread on busy cores costs many times what it brings.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
