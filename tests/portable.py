"""Whether the notebooks print the same under the arithmetic of other processors: `make portable`.

Each notebook runs from nothing under each setting, and its outputs are compared with the stored ones as in the tests.
Printed is a line for each notebook and setting: how many numbers were compared, how many print otherwise, and the
largest deviation as a share of what is tolerated; then what is not tolerated. Exits with 1 if there is any.

    python tests/portable.py                                  everything
    python tests/portable.py -s default,avx2 training atlas   these settings, these notebooks
    python tests/portable.py -s default --turn 2              two notebooks, others every day
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import nbformat
import torch
from nbval.plugin import coalesce_streams, get_sanitize_patterns
from printed import deviations, fault_of_picture, forgiven, plain

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
SANITIZE = get_sanitize_patterns((HERE / "nbval.cfg").read_text())

# Each makes the libraries compute as they would on another processor, or with another number of cores.
SETTINGS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "sse": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    "threads": {"OMP_NUM_THREADS": "2"},
}


def run(notebook: Path, setting: dict[str, str], folder: Path) -> Path:
    """Execute the notebook in a kernel of this Python, on the CPU, without networks or runs of earlier calls."""
    new = folder / notebook.name
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "REPTRANS_DATA": str(folder / notebook.stem / "data")}
    # The kernel's command is "python": this one.
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", str(notebook), str(new)]
    done = subprocess.run(
        command, cwd=notebook.parent, env=os.environ | own | setting, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{notebook.name} failed:\n{done.stderr[-3000:]}")
    return new


def texts(output: dict) -> list[str]:
    """What the output prints, without what may differ between two honest runs."""
    data = output.get("data", {})
    kinds = [kind for kind in ("text/plain", "text/html") if kind in data]
    found = [output["text"]] if "text" in output else [data[kind] for kind in kinds]
    for pattern, replacement in SANITIZE:
        found = [re.sub(pattern, replacement, text) for text in found]
    return [plain(text) for text in found]


def compared(stored: Path, new: Path) -> tuple[list[float], list[str]]:
    """(the deviation of every measured number, a line for everything that is not tolerated)."""
    shares, faults = [], []
    cells = zip(*([c for c in nbformat.read(p, 4).cells if c.cell_type == "code"] for p in (stored, new)), strict=True)
    for number, (before, after) in enumerate(cells):
        outputs = [coalesce_streams(cell.outputs) for cell in (before, after)]
        if [o.output_type for o in outputs[0]] != [o.output_type for o in outputs[1]]:
            faults.append(f"cell {number}: other outputs")
            continue
        for old, made in zip(*outputs, strict=True):
            if "image/png" in old.get("data", {}) and (
                fault := fault_of_picture(old.data["image/png"], made.data["image/png"])
            ):
                faults.append(f"cell {number}: {fault}")
            for a, b in zip(texts(old), texts(made), strict=True):
                declared = float(before.metadata.get("tolerance", 0.0))
                shares += [share for *_, share in deviations(a, b, declared)]
                lines = zip(a.splitlines(), forgiven(a, b, declared).splitlines(), strict=False)
                faults += [f"cell {number}: {x.strip()!r} became {y.strip()!r}" for x, y in lines if x != y]
    return shares, faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", metavar="notebook", help=", ".join(p.stem for p in NOTEBOOKS))
    parser.add_argument("-s", "--settings", default=",".join(SETTINGS), help="some of %(default)s")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="so many at once; one by default")
    parser.add_argument("--turn", type=int, default=0, metavar="N", help="N of the notebooks, others every day")
    chosen = parser.parse_args(arguments)
    known = {p.stem: p for p in NOTEBOOKS}
    unknown = {*chosen.notebooks} - {*known} or {*chosen.settings.split(",")} - {*SETTINGS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    notebooks = [known[name] for name in chosen.notebooks or known]
    if chosen.turn:
        first = date.today().toordinal() * chosen.turn
        notebooks = [notebooks[(first + i) % len(notebooks)] for i in range(chosen.turn)]
    bad, tasks = 0, [(setting, notebook) for setting in chosen.settings.split(",") for notebook in notebooks]
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    with ThreadPoolExecutor(chosen.jobs) as pool:  # each notebook has a process of its own
        for (setting, notebook), (shares, faults) in zip(
            tasks, pool.map(tried, *zip(*tasks, strict=True)), strict=True
        ):
            others = sum(share > 0 for share in shares)
            print(f"{setting:8} {notebook.stem:24} {len(shares):5} numbers, {others:4} print otherwise, "
                  f"largest deviation {max(shares, default=0):.2f}", flush=True)  # fmt: skip
            print("".join(f"    {fault}\n" for fault in faults), end="", flush=True)
            bad += len(faults)
    return int(bad > 0)


def tried(setting: str, notebook: Path) -> tuple[list[float], list[str]]:
    """What `compared` says of the notebook as it is stored and as it runs under the setting."""
    with tempfile.TemporaryDirectory() as folder:
        return compared(notebook, run(notebook, SETTINGS[setting], Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
