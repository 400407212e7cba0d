"""The networks of FD-GAN in small: encoder and verification head, generator, discriminators of identity and pose."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.models import build
from reptrans.randomness import drawing
from reptrans.training import evaluating

WIDTHS = (1, 2, 3, 4)  # times the channels of the first convolution


class Encoder(nn.Module):
    """Images (n, 3, h, w) to codes (n, d): a network without its classifier. `width` is d."""

    def __init__(self, body: nn.Module, width: int):
        super().__init__()
        self.body, self.width = body, width

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


class Verification(nn.Module):
    """linear(BN((a - b)^2)) of codes a, b (n, d): logits (n, k), k = 2 or, for a discriminator, 1. Symmetric."""

    def __init__(self, width: int, logits: int = 2):
        super().__init__()
        self.bn, self.fc = nn.BatchNorm1d(width), nn.Linear(width, logits)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(self.bn((a - b).square()))


class Siamese(nn.Module):
    """Encoder and verification head: (2n, 3, h, w), first and second images, to codes (2n, d) and logits (n, k)."""

    def __init__(self, encoder: Encoder, head: Verification):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encoder(images)
        return codes, self.head(*codes.chunk(2))


class Generator(nn.Module):
    """Pose maps (n, j, h, w), codes (n, d) and noise (n, z) to images (n, 3, h, w) in [-1, 1].

    The pose goes down through strided convolutions to a pose code; it, the identity's code and the noise together go up
    again, with the pose's maps of each size beside them. Height and width must be multiples of 2^(number of widths).
    """

    def __init__(
        self, joints: int, code: int, size: tuple[int, int], *, widths=(8, 16, 32), pose_code: int = 32, noise: int = 16
    ):
        super().__init__()
        scale = 2 ** len(widths)
        if any(side % scale for side in size):
            raise ShapeMismatch(
                f"images are {size[0]} x {size[1]}; with {len(widths)} widths the generator needs multiples of {scale}."
            )
        self.noise, self.start = noise, (widths[-1], *(side // scale for side in size))
        inputs = (joints, *widths[:-1])
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in zip(inputs, widths, strict=True))
        cells = self.start[0] * self.start[1] * self.start[2]
        self.pose = nn.Linear(cells, pose_code)
        self.mix = nn.Sequential(nn.Linear(pose_code + code + noise, cells), nn.ReLU())
        outputs = (*widths[:-1][::-1], widths[0])
        ups = zip(widths[::-1], (widths[-1], *outputs[:-1]), outputs, strict=True)
        self.up = nn.ModuleList(_block(skip + below, out, 1) for skip, below, out in ups)
        self.out = nn.Conv2d(widths[0] + joints, 3, 3, padding=1)

    def forward(self, maps: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
        skips, x = [], maps
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.mix(torch.cat([self.pose(x.flatten(1)), codes, noise], 1)).unflatten(1, self.start)
        for up, skip in zip(self.up, skips[::-1], strict=True):
            x = interpolate(up(torch.cat([x, skip], 1)), scale_factor=2)
        return self.out(torch.cat([x, maps], 1)).tanh()


class PatchDiscriminator(nn.Module):
    """Does this image show this pose? Logits (n, 1, h / 4, w / 4) of its patches."""

    def __init__(self, joints: int, channels: int = 16):
        super().__init__()
        first, second = channels, 2 * channels
        self.body = nn.Sequential(
            nn.Conv2d(joints + 3, first, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(first, second, 4, 2, 1, bias=False), nn.BatchNorm2d(second), nn.LeakyReLU(0.2),
            nn.Conv2d(second, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        return self.body(torch.cat([maps, images], 1))


class IdentityDiscriminator(nn.Module):
    """Are these two the same person, the second one real? A Siamese network with one logit (n, 1), born of a baseline.

    Its head begins as that for "same" of the baseline's two, as in the authors' code.
    """

    def __init__(self, baseline: Siamese):
        super().__init__()
        self.siamese = copy.deepcopy(baseline)
        self.siamese.head.fc = nn.utils.skip_init(nn.Linear, baseline.encoder.width, 1).to(baseline.head.fc.weight)
        with torch.no_grad():
            self.siamese.head.fc.weight.copy_(baseline.head.fc.weight[1:])
            self.siamese.head.fc.bias.copy_(baseline.head.fc.bias[1:])

    def forward(self, sources: Tensor, images: Tensor) -> Tensor:
        return self.siamese(torch.cat([sources, images]))[1]


def encoder(model: str, size: tuple[int, int], seed: int = 0, channels: int = 16) -> Encoder:
    """An untrained Encoder: "convs", four strided convolutions with batch norm and the mean over space; "convs_flat",
    three of them and all places side by side; or `build`'s.

    Of a network of `build` (any of its names) the last linear layer is taken off. Raises UnknownName; BadValue where
    the output is then not that layer's input; what else `build` raises.
    """
    if model in ("convs", "convs_flat"):
        flat = model == "convs_flat"
        widths = [channels * w for w in (WIDTHS[:-1] if flat else WIDTHS)]
        with drawing(seed):
            blocks = [_block(a, b, 2) for a, b in zip((3, *widths[:-1]), widths, strict=True)]
        places = -(-size[0] // 8) * -(-size[1] // 8) if flat else 1
        ends = [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return Encoder(nn.Sequential(*blocks, *ends), widths[-1] * places).float()
    try:
        net = build(model, num_classes=2, image_size=size, seed=seed)
    except UnknownName as error:
        raise UnknownName(f'{error} As an encoder also "convs" and "convs_flat".') from None
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    width = net.get_submodule(linear[-1]).in_features if linear else 0
    if linear:
        net.set_submodule(linear[-1], nn.Identity())
    with evaluating(net), torch.no_grad():
        found = net(torch.zeros(1, 3, *size))
    if not linear or found.shape != (1, width):
        raise BadValue(
            f"{model} does not end in a linear layer, so there is no code before it. Choose another network."
        )
    return Encoder(net, width)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    layers = OrderedDict(conv=nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), bn=nn.BatchNorm2d(outputs))
    return nn.Sequential(layers | {"relu": nn.ReLU()})
