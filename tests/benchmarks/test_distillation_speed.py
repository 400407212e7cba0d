"""Distillation against the plain way: kernels as matrix products, and epochs with the frozen teacher computed once.

Values are compared; times, of the processor and with one thread, are only printed: they depend on the machine.
Ratios are plain / ours: above 1, ours is faster.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from benchmarks.measure import in_turns, ratios, seconds, spread
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.data import Loader, Split
from reptrans.distillation.distill import Member, distill, distill_together
from reptrans.distillation.method import Pair
from reptrans.distillation.methods import METHODS
from reptrans.distillation.methods.layers import mmd
from reptrans.matching import Teacher, unit_channels
from reptrans.models import build
from reptrans.training import Plan

BATCH, IMAGES, EPOCHS = 64, 512, 3
OPTIONS = {"like": "authors"}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def broadcast(teacher: Tensor, student: Tensor) -> Tensor:
    """The polynomial MMD as most codes have it: every pair of channels multiplied out, (n, c, c, h * w)."""

    def mean(x: Tensor, y: Tensor) -> Tensor:
        return (x.unsqueeze(2) * y.unsqueeze(1)).sum(-1).pow(2).mean((1, 2))

    t, s = (F.normalize(x.flatten(2), dim=2) for x in (teacher, student))
    return (mean(t, t) + mean(s, s) - 2 * mean(t, s)).mean()


@pytest.mark.parametrize("channels", [16, 64])
def test_nst_as_matrix_products(channels):
    draw = torch.Generator().manual_seed(0)
    t, s = torch.randn(2, BATCH, channels, 8, 8, generator=draw).unbind(0)
    s.requires_grad_()
    distance = mmd("polynomial")

    def step(loss):
        (gradient,) = torch.autograd.grad(loss, s)
        return gradient

    ways = {
        "plain": lambda: step(broadcast(t, s)),
        "ours": lambda: step(distance(unit_channels(t), unit_channels(s))),
    }
    torch.testing.assert_close(ways["plain"](), ways["ours"](), rtol=1e-3, atol=1e-8)
    times = in_turns(**{name: partial(seconds, way) for name, way in ways.items()})
    print(f"\nNST polynomial, {channels} channels, 8x8, {BATCH} images, forward and backward: "
          f"plain {spread(times['plain'])} s, ours {spread(times['ours'])} s, "
          f"ratio {spread(ratios(times['plain'], times['ours']))}")  # fmt: skip


class Setting:
    """ResNet-20 teaches ResNet-8 by attention maps on random images of CIFAR's size."""

    def __init__(self, augment: str):
        draw = torch.Generator().manual_seed(0)
        split = Split(
            torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw),
            torch.randint(0, 10, (IMAGES,), generator=draw),
        )
        self.loader = Loader(split, BATCH, mean=MEAN, std=STD, shuffle=True, augment=augment)
        self.teacher = self.network("resnet20_w1").eval()

    def network(self, name: str) -> nn.Module:
        return build(name, num_classes=10, in_channels=3, image_size=(32, 32), seed=0)

    def ours(self, methods: list[str]) -> list[float]:
        """Losses of the last epoch of each method, all sharing the teacher."""
        teacher = Teacher(deepcopy(self.teacher), self.loader)
        found = []
        for name in methods:
            student = self.network("resnet8")
            pair = Pair.of(student, teacher, torch.zeros(2, 3, 32, 32))
            plan = Plan(epochs=EPOCHS, lr=0.01, schedule="constant")
            _, rows = distill(student, teacher, METHODS[name](pair, **OPTIONS), self.loader, plan)
            found.append(rows["cross_entropy"].iloc[-1])
        return found

    def plain(self, methods: list[str]) -> list[float]:
        """The plain loop: the teacher runs for every batch, every layer is recorded, each method by itself."""
        return [self._plain() for _ in methods]

    def _plain(self) -> float:
        student = self.network("resnet8").train()
        optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
        loader = self.loader.over(self.loader.split)
        for _ in range(EPOCHS):
            total = count = 0.0
            for images, labels, _ in loader:
                with torch.no_grad():
                    taught, _ = _features(self.teacher, images)
                seen, logits = _features(student, images)
                loss = task = F.cross_entropy(logits, labels)
                for t, s in zip(taught, seen, strict=True):
                    loss = loss + 1000 * (_attention(s) - _attention(t)).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total, count = total + task.item() * len(images), count + len(images)
        return total / count


