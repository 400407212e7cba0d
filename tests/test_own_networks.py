"""Networks made by functions in files of one's own: what they may import, and that building leaves nothing behind."""

import random
import sys

import numpy as np
import pytest
import torch

from reptrans.models import build, source_digest

BLOCKS = "from torch import nn\ndef block(c):\n    return nn.Conv2d(c, {}, 3)\n"


def write(folder, **files):
    """Files by name, in which two underlines stand for a folder, and three for a package's `__init__`."""
    for name, text in files.items():
        path = folder / (f"{name[:-3]}/__init__.py" if name.endswith("___") else f"{name.replace('__', '/')}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{folder / 'net.py'}:make"


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ({"blocks": BLOCKS.format(4)}, "from blocks import block\n{}block(in_channels)"),
        ({"blocks": BLOCKS.format(4)}, "{}__import__('blocks').block(in_channels)"),
        ({"pack__inner": BLOCKS.format(4)}, "from pack.inner import block\n{}block(in_channels)"),
        ({"pack___": "", "pack__inner": BLOCKS.format(4)}, "import pack.inner\n{}pack.inner.block(in_channels)"),
        ({"types": BLOCKS.format(9), "blocks": BLOCKS.format(4)}, "import blocks, types\n{}blocks.block(in_channels)"),
    ],
)
def test_a_file_imports_its_neighbours_and_leaves_no_trace(files, used, tmp_path):
    known = dict(sys.modules), list(sys.path), random.getstate(), np.random.get_state()[1].tolist()
    name = write(tmp_path, net=used.format("def make(in_channels):\n    return "), **files)
    assert build(name).out_channels == 4
    left = {key for key in sys.modules if key not in known[0] and not key.startswith("reptrans_user_")}
    assert not {key for key in left if key.partition(".")[0] in ("blocks", "pack", "net")}
    assert all(sys.modules[key] is module for key, module in known[0].items() if not key.startswith("reptrans_user_"))
    assert (sys.path, random.getstate(), np.random.get_state()[1].tolist()) == known[1:]


def test_neighbours_of_one_name_in_two_folders_are_two(tmp_path):
    text = "from blocks import block\ndef make(in_channels):\n    return block(in_channels)\n"
    a = write(tmp_path / "a", net=text, blocks=BLOCKS.format(4))
    b = write(tmp_path / "b", net=text, blocks=BLOCKS.format(5))
    assert [build(name).out_channels for name in (a, b, a)] == [4, 5, 4]
    write(tmp_path / "a", net=text, blocks=BLOCKS.format(61))
    assert build(a).out_channels == 61
    assert source_digest(a) != source_digest(b)


def test_a_neighbour_that_is_missing_is_the_users_own_error(tmp_path):
    name = write(tmp_path, net="import blocks_that_are_not_there\ndef make():\n    return 1\n")
    before = list(sys.path)
    with pytest.raises(ModuleNotFoundError, match="blocks_that_are_not_there"):
        build(name)
    assert sys.path == before


def test_first_weights_follow_from_the_seed_whoever_draws_them(tmp_path):
    text = (
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\ndef make():\n"
        "    net = nn.Linear(2, 2)\n    net.weight.data[0, 0] = random.random()\n"
        "    net.weight.data[0, 1] = np.random.rand()\n    return net\n"
    )
    name = write(tmp_path, net=text)
    one, same, other = (build(name, seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not (one == other).any()


def test_the_digest_is_that_of_the_file_and_of_what_it_imports(tmp_path, monkeypatch):
    text = "from blocks import block\ndef make(in_channels):\n    return block(in_channels)\n"
    name = write(tmp_path, net=text, blocks=BLOCKS.format(4), other="a = 1\n")
    first = source_digest(name)
    write(tmp_path, other="a = 2\n")
    assert source_digest(name) == first
    write(tmp_path, blocks=BLOCKS.format(4) + "# edited\n")
    second = source_digest(name)
    write(tmp_path, net=text + "# edited\n")
    assert len({first, second, source_digest(name)}) == 3
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, own_pack___="", own_pack__deep="from own_pack.side import block\n", own_pack__side=BLOCKS)
    try:
        __import__("own_pack.deep")
        first = source_digest("own_pack.deep:make")
        write(tmp_path, own_pack__side=BLOCKS + "# edited\n")
        assert first and source_digest("own_pack.deep:make") != first
    finally:
        for key in [key for key in sys.modules if key.startswith("own_pack")]:
            del sys.modules[key]
    assert source_digest("torch.nn:Linear")
    assert source_digest("torchvision/resnet18") is None and source_digest("sys:path") is None
