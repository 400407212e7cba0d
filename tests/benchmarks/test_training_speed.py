"""Steps of training, distillation and stitching against the same arithmetic in bare loops, channels last.

Results are compared; times, of the processor and with one thread, are only printed: they depend on the machine. A
training's steps take what a long one takes more than a short one; the rest comes before the first step. Ratios are
ours / bare: 1 means that what surrounds the arithmetic costs nothing.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from benchmarks.measure import in_turns, ratios, seconds, spread
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.data import Dataset, Loader, Split
from reptrans.distillation import distill
from reptrans.layers import end, front
from reptrans.matching import Teacher
from reptrans.models import build
from reptrans.stitching import Stitch, StitchedNetwork, train_stitch
from reptrans.training import Plan, train_classifier

BATCH, IMAGES = 128, 384
SHORT, LONG = 2, 5  # epochs
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Setting:
    """Networks for random images of CIFAR's size, and what both ways share."""

    def __init__(self, epochs: int):
        self.plan = Plan(epochs=epochs, lr=0.01, schedule="constant")
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw)
        self.split = Split(images, torch.randint(0, 10, (IMAGES,), generator=draw))
        self.loader = Loader(self.split, BATCH, mean=MEAN, std=STD, shuffle=True, drop_last=True)
        self.net, self.other = (build("resnet20_w1", num_classes=10, image_size=(32, 32), seed=k) for k in (0, 1))

    def bare(self, net: nn.Module, objective) -> float:
        """The steps of `plan` on what requires a gradient; the mean loss of the last epoch."""
        moved = [p for p in net.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(moved, lr=0.01, momentum=0.9, nesterov=True, weight_decay=self.plan.weight_decay)
        loader = self.loader.over(self.split)
        for epoch in range(self.plan.epochs):
            loader.epoch, total = epoch, 0.0
            for images, labels, index in loader:
                loss, told = objective(images.contiguous(memory_format=torch.channels_last), labels, index)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += told.detach().item() / len(loader)
        return total


def last(net: nn.Module) -> nn.Module:
    return deepcopy(net).to(memory_format=torch.channels_last)


class Plain(Setting):
    def ours(self) -> float:
        empty = self.split.select(torch.arange(2))  # what is looked at after each epoch costs nothing here
        dataset = Dataset("random", self.split, empty, tuple("0123456789"), MEAN, STD)
        rows = train_classifier(deepcopy(self.net), dataset, self.plan, batch_size=BATCH)
        return rows["train_cross_entropy"].iloc[-1]

    def plain(self) -> float:
        net = last(self.net).train()

        def objective(images: Tensor, labels: Tensor, index: Tensor):
            loss = F.cross_entropy(net(images), labels)
            return loss, loss

        return self.bare(net, objective)


class Distillation(Setting):
    def ours(self) -> float:
        _, rows = distill(deepcopy(self.net), Teacher(self.other.eval(), self.loader), "kd", self.loader, self.plan)
        return rows["cross_entropy"].iloc[-1]

    def plain(self) -> float:
        net, teacher = last(self.net).train(), last(self.other).eval()
        with torch.no_grad():
            answers = torch.cat([teacher(batch.images) for batch in self.loader.plain()])

        def objective(images: Tensor, labels: Tensor, index: Tensor):
            logits = net(images)
            p, q = F.log_softmax(answers[index] / 4, 1), F.log_softmax(logits / 4, 1)
            task = F.cross_entropy(logits, labels)
            return 0.1 * task + 0.9 * 16 * (p.exp() * (p - q)).sum(1).mean(), 0.1 * task

        return self.bare(net, objective)


class Stitching(Setting):
    layer, shape = "layer2.1", (32, 16, 16)

    def parts(self, place) -> tuple[nn.Module, Stitch, nn.Module]:
        stitch = Stitch(self.shape, self.shape).set(torch.eye(32), torch.zeros(32))
        head, tail = front(place(self.net).eval(), self.layer), end(place(self.other).eval(), self.layer)
        return head, stitch, tail

    def ours(self) -> float:
        rows = train_stitch(StitchedNetwork(*self.parts(deepcopy)), self.loader, self.plan)
        return rows["task"].iloc[-1]

    def plain(self) -> float:
        head, stitch, tail = self.parts(last)
        tail.requires_grad_(False)
        with torch.no_grad():
            table = torch.cat([head(batch.images) for batch in self.loader.plain()])
            table = table.contiguous(memory_format=torch.channels_last)

        def objective(images: Tensor, labels: Tensor, index: Tensor):
            loss = F.cross_entropy(tail(stitch(table[index])), labels)
            return loss, loss

        return self.bare(stitch, objective)


@pytest.mark.parametrize("kind", [Plain, Distillation, Stitching])
def test_steps(kind):
    short, long = kind(SHORT), kind(LONG)
    # The same steps: only the order of summation differs.
    assert short.ours() == pytest.approx(short.plain(), rel=2e-2)
    ways = {"ours": short.ours, "bare": short.plain, "ours, long": long.ours, "bare, long": long.plain}
    times = in_turns(**{name: partial(seconds, way) for name, way in ways.items()})
    steps = (LONG - SHORT) * IMAGES // BATCH
    taken = {
        name: [(b - a) / steps for a, b in zip(times[name], times[f"{name}, long"], strict=True)]
        for name in ("ours", "bare")
    }
    before = [a - SHORT * IMAGES // BATCH * b for a, b in zip(times["ours"], taken["ours"], strict=True)]
    print(f"\n{kind.__name__}, ResNet-20, images of 32x32, batch {BATCH}: a bare step {spread(taken['bare'], 3)} s, "
          f"ours / bare {spread(ratios(taken['ours'], taken['bare']))}, "
          f"before the first step {spread(before)} s")  # fmt: skip
