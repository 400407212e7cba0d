"""Stitching against the plain way: seconds of an epoch, seconds to an accuracy, seconds and memory of least squares.

Results are compared; times, of the processor and with one thread, are only printed: they depend on the machine.
Ratios are plain / ours: above 1, ours is faster.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import plain, solve
from benchmarks.measure import in_turns, multiply_adds, ratios, seconds, spread
from torch.utils.data import DataLoader
from torchvision.transforms import functional as by_one

from reptrans.checkpoints import load_network
from reptrans.data import Loader, Split, load_dataset
from reptrans.data.loader import Draws
from reptrans.layers import end, front
from reptrans.models import build
from reptrans.stitching import Stitch, StitchedNetwork, direct_matching, train_stitch
from reptrans.stitching.direct import initial_map
from reptrans.stitching.frozen import collect_moments
from reptrans.training import Plan, evaluate

BATCH, IMAGES = 128, 1024
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
LAYERS = {"tiny10": ("bn1", "bn3", "bn5", "bn7"), "resnet20_w1": ("layer1.1", "layer2.1", "layer3.1")}
SOLVES = {"tiny10": 5, "resnet20_w1": 3}  # repeats; the plain way takes its time
CASES = {"cached": ("none", 4.0), "uncached": ("none", 0.0), "augmented": ("standard", 4.0)}


class TimedStitch(Stitch):
    """Notes when each epoch begins: then the loop puts it into train mode."""

    def train(self, mode: bool = True) -> "TimedStitch":
        self.begun = [*getattr(self, "begun", []), process_time()]
        return super().train(mode)


def plan(epochs: int) -> Plan:
    """The source's: Adam, 1e-3, x0.1 after each third."""
    return Plan(epochs=epochs, optimiser="adam", lr=1e-3, weight_decay=0.0)


class Setting:
    """Two networks, images, and a start of the stitch that both ways share."""

    def __init__(self, nets: list[torch.nn.Module], split: Split, layer: str):
        self.nets, self.split, self.layer = [net.eval().requires_grad_(False) for net in nets], split, layer
        self.front, self.end = front(nets[0], layer), end(nets[1], layer)
        with torch.no_grad():
            self.shape = tuple(self.front(torch.zeros(1, 3, 32, 32)).shape[1:])
        random = initial_map("random", *self.shape[:1] * 2, generator=torch.Generator().manual_seed(0))
        self.start = Stitch(self.shape, self.shape).set(random.weight, random.bias)

    def loader(self, augment: str) -> Loader:
        whole = {"shuffle": True, "drop_last": True, "augment": augment}
        return Loader(self.split, BATCH, mean=MEAN, std=STD, **whole)

    def ours(self, augment: str, memory: float, epochs: int = 1, start: dict | None = None) -> dict:
        """Seconds before the first epoch and of all epochs, the mean loss, and the network."""
        stitch = TimedStitch(self.shape, self.shape).set(**(start or self.start.dense()))
        network = StitchedNetwork(self.front, stitch, self.end)
        stitch.begun, begin = [], process_time()
        rows = train_stitch(network, self.loader(augment), plan(epochs), memory=memory)
        first, last = stitch.begun[0], process_time()
        return {"before": first - begin, "epochs": last - first, "loss": rows["task"].mean(), "network": network}

    def untrained(self, start: dict) -> dict:
        network = StitchedNetwork(self.front, Stitch(self.shape, self.shape).set(**start), self.end)
        return {"before": 0.0, "epochs": 0.0, "network": network}

    def plain(self, augment: str) -> dict:
        """Seconds of one epoch, its mean loss, and the weight after it; without augmentation in the same order."""
        net = plain.Frankenstein(*self.nets, self.layer, self.layer, self.shape[0], self.shape[0])
        start = self.start.dense()
        with torch.no_grad():
            net.transform.weight.copy_(start["weight"][:, :, None, None])
            net.transform.bias.copy_(start["bias"])
        images = plain.Images(self.split.images, self.split.labels, MEAN, STD, augment != "none")
        order = self.loader(augment).order(0).tolist()
        batches = DataLoader(images, BATCH, sampler=order, drop_last=True)
        optimiser, losses = torch.optim.Adam(net.parameters(), lr=1e-3), []
        try:
            time = seconds(lambda: losses.extend(plain.epoch(net, batches, optimiser)))
        finally:
            net.unhook()
        return {"epochs": time, "loss": np.mean(losses), "weight": net.transform.weight[:, :, 0, 0].detach()}


