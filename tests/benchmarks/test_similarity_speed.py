"""Similarity against storing everything, and against pytorch-cka where it can be imported: seconds, and digits lost.

Results are compared, times only printed: they depend on the machine. Ratios are other / ours, above 1 = ours is faster.
"""

from itertools import product
from statistics import median

import pandas as pd
import pytest
import torch
from benchmarks.measure import in_turns, seconds, spread
from torch.utils.data import DataLoader, TensorDataset

from reptrans.layers import record
from reptrans.models import build
from reptrans.similarity import Moments, compare, debiased_cka, fold, linear_cka

IMAGES, BATCH = 1000, 100
NAMES = ["conv1", *(f"layer{s}.{b}.conv{c}" for s, b, c in product((1, 2, 3), (0, 1, 2), (1, 2))), "fc"]


@pytest.fixture(scope="module")
def nets() -> list[torch.nn.Module]:
    return [build("resnet20_w1", seed=seed).eval() for seed in (0, 1)]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def stored(nets: list[torch.nn.Module], images: torch.Tensor, how: str) -> list[list[torch.Tensor]]:
    """All activations of both networks, by hooks."""
    sides = []
    for net in nets:
        with record(net, NAMES, clone=True) as activations:
            parts = [net(x) is not None and {name: fold(activations[name], how) for name in NAMES}
                     for x in images.split(BATCH)]  # fmt: skip
        sides.append([torch.cat([part[name] for part in parts]) for name in NAMES])
    return sides


def pairwise(nets: list[torch.nn.Module], images: torch.Tensor, how: str) -> pd.DataFrame:
    a, b = stored(nets, images, how)
    return pd.DataFrame([[debiased_cka(x, y).item() for y in b] for x in a], NAMES, NAMES)


def by_pytorch_cka(nets: list[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    package = pytest.importorskip("cka")
    loader = DataLoader(TensorDataset(images), batch_size=BATCH)
    (found,) = package.compute_cka(*nets, loader, layers=NAMES, device=torch.device("cpu"), progress=False)
    return found.double()


@torch.no_grad()
def forwards(nets: list[torch.nn.Module], images: torch.Tensor) -> None:
    for net, x in product(nets, images.split(BATCH)):
        net(x)


def test_heat_map(nets, images):
    def ours(measure: str, how: str) -> pd.DataFrame:
        return compare(*nets, images.split(BATCH), NAMES, measure=measure, fold=how)

    ways = {
        "forward": lambda: forwards(nets, images),
        "pool": lambda: ours("debiased_cka", "pool"),
        "pool_null": lambda: compare(*nets, images.split(BATCH), NAMES, null=200),
        "flatten": lambda: ours("minibatch_cka", "flatten"),
        "stored_pool": lambda: pairwise(nets, images, "pool"),
    }
    try:
        by_pytorch_cka(nets, images)
        ways["pytorch_cka"] = lambda: by_pytorch_cka(nets, images)
    except pytest.skip.Exception:
        print("\npytorch-cka is not installed: left out")
    times = in_turns(**{name: lambda way=way: seconds(way) for name, way in ways.items()})
    bare = median(times["forward"])
    rows = [
        {"way": name, "s": spread(t), "beyond the forwards": f"{median(t) - bare:.2f}"} for name, t in times.items()
    ]
    print(f"\n\nHeat map, 20 x 20 layers, {IMAGES} images\n{pd.DataFrame(rows).to_string(index=False)}")
    print(f"with 200 permutations: {median(times['pool_null']) / median(times['pool']):.1f} times the map without")
    exact = pairwise(nets, images, "pool")
    assert (ours("debiased_cka", "pool") - exact).abs().max().max() < 1e-4


def test_flattened_stored_pair_by_pair(nets, images):
    """Some rows of the map only, and all of it estimated: a pair costs its two Grams of 1,000 x 1,000."""
    a, b = stored(nets, images, "flatten")
    rows = (0, 10, 19)
    taken = seconds(lambda: [debiased_cka(a[i], y) for i in rows for y in b])
    print(f"\n\nstored, flattened, pair by pair: {taken / len(rows) * len(NAMES):.0f} s, from {len(rows)} of 20 rows")


def test_float32_digits(nets, images):
    """What float32 activations and their float32 products lose against float64 throughout."""
    some = images[:400]
    found = compare(*nets, some.split(BATCH), NAMES, measure="minibatch_cka", fold="flatten")
    doubles = [build("resnet20_w1", seed=seed).eval().double() for seed in (0, 1)]
    true = compare(*doubles, some.double().split(BATCH), NAMES, measure="minibatch_cka", fold="flatten")
    error = (found - true).abs().max().max()
    print(f"\n\nlargest float32 error of the flattened map: {error:.1e}")
    try:
        lost = by_pytorch_cka(nets, some) - torch.tensor(true.values).clamp(0, 1)  # it clamps
        print(f"of pytorch-cka: {lost.abs().max():.1e}")
    except pytest.skip.Exception:
        pass
    assert error < 1e-5


def test_streamed_debiased_cka():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 1024, generator=g)
    y = x @ torch.randn(1024, 1024, generator=g) / 32 + torch.randn(10_000, 1024, generator=g)
    values = {}

    def streamed() -> None:
        m = Moments(1024, 1024, debiased=True)
        for a, b in zip(x.split(1000), y.split(1000), strict=True):
            m.update(a, b)
        values["streamed"] = m.value("debiased_cka").item()

    def product32() -> None:
        values["float32"] = debiased_cka(x, y).item()

    def product64() -> None:
        values["float64"] = debiased_cka(x.double(), y.double()).item()

    times = in_turns(**{w.__name__: lambda w=w: seconds(w) for w in (streamed, product32, product64)})
    print("\n\nDebiased linear CKA, n = 10,000, d = 1,024")
    for name, t in times.items():
        print(f"{name}: {spread(t)} s")
    print({name: f"{abs(v - values['float64']):.1e}" for name, v in values.items()}, "from float64")
    assert values["streamed"] == pytest.approx(values["float64"], rel=1e-10)
    assert values["float32"] == pytest.approx(values["float64"], rel=1e-5)


def test_float32_input_with_a_mean():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5_000, 64, generator=g) + 30
    y = x @ torch.randn(64, 64, generator=g) / 8
    for function in (linear_cka, debiased_cka):
        error = abs(function(x, y).item() - function(x.double(), y.double()).item())
        print(f"\nfloat32 {function.__name__}, mean 30 deviations: error {error:.1e}")
        assert error < 1e-5
