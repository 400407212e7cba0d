"""One outer step of L2T-ww against the plain scheme: ResNet-32 to VGG-9, 15 pairs, T = 2, 32x32, float32, one thread.

Times, of the processor, are only printed: they depend on the machine. Ratios are plain / ours: above 1, ours is
faster. That both do the same, to 1e-9 in float64, is a test of its own (tests/l2t/test_transfer.py).
"""

from itertools import product
from statistics import median

import pandas as pd
import pytest
import torch
from benchmarks.l2t_plain import PlainL2T
from benchmarks.measure import in_turns, ratios, seconds, spread

from reptrans.data import Batch
from reptrans.l2t import Matching, Meta, Transfer
from reptrans.models import build

SOURCES = ("layer1.4", "layer2.4", "layer3.4")
TARGETS = ("relu1_1", "relu2_1", "relu3_2", "relu4_2", "relu5_2")
PAIRS = list(product(SOURCES, TARGETS))
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}


@pytest.mark.parametrize("size", [32, 128])
def test_outer_step(size):
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, 3, 32, 32, generator=g), torch.randint(0, 10, (size,), generator=g)
    source = build("resnet32_l2t", num_classes=200, seed=3)
    plain = PlainL2T(build("vgg9_bn", seed=0), source, PAIRS, images[:2], **SGD)
    target, one = build("vgg9_bn", seed=0), Batch(images, labels, torch.arange(size))
    matching = Matching(target, source, PAIRS, images[:2], resize="bilinear")
    transfer = Transfer(target, source, [matching], Meta(), example=images[:2])
    optimiser = torch.optim.SGD(transfer.trained(), **SGD)

    def real_step() -> tuple | None:
        optimiser.zero_grad()
        terms, _, due = transfer(one)
        sum(terms.values()).backward(inputs=transfer.trained())
        optimiser.step()
        return due

    def outer_step() -> None:
        transfer.after_step(one, optimiser, real_step())

    ways = {
        "real step": real_step, "plain real step": lambda: plain.plain_step(images, labels),
        "outer step": outer_step, "plain outer step": lambda: plain.step(images, labels),
    }  # fmt: skip
    times = in_turns(**{name: lambda way=way: seconds(way) for name, way in ways.items()})
    rows = [{"way": name, "s": spread(t)} for name, t in times.items()]
    print(f"\n\nL2T-ww, batch {size}\n{pd.DataFrame(rows).to_string(index=False)}")
    for name in ("real step", "outer step"):
        print(f"{name}, plain / ours: {spread(ratios(times[f'plain {name}'], times[name]))}")
    print(f"outer / real step, ours: {median(times['outer step']) / median(times['real step']):.1f}")
    assert all(p.isfinite().all() for p in transfer.parameters())
