"""Compare a network of your own, layer by layer, with one of torchvision: where are they similar, beyond chance?"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from reptrans import build, compare, load_dataset
from reptrans.figures import heatmap

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def my_network() -> nn.Module:
    """Any module will do; its layers are named as in named_modules()."""
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def main(images: int = 1000, orders: int = 200) -> None:
    torch.manual_seed(0)
    dataset = load_dataset("shapes")
    theirs = build("torchvision/resnet18", **dataset.form)  # random weights; weights="default" downloads trained ones
    batch = next(iter(dataset.loader("test", images))).images
    found = compare(my_network(), theirs, batch.split(100), ["1", "4"], LAYERS, null=orders)
    print(found.rows()[["front_layer", "end_layer", "value", "effect", "p_searched"]].round(3).to_string(index=False))
    heatmap(found.effect, "debiased CKA beyond chance")
    plt.savefig("compare.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
