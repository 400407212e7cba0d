"""Every example runs from start to end, on small settings, and prints what it promises."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = {
    "stitch": ({"epochs": 1, "limit": 10}, r"stitched at bn3: [01]\.\d{3} \(linear CKA [01]\.\d{3}\)"),
    "compare": ({"images": 60, "orders": 20}, r"\b4 +layer4 .*\d\.\d+"),
    "distil": ({"folder": "pictures", "image_size": 8, "epochs": 1}, r"student by sp: [01]\.\d{3}"),
    "invert": ({"epochs": 1, "limit": 5, "steps": 5}, r"relu3: relative error \d\.\d{3}, PSNR -?\d+\.\d dB"),
    "merge": ({"epochs": 1, "limit": 10}, r"merged aligned: [01]\.\d{3}"),
}


def test_every_example_is_tried():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL)


@pytest.fixture
def pictures(tmp_path):
    """Two classes, dark and light."""
    for part, kind, k in ((p, c, k) for p in ("train", "test") for c in ("dark", "light") for k in range(6)):
        path = tmp_path / "pictures" / part / kind / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(k).integers(0, 100, (8, 8, 3)) + (120 if kind == "light" else 0)
        Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given, printed = SMALL[name]
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**given)
    assert re.search(printed, capsys.readouterr().out)
    drawn = {"compare": ["compare.png"], "invert": ["invert.png"]}.get(name, [])
    assert [path.name for path in tmp_path.glob("*.png")] == drawn


@pytest.mark.parametrize("page", ["README.md", "book/howto.md"])
def test_every_example_is_named(page):
    text = (EXAMPLES.parent / page).read_text("utf-8")
    assert [name for name in SMALL if f"examples/{name}.py" not in text] == []