def _features(net: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    found = []
    for name, layer in net.named_children():
        x = layer(x)
        if name.startswith("layer"):
            found.append(x)
    return found, x


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.pow(2).mean(1).flatten(1))


@pytest.mark.parametrize(("augment", "methods"), [("none", ["at"]), ("none", ["at"] * 3), ("standard", ["at"])])
def test_attention_transfer(augment, methods):
    setting = Setting(augment)
    ways = {"plain": setting.plain, "ours": setting.ours}
    losses = {name: way(methods) for name, way in ways.items()}
    # The same steps: only the order of summation differs.
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-3)
    times = in_turns(**{name: partial(seconds, partial(way, methods)) for name, way in ways.items()})
    print(f"\nattention transfer to {len(methods)} student(s), {EPOCHS} epochs, ResNet-20 to ResNet-8, "
          f"augment {augment}, {IMAGES} images: "
          f"plain {spread(times['plain'])} s, ours {spread(times['ours'])} s, "
          f"ratio {spread(ratios(times['plain'], times['ours']))}")  # fmt: skip


class Small:
    """The notebook's networks: softened answers of `cnn3_w16` for several `cnn3_w4`, in batches of 50."""

    def __init__(self, students: int):
        draw = torch.Generator().manual_seed(0)
        split = Split(
            torch.randint(0, 256, (800, 1, 8, 8), dtype=torch.uint8, generator=draw),
            torch.randint(0, 10, (800,), generator=draw),
        )
        self.loader = Loader(split, 50, mean=(0.3,), std=(0.4,), shuffle=True)
        self.students, self.plan = students, Plan(epochs=8, lr=0.01, schedule="constant", weight_decay=5e-4)
        self.teacher = Teacher(self.network("cnn3_w16", 0).eval(), self.loader)
        pair = Pair.of(self.network("cnn3_w4", 0), self.teacher, torch.zeros(2, 1, 8, 8))
        self.method = METHODS["kd"](pair)

    def network(self, name: str, seed: int) -> nn.Module:
        return build(name, num_classes=10, in_channels=1, image_size=(8, 8), seed=seed)

    def member(self, seed: int) -> Member:
        return Member(self.network("cnn3_w4", seed), (self.teacher,), self.loader.over(self.loader.split, seed=seed))

    def alone(self) -> list[nn.Module]:
        found = [self.member(seed) for seed in range(self.students)]
        return [distill(*m[:2], self.method, m.loader, self.plan)[0] for m in found]

    def together(self) -> list[nn.Module]:
        found = [self.member(seed) for seed in range(self.students)]
        return [student for student, _ in distill_together(found, self.method, self.plan)]

    def bare(self) -> list[nn.Module]:
        """The same arithmetic in a loop that knows nothing else; the teacher's answers are computed once."""
        with torch.no_grad():
            answers = torch.cat([self.teacher.net(batch.images) for batch in self.loader.plain()])
        return [self._bare(seed, answers) for seed in range(self.students)]

    def _bare(self, seed: int, answers: Tensor) -> nn.Module:
        student = self.network("cnn3_w4", seed).train()
        optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        loader = self.loader.over(self.loader.split, seed=seed)
        for _ in range(self.plan.epochs):
            for images, labels, index in loader:
                logits = student(images)
                p, q = F.log_softmax(answers[index] / 4, 1), F.log_softmax(logits / 4, 1)
                soft = (p.exp() * (p - q)).sum(1).mean()
                loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return student


@pytest.mark.parametrize("students", [1, 32])
def test_softened_answers_of_the_notebook(students):
    setting = Small(students)
    ways = {"bare": setting.bare, "alone": setting.alone, "together": setting.together}
    weights = {name: [s.fc.weight.detach() for s in way()] for name, way in ways.items()}
    for name in ("alone", "together"):
        torch.testing.assert_close(weights[name], weights["bare"], rtol=0.1, atol=1e-2)
    times = in_turns(**{name: partial(seconds, way) for name, way in ways.items()})
    print(f"\nkd, cnn3_w16 to {students} x cnn3_w4, batches of 50 at 8x8: bare {spread(times['bare'])} s, "
          f"one by one / bare {spread(ratios(times['alone'], times['bare']))}, "
          f"one by one / side by side {spread(ratios(times['alone'], times['together']))}")  # fmt: skip
