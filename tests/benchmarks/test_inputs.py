"""A step of inverting a layer of ResNet-50 at 224 pixels against the published scripts' way, in processor seconds.

Steps are compared, times only printed: they depend on the machine. Ratios are other / ours: above 1, ours is faster.
"""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from benchmarks.measure import in_turns, ratios, seconds, spread
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from reptrans.inputs import Objective, Pixels, as_built, fast_front, match, noise, optimise_input
from reptrans.inputs.recovery import gaussian_blur
from reptrans.layers import front, record
from reptrans.models import build

LAYERS = ["conv1", "layer1", "layer2", "layer3", "layer4"]
FEW, MANY = 1, 5  # the difference is the steps alone, without what a run costs before and after them


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return as_built(build("torchvision/resnet50", num_classes=1000, seed=0))


def by_script(part: nn.Module, target: Tensor, image: Tensor, steps: int) -> Tensor:
    """As Badger's scripts do it: cut by hand, gradients for the weights too, which nobody reads."""
    for _ in range(steps):
        image = image.detach().requires_grad_()
        loss = (target - part(image)).abs().sum()
        loss.backward()
        image = image - 1e-4 * image.grad
    return image.detach()


def whole_with_hook(net: nn.Module, layer: str, target: Tensor, image: Tensor, steps: int) -> Tensor:
    """The whole network frozen, the layer recorded."""
    for _ in range(steps):
        image = image.detach().requires_grad_()
        with record(net, layer, clone=True, detach=False) as seen:
            net(image)
        (gradient,) = torch.autograd.grad((target - seen[layer]).abs().sum(), image)
        image = image - 1e-4 * gradient
    return image.detach()


def a_step(way: Callable[[int], Tensor]) -> float:
    few, many = (seconds(lambda steps=steps: way(steps)) for steps in (FEW, MANY))
    return (many - few) / (MANY - FEW)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_step(net, layer):
    a = noise(1, (3, 224, 224), mean=0.5, std=0.2)
    start = noise(1, (3, 224, 224))
    trainable = front(as_built(net).requires_grad_(True), layer)
    frozen = as_built(net).requires_grad_(False)
    views = {"float32": fast_front(net, layer), "bfloat16": fast_front(net, layer, precision="bfloat16")}
    with torch.no_grad():
        target = views["float32"](a).contiguous()
    settings = {"prior": (), "points": 0, "optimiser": torch.optim.SGD, "lr": lambda _: 1e-4}

    def ours(precision: str, steps: int) -> Tensor:
        objective = match(views[precision], target, scale=1.0)
        return optimise_input(objective, Pixels(start), steps=steps, **settings).images

    ways = {
        "script": lambda steps: by_script(trainable, target, start, steps),
        "hook": lambda steps: whole_with_hook(frozen, layer, target, start, steps),
        "float32": lambda steps: ours("float32", steps),
        "bfloat16": lambda steps: ours("bfloat16", steps),
    }
    times = in_turns(**{name: lambda way=way: a_step(way) for name, way in ways.items()})
    table = pd.DataFrame(
        [{"way": name, "s": spread(t, 3), "/ ours float32": spread(ratios(t, times["float32"])),
          "/ ours bfloat16": spread(ratios(t, times["bfloat16"]))} for name, t in times.items()]
    )  # fmt: skip
    print(f"\n\nResNet-50, 224 pixels, {layer}, one image\n{table.to_string(index=False)}")
    moved = {name: way(1) - start for name, way in ways.items()}
    apart = {name: ((moved[name] - moved["script"]).norm() / moved["script"].norm()).item() for name in ways}
    print({name: f"{value:.1e}" for name, value in apart.items()}, "from the script's step")
    assert apart["hook"] < 1e-3 and apart["float32"] < 0.02


STEPS = 100
STEP_SIZES = torch.logspace(-8, 0, 17)  # of plain descent, two for each decade


def by_descent(objective: Objective, start: Tensor) -> Tensor:
    """Plain descent with every one of STEP_SIZES side by side; the relative error of the best at its end."""
    images = start.expand(len(STEP_SIZES), -1, -1, -1)
    for _ in range(STEPS):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(images).sum(), images)
        images = images.detach() - STEP_SIZES.view(-1, 1, 1, 1) * gradient
    with torch.no_grad():
        return objective.errors(images)


@pytest.mark.parametrize("layer", LAYERS)
def test_steps_to_the_same_error(net, layer):
    """Steps of ours, each count a descent of its own, until the error that the best plain descent ends with."""
    view, rows = fast_front(net, layer), []
    for seed in range(3):
        a, start = noise(1, (3, 64, 64), seed=9 + seed, mean=0.5, std=0.2), noise(1, (3, 64, 64), seed=seed)
        with torch.no_grad():
            target = view(a)
        errors = by_descent(match(view, target, scale=1.0), start).nan_to_num(nan=float("inf"))
        best = errors.argmin().item()
        for steps in (2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100):
            found = optimise_input(match(view, target), Pixels(start.clone()), steps=steps, prior=(), points=0)
            if (reached := found.rows["relative_error"].item()) <= errors[best]:
                break
        rows.append({"step size": STEP_SIZES[best].item(), "plain error": errors[best].item(), "our error": reached,
                     "our steps": steps})  # fmt: skip
    table = pd.DataFrame(rows)
    print(
        f"\n\nResNet-50, 64 pixels, {layer}: {STEPS} plain steps, and ours to the same\n{table.to_string(index=False)}"
    )
    assert table["plain error"].lt(1).all() and table["step size"].between(*STEP_SIZES[[1, -2]].tolist()).all()


def test_the_trace():
    """50 steps whose trace has 20 points against none: a point takes the loss that its step computes anyway."""
    view = fast_front(as_built(build("resnet20_w1", num_classes=10, seed=0)), "layer2")
    a, start = noise(1, (3, 32, 32), seed=1, mean=0.5, std=0.2), noise(1, (3, 32, 32))
    with torch.no_grad():
        target = view(a)

    def descent(points: int) -> float:
        return seconds(lambda: optimise_input(match(view, target), Pixels(start.clone()), steps=50, points=points))

    times = in_turns(**{str(points): lambda points=points: descent(points) for points in (20, 0)})
    print(f"\n\nResNet-20, 32 pixels, layer2, 50 steps: a trace of 20 points / none {spread(ratios(*times.values()))}")


def test_a_gaussian_blur():
    """One side after the other, against torchvision's, which goes over both at once."""
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    ways = {
        "both": lambda: tv.gaussian_blur(images, [63, 63], [7.0, 7.0]),
        "ours": lambda: gaussian_blur(images, 7.0, 31),
    }
    torch.testing.assert_close(ways["ours"](), ways["both"]())
    times = in_turns(**{name: lambda way=way: seconds(way) for name, way in ways.items()})
    print(f"\n\nGaussian blur, 32 pixels, reach 31: both at once / ours {spread(ratios(*times.values()))}")
