"""The small command line: what can be named in a parameter.

python -m reptrans layers resnet20_w3     the layers of a network, and where it can be cut
python -m reptrans networks               the networks that can be named
python -m reptrans datasets               the data sets that can be named
"""

import argparse
import sys

import torch

from reptrans.data import dataset_names
from reptrans.errors import ReptransError
from reptrans.layers import layer_table
from reptrans.models import build, model_names
from reptrans.notebook import as_text


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 with a message on stderr for a wrong name or value."""
    given = _parser().parse_args(arguments)
    try:
        print(given.run(given))
    except ReptransError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reptrans", description="What can be named in a parameter.")
    commands = parser.add_subparsers(required=True, metavar="command")
    layers = commands.add_parser("layers", help="the layers of a network, and where it can be cut")
    layers.add_argument("network", help="a name, torchvision/NAME or module:function")
    layers.add_argument("--image-size", type=int, help="side of the images (default: 32; torchvision's networks: 224)")
    layers.add_argument("--channels", type=int, default=3, help="channels of the images (default: 3)")
    layers.add_argument("--classes", type=int, default=10, help="classes told apart (default: 10)")
    layers.set_defaults(run=_layers)
    commands.add_parser("networks", help="the networks that can be named").set_defaults(
        run=lambda given: "\n".join([*model_names(), "torchvision/NAME", "module:function", "path/file.py:function"])
    )
    commands.add_parser("datasets", help="the data sets that can be named").set_defaults(
        run=lambda given: "\n".join([*dataset_names(), "folder:PATH"])
    )
    return parser


def _layers(given: argparse.Namespace) -> str:
    side = given.image_size or (224 if given.network.startswith("torchvision/") else 32)
    net = build(given.network, num_classes=given.classes, in_channels=given.channels, image_size=side)
    # Two images, since some networks refuse a batch of one.
    table = layer_table(net, torch.zeros(2, given.channels, side, side))
    table["cut"] = table["cut"].map({True: "yes", False: ""})
    count = sum(p.numel() for p in net.parameters())
    return f"{as_text(table, digits=3)}\n\n{given.network}: {count:,} parameters; a cut is possible where cut says yes"


if __name__ == "__main__":
    sys.exit(main())
