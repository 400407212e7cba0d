"""Every example runs from start to end, on small settings, and prints what it promises; so do blocks of the how-to."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrans import Pair, Teacher, build, load_dataset

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


def blocks(heading: str) -> list[str]:
    """The Python of one section of the how-to."""
    text = (EXAMPLES.parent / "book" / "howto.md").read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_method_of_the_how_to_is_one():
    (block,) = blocks("Add a distillation method")
    found = {}
    exec(block, found)
    dataset = load_dataset("digits", limit=2)
    student, teacher = (build(f"cnn3_w{width}", **dataset.form) for width in (2, 4))
    loader = dataset.loader("train", 20)
    method = found["angles"](Pair.of(student, Teacher(teacher, loader), next(iter(loader)).images))
    assert method.name == "angles" and "cosines" in method.row()["student transform"]


def test_the_one_liners_of_the_how_to_run():
    (block,) = blocks("Stitch, invert or teach in one line")
    dataset = load_dataset("digits", limit=20)
    names = ("net_1", "net_2", "student", "teacher")
    found = {name: build("cnn3_w2", **dataset.form, seed=k) for k, name in enumerate(names)}
    short = block.replace("epochs=60", "epochs=1").replace("dataset.std)", "dataset.std, steps=2)")
    found["images"] = dataset.test.images[:2] / 255
    exec(short, found)
    assert found["scores"]["matching"].item() == "least squares" and found["rows"]["method"].item() == "nst"
    assert found["found"].images.shape == (2, 1, 8, 8)
