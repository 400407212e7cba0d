"""What several families of networks have in common: their end, the named sum of a block, the initialisation."""

from collections import OrderedDict

from torch import Tensor, nn

Size = tuple[int, int]  # height and width of an image in pixels


class Add(nn.Module):
    """The sum of two tensors, as a layer with a name."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


def convolution(
    name: object, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, padding: int = 0, *, batch_norm: bool = True
) -> OrderedDict[str, nn.Module]:
    """A convolution with a bias, batch norm if wanted, and ReLU: conv{name}, bn{name}, relu{name}."""
    layers = OrderedDict({f"conv{name}": nn.Conv2d(c_in, c_out, kernel, stride, padding)})
    if batch_norm:
        layers[f"bn{name}"] = nn.BatchNorm2d(c_out)
    return layers | {f"relu{name}": nn.ReLU()}


def head(channels: int, num_classes: int) -> OrderedDict[str, nn.Module]:
    """The end of most convolutional networks: mean over space, then one linear layer."""
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))


def he_fan_out(net: nn.Module) -> nn.Module:
    """Draw every convolution's weight from N(0, 2 / (kernel area x output channels)) and return `net`.

    Batch norms already start at weight 1 and bias 0; linear layers and convolution biases keep PyTorch's default.
    Source: He et al., 2015, eq. 14, in the backward form.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
