"""One way of least squares at many layers, in a process of its own: python -m benchmarks.solve WAY NETWORK IMAGES FILE.

Prints seconds and MiB of memory above what the process held before; the maps go into FILE.
"""

import contextlib
import json
import sys

import numpy as np
import torch
from benchmarks.measure import seconds
from benchmarks.plain import pseudo_inverse
from torch.nn import functional as F

from reptrans.data import Loader, Split
from reptrans.models import build
from reptrans.stitching import direct_matching
from reptrans.stitching.frozen import collect_moments

LAYERS = {
    "tiny10": [f"bn{k}" for k in range(1, 9)],
    "resnet20_w1": [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)],
}


def plain(nets: list[torch.nn.Module], loader: Loader, layers: list[str]) -> dict[str, tuple]:
    """As the code of Csiszárik et al. does it: one layer after another, all activations kept."""
    return {layer: pseudo_inverse(*nets, layer, lambda: (batch.images for batch in loader)) for layer in layers}


def ours(nets: list[torch.nn.Module], loader: Loader, layers: list[str]) -> dict[str, tuple]:
    moments = collect_moments(*nets, [(layer, layer) for layer in layers], loader)
    maps = {layer: direct_matching(moments[layer, layer], "least squares") for layer in layers}
    return {layer: (found.weight.numpy(), found.bias.numpy()) for layer, found in maps.items()}


def synthetic(images: int) -> Split:
    """Seeded smooth noise of CIFAR-10's shape: where pixels are independent, deep layers hardly tell images apart."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 5, 5, generator=g)
    smooth = F.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    return Split(smooth.mul(255).to(torch.uint8), torch.randint(10, (images,), generator=g))


def held(what: str) -> float:
    """MiB of memory now (VmRSS) or at most so far (VmHWM) of this process; nan where there is no /proc."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024
    except FileNotFoundError:
        return float("nan")


def forget_peak() -> None:
    """VmHWM starts anew, so that making the images does not count."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main(way: str, network: str, images: str, file: str) -> None:
    torch.set_num_threads(1)
    nets = [build(network, seed=seed).eval().requires_grad_(False) for seed in (0, 1)]
    batch = {"ours": 128, "plain": 1000}[way]
    loader = Loader(synthetic(int(images)), batch, mean=(0.5,) * 3, std=(0.2,) * 3)
    solve, layers, found = {"ours": ours, "plain": plain}[way], LAYERS[network], {}
    # What a first pass allocates for good is no part of the growth.
    solve(nets, loader.over(synthetic(4)), layers)
    before = held("VmRSS")
    forget_peak()
    time = seconds(lambda: found.update(solve(nets, loader, layers)))
    np.savez(file, **{f"{layer} {part}": pair[i] for layer, pair in found.items() for i, part in enumerate("wb")})
    print(json.dumps({"seconds": time, "mib": held("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