def table(title: str, rows: list[dict]) -> None:
    print(f"\n\n{title}\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)


@pytest.mark.parametrize("network", LAYERS)
def test_an_epoch(network):
    rows = []
    for layer in LAYERS[network]:
        setting = Setting([build(network, seed=seed) for seed in (0, 1)], solve.synthetic(IMAGES), layer)
        same_result(setting)
        rows += epoch_rows(setting, network)
    title = f"An epoch of {IMAGES} images, batch {BATCH}, one thread: median (min-max) of interleaved runs.\n"
    title += "bound: multiply-adds of plain / of ours; first pass: activations computed once; 30 epochs: with it."
    table(title, rows)


def same_result(setting: Setting) -> None:
    true = setting.plain("none")
    for memory in (4.0, 0.0):
        found = setting.ours("none", memory)
        assert found["loss"] == pytest.approx(true["loss"], rel=1e-5)
        torch.testing.assert_close(found["network"].stitch.dense()["weight"], true["weight"], rtol=1e-3, atol=1e-4)


def epoch_rows(setting: Setting, network: str) -> list[dict]:
    first = []

    def cached() -> float:
        found = setting.ours(*CASES["cached"])
        first.append(found["before"])
        return found["epochs"]

    times = in_turns(
        raw=lambda: setting.plain("none")["epochs"],
        cached=cached,
        uncached=lambda: setting.ours(*CASES["uncached"])["epochs"],
        standard=lambda: setting.plain("standard")["epochs"],
        augmented=lambda: setting.ours(*CASES["augmented"])["epochs"],
    )
    work = multiply_adds(setting.nets[0], setting.layer, BATCH)
    rows = []
    for case, (augment, _) in CASES.items():
        slow = times["raw" if augment == "none" else "standard"]
        faster, bound = ratios(slow, times[case]), work["plain"] / work["cached" if case == "cached" else "uncached"]
        row = {
            "network": network, "layer": setting.layer, "ours is": case, "plain s": spread(slow, 3),
            "ours s": spread(times[case], 3), "ratio": spread(faster), "bound": round(bound, 2),
            "ratio/bound": round(float(np.median(faster)) / bound, 2), "first pass s": "", "30 epochs": "",
        }  # fmt: skip
        if case == "cached":
            whole = [30 * s / (f + 30 * o) for s, f, o in zip(slow, first[1:], times[case], strict=True)]
            row |= {"first pass s": spread(first[1:], 3), "30 epochs": spread(whole)}
        rows.append(row)
    return rows


def test_augmented_images_are_torchvisions():
    loader = Setting([build("tiny10"), build("tiny10")], solve.synthetic(256), "bn1").loader("standard")
    draws = Draws.of_epoch(("flip", "crop"), 256, (32, 32), loader.seed, 0, "cpu")
    batch = next(iter(loader))
    for image, position in zip(batch.images, batch.index, strict=True):
        true = by_one.to_pil_image(loader.split.images[position])
        true = by_one.hflip(true) if draws.flip[position] else true
        true = by_one.crop(by_one.pad(true, 4), *draws.crop[position].tolist(), 32, 32)
        torch.testing.assert_close(image, by_one.normalize(by_one.to_tensor(true), MEAN, STD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", solve.LAYERS)
def test_least_squares_at_all_layers(network, tmp_path):
    runs = {way: [alone(way, network, 2000, tmp_path)] for way in ("ours", "plain")}
    for way in [*runs] * (SOLVES[network] - 1):
        runs[way].append(alone(way, network, 2000, tmp_path))
    same_maps(network, *(tmp_path / f"{way}.npz" for way in runs))
    measures = ("seconds", "mib")
    rows = [{"way": way, "images": 2000} | {m: spread([run[m] for run in found], 1) for m in measures}
            for way, found in runs.items()]  # fmt: skip
    for images in (1000, 4000):
        found = alone("ours", network, images, tmp_path)
        rows.append({"way": "ours", "images": images} | {m: f"{found[m]:.1f}" for m in measures})
    time, memory = (spread(ratios(*([run[m] for run in runs[way]] for way in ("plain", "ours")))) for m in measures)
    title = f"Least squares at {len(solve.LAYERS[network])} layers of {network}; mib: peak memory above the start.\n"
    table(f"{title}plain / ours: {time} in time, {memory} in memory.", rows)


def alone(way: str, network: str, images: int, folder: Path) -> dict[str, float]:
    """`solve.main` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.solve", way, network, str(images), str(folder / f"{way}.npz")]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same_maps(network: str, ours: Path, true: Path) -> None:
    """The two maps of every layer send activations to the same values, to float32's precision, which the activations
    have; weights alone are no test where the covariance is nearly singular, as at bn8 of an untrained Tiny10."""
    found, expected = np.load(ours), np.load(true)
    net = build(network).eval()
    images = solve.synthetic(16).images / 255 / 0.2 - 2.5
    for layer in solve.LAYERS[network]:
        with torch.no_grad():
            x = front(net, layer)(images).movedim(1, -1).flatten(0, -2).double().numpy()
        a, b = (x @ maps[f"{layer} w"].T + maps[f"{layer} b"] for maps in (found, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * b.std())


def test_time_to_the_plain_accuracy(shared):
    folder = os.environ.get("REPTRANS_CIFAR10_JPEG")
    if not folder:
        pytest.skip("needs the images: set REPTRANS_CIFAR10_JPEG to the folder with train and test")
    paths = [shared(f"data/networks/drfrankenstein/Tiny10-in{i}-gn{i}/110000.pt") for i in (0, 1)]
    data = load_dataset(f"folder:{Path(folder).resolve()}", limit=1000, normalise="cifar10")
    settings = [Setting([load_network(build("tiny10"), p) for p in paths], data.train, x) for x in LAYERS["tiny10"]]
    test = data.loader("test", 500)
    solving, starts = solved(settings)
    rows = [accuracy_row(setting, test, solving, starts[setting.layer]) for setting in settings]
    title = "Tiny10 in0 -> in1 on 10,000 images of CIFAR-10 (JPEG): seconds until the accuracy on test images that\n"
    title += "30 epochs of the plain way from a random start, augmented, end with.\n"
    title += "target: computed the fast way, which gives the same numbers; plain s: one epoch measured, x30;\n"
    title += "ours s: moments of all layers + first pass + epochs."
    table(title, rows)


def solved(settings: list[Setting]) -> tuple[float, dict[str, dict]]:
    """Seconds, and the least-squares map of every layer, from one pass over the images as they are."""
    begin, pairs = process_time(), [(s.layer, s.layer) for s in settings]
    shapes, nets = {s.layer: s.shape for s in settings}, settings[0].nets
    moments = collect_moments(*nets, pairs, settings[0].loader("none").plain())
    maps = {layer: direct_matching(moments[layer, layer], "least squares") for layer in shapes}
    return process_time() - begin, {name: {"weight": m.weight, "bias": m.bias} for name, m in maps.items()}


def plain_accuracy(setting: Setting, test: Loader) -> float:
    return evaluate(setting.ours("standard", 0.0, epochs=30)["network"], test)["accuracy"]


def accuracy_row(setting: Setting, test: Loader, solving: float, start: dict) -> dict:
    """The fewest epochs, of 0, 1, 2, 4, 8, that reach the target; each number is a run with its own schedule."""
    times = [setting.plain("standard")["epochs"] for _ in range(3)]
    target = plain_accuracy(setting, test)
    row = {"layer": setting.layer, "target": target, "plain s": 30 * float(np.median(times))}
    for epochs in (0, 1, 2, 4, 8):
        found = setting.ours("none", 4.0, epochs, start) if epochs else setting.untrained(start)
        reached = evaluate(found["network"], test)["accuracy"]
        if reached >= target:
            break
    spent = solving + found["before"] + found["epochs"]
    return row | {
        "reached": reached, "epochs": epochs, "moments s": solving, "first pass s": found["before"],
        "training s": found["epochs"], "ours s": spent, "ratio": row["plain s"] / spent,
    }  # fmt: skip
