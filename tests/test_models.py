"""The networks: sizes known from the literature, seeds, names, checkpoints of the original authors, messages."""

import math
import subprocess
import sys
import urllib.request

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrans.errors import BadValue, NotAvailable, ShapeMismatch, UnknownName
from reptrans.models import build, from_l2t, model_names
from reptrans.models.families import FAMILIES


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def random_images(n: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        # Csiszárik et al., 2021
        ("lenet", 10, 62_006),
        ("tiny10", 10, 86_778),
        ("nbn_tiny10", 10, 86_138),
        ("dense", 10, 1_105_510),
        ("resnet20", 10, 272_474),
        ("resnet20_w1", 10, 272_474),
        ("resnet20_w2", 10, 1_084_586),
        ("resnet20_w3", 10, 2_436_346),
        ("resnet20_w4", 10, 4_327_754),
        ("resnet20_w5", 10, 6_758_810),
        # Jang et al., 2019: 479,281 with 9 unused parameters, 9,263,373 with 32,259 unused ones
        ("resnet32_l2t", 200, 479_281 - 9),
        ("vgg9_bn", 10, 9_263_373 - 32_259),
        # Tian et al., 2020
        ("resnet32", 100, 472_756),
        ("resnet56", 100, 861_620),
        ("resnet110", 100, 1_736_564),
        ("resnet8x4", 100, 1_233_540),
        ("resnet32x4", 100, 7_433_860),
        ("wrn_16_2", 100, 703_284),
        ("wrn_40_1", 100, 569_780),
        ("wrn_40_2", 100, 2_255_156),
        ("vgg8", 100, 3_965_028),
        ("vgg13", 100, 9_462_180),
        # usual counts of the CIFAR-10 versions
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet34_cifar", 10, 21_282_122),
        ("resnet50_cifar", 10, 23_520_842),
        ("resnet101_cifar", 10, 42_512_970),
        ("wrn_28_10", 10, 36_479_194),
        ("vgg16", 10, 14_728_266),
    ],
)
def test_parameter_counts_are_those_of_the_literature(name, classes, count):
    assert parameters(build(name, num_classes=classes)) == count


def test_the_known_count_of_inceptionv1_includes_its_batch_norms():
    with_batch_norm = build("inceptionv1", num_classes=40, batch_norm=True)
    norms = sum(parameters(m) for m in with_batch_norm.modules() if isinstance(m, nn.BatchNorm2d))
    assert parameters(with_batch_norm) == 6_088_764
    assert parameters(build("inceptionv1", num_classes=40)) == 6_088_764 - norms


@pytest.mark.parametrize("name", model_names())
def test_every_listed_network_can_be_traced_and_gives_logits(name):
    net = build(name, num_classes=7)
    assert net.training
    with torch.inference_mode():
        assert fx.symbolic_trace(net.eval())(random_images(2, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("lenet", 16), ("tiny10", 27), ("nbn_tiny10", 27), ("cnn3_w8", 4), ("inceptionv1", 32)]
    + [("vgg4", 8), ("vgg4_bn", 8), ("vgg9", 32), ("vgg9_bn", 32), ("vgg8", 8), ("vgg11", 8)],
)
def test_the_smallest_image_is_enough_and_one_pixel_less_is_not(name, smallest):
    net = build(name, image_size=smallest).eval()
    assert net(random_images(2, smallest)).shape == (2, 10)
    with pytest.raises(RuntimeError):
        net(random_images(2, smallest - 1))
    with pytest.raises(ShapeMismatch, match=f"^{name} needs images of at least {smallest} x {smallest} pixels"):
        build(name, image_size=(64, smallest - 1))


def test_networks_without_a_smallest_size_take_one_pixel():
    free = [family.listed.split()[0] for family in FAMILIES if family.smallest == 1]
    assert {"dense", "resnet20", "wrn_16_1"} <= set(free)
    for name in free:
        assert build(name, image_size=1).eval()(random_images(2, 1)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet", "dense", "cnn3_w8", "resnet8", "wrn_16_1", "vgg4"])
def test_channels_classes_and_oblong_images(name):
    net = build(name, num_classes=3, in_channels=1, image_size=(16, 24))
    assert net(torch.rand(2, 1, 16, 24)).shape == (2, 3)


def test_vgg_pools_once_more_for_larger_images():
    assert [n for n, _ in build("vgg8").named_children() if "pool" in n] == ["pool1", "pool2", "pool3", "avgpool"]
    assert "pool4" in dict(build("vgg8", image_size=64).named_children())


# Seeds


@pytest.mark.parametrize("name", ["tiny10", "resnet8", "wrn_16_1", "vgg4", "torchvision/squeezenet1_1"])
def test_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, other = build(name, seed=3).state_dict(), build(name, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = build(name, seed=3).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key, value in first.items() if value.dim() == 4]
    assert weights and not any(torch.equal(first[key], other[key]) for key in weights)


def test_the_random_state_is_kept_when_building_fails(tmp_path):
    (tmp_path / "broken.py").write_text("import torch\ndef net():\n    torch.rand(3)\n    raise RuntimeError('mine')\n")
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="^mine$"):
        build(f"{tmp_path / 'broken.py'}:net")
    assert torch.equal(torch.get_rng_state(), before)


# Initialisation


@pytest.mark.parametrize(("name", "layer"), [("resnet32x4", "layer3.1.conv2"), ("wrn_16_2", "layer3.1.conv2")])
def test_he_fan_out_initialisation(name, layer):
    weight = build(name).get_submodule(layer).weight
    deviation = math.sqrt(2 / (9 * weight.shape[0]))
    # The deviation of n normal draws has a relative standard error of 1 / sqrt(2 n); five of them.
    assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))


def test_vgg_starts_with_zero_biases_and_a_small_linear_layer():
    net = build("vgg8", num_classes=100)
    assert all(not m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert net.fc.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * net.fc.weight.numel()))


@pytest.mark.parametrize(("name", "last"), [("resnet18_cifar", "bn2"), ("resnet50_cifar", "bn3")])
def test_blocks_of_the_cifar_resnets_start_as_their_shortcut(name, last):
    net = build(name).eval()
    zero = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()}
    assert zero == {f"{n}.{last}" for n, m in net.named_modules() if hasattr(m, "add")}
    x = torch.rand(1, net.layer1[1].conv1.in_channels, 4, 4)
    assert torch.equal(net.layer1[1](x), x)


# Layers


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "resnet18_cifar", "resnet50_cifar"])
def test_the_sum_of_every_residual_block_is_a_layer_before_the_last_relu(name):
    net = build(name).eval()
    block = net.layer2[0]
    sums = []
    block.add.register_forward_hook(lambda module, inputs, output: sums.append((*inputs, output.clone())))
    x = torch.randn(2, block.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    output = block(x)
    branch, shortcut, total = sums[0]
    assert torch.equal(shortcut, block.downsample(x))
    assert torch.equal(output, total.clamp(min=0)) and (total < 0).any()


def test_wide_block_agrees_with_its_formula():
    block = build("wrn_16_2").eval().layer2[0]
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    activated = F.relu(block.bn1(x))
    inner = F.relu(block.bn2(F.conv2d(activated, block.conv1.weight, stride=2, padding=1)))
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(activated, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_relus_work_in_place_only_where_the_authors_do():
    in_place = {n for n in ("resnet20_w2", "resnet32", "wrn_16_2", "vgg8", "tiny10") if _in_place_relus(build(n))}
    assert in_place == {"resnet20_w2"}
    assert not _in_place_relus(build("resnet20", in_place=False))


def _in_place_relus(net: nn.Module) -> int:
    return sum(m.inplace for m in net.modules() if isinstance(m, nn.ReLU))


def test_inceptionv1_has_the_published_maps_at_224_pixels():
    net, shapes = build("inceptionv1").eval(), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda m, i, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.inference_mode():
        net(random_images(1, 224))
    expected = {
        "conv2d0": (64, 112, 112), "maxpool0": (64, 56, 56), "conv2d2": (192, 56, 56), "maxpool1": (192, 28, 28),
        "mixed3a": (256, 28, 28), "mixed3b": (480, 28, 28), "mixed4a_pre_relu": (508, 14, 14),
        "mixed4d": (528, 14, 14), "mixed4e": (832, 14, 14), "maxpool10": (832, 7, 7), "mixed5b": (1024, 7, 7),
    }  # fmt: skip
    assert {name: shapes[name] for name in expected} == expected


# Checkpoints of the original authors


@pytest.mark.parametrize(
    ("name", "folder", "entries"), [("tiny10", "Tiny10-in0-gn0", 58), ("resnet20", "ResNet20_w1-in0-gn0", 128)]
)
def test_stitching_checkpoints_load_strictly(shared, name, folder, entries):
    path = shared(f"data/networks/drfrankenstein/{folder}/110000.pt")
    state = torch.load(path, map_location="cpu", weights_only=True)
    net = build(name)
    net.load_state_dict(state)
    assert list(net.state_dict()) == list(state) and len(state) == entries


def test_the_l2t_source_network_gives_the_reference_features(shared):
    path = shared("data/networks/l2t_ww/tinyimagenet-200-resnet32/model_best.pth.tar")
    reference = torch.load(shared("reference/l2t.pt"), weights_only=True)
    net = build("resnet32_l2t", num_classes=200)
    net.load_state_dict(from_l2t(torch.load(path, map_location="cpu", weights_only=True)["state_dict"]))
    found, names = {}, {4: "layer1.4", 9: "layer2.4", 14: "layer3.4"}
    for index, name in names.items():
        net.get_submodule(name).register_forward_hook(lambda m, i, output, index=index: found.update({index: output}))
    with torch.no_grad():
        logits = net.eval()(reference["image"])
    torch.testing.assert_close(logits, reference["source_logits"])
    for index in names:
        torch.testing.assert_close(found[index], reference["source_feature"][index])


def test_from_l2t_renames_and_drops_what_is_unused():
    keys = ["conv1.bias", "block3.downsample.0.weight", "blocks6.3.bn2.bias", "fc.bias", "alphas.0"]
    renamed = from_l2t({key: torch.tensor(float(i)) for i, key in enumerate(keys)})
    assert renamed == {"conv1.bias": 0, "layer2.0.downsample.0.weight": 1, "layer3.4.bn2.bias": 2, "fc.bias": 3}


# Messages


NETWORKS = ", ".join(model_names())
OWN = (
    "; also cnn3_w{k}, cnn5_w{k}, resnet20_w{k} and wrn_{depth}_{k} of any k, torchvision/NAME, timm/NAME, hf/TYPE, "
    "and module:function or path/to/file.py:function of your own."
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"name": "tiny9"},
            UnknownName,
            f"There is no network 'tiny9'. Did you mean 'tiny10'? Networks: {NETWORKS}{OWN}",
        ),
        (
            {"name": "resnet20_w0"},
            UnknownName,
            "There is no network 'resnet20_w0'. Did you mean 'resnet20_w3' or 'resnet20_w4' or 'resnet20_w5'? "
            f"Networks: {NETWORKS}{OWN}",
        ),
        (
            {"name": "wrn_17_2"},
            BadValue,
            "wrn_17_2: a wide residual network has 6n + 4 layers, not 17. Possible depths: 10, 16, 22, 28, 34, 40, ...",
        ),
        (
            {"name": "tiny10", "image_size": 8},
            ShapeMismatch,
            "tiny10 needs images of at least 27 x 27 pixels, image_size is 8 x 8. Load the data with a larger "
            "image_size, or choose a network without a smallest size, resnet20 for one, or cnn3_w16, which takes "
            "images from 4 x 4 on.",
        ),
        (
            {"name": None},
            BadValue,
            "build takes the name of a network, not None. Names: model_names(), timm/resnet18.",
        ),
        (
            {"name": nn.Flatten()},
            BadValue,
            "build takes the name of a network, not a network (Flatten), which is built already. Names: "
            "model_names(), timm/resnet18.",
        ),
        ({"name": "lenet", "num_classes": 0}, BadValue, "num_classes is 0; it must be a whole number from 1 on."),
        ({"name": "lenet", "in_channels": 1.5}, BadValue, "in_channels is 1.5; it must be a whole number from 1 on."),
        (
            {"name": "lenet", "image_size": (32, 0)},
            BadValue,
            "image_size is (32, 0); it must be a side in pixels or (height, width), each from 1 on.",
        ),
        ({"name": "lenet", "dropout": 0.5}, BadValue, "lenet has no option 'dropout'. It has none."),
        (
            {"name": "inceptionv1", "batchnorm": True},
            BadValue,
            "inceptionv1 has no option 'batchnorm'. Did you mean 'batch_norm'? Its options: batch_norm",
        ),
        (
            {"name": "lenet", "weights": "default"},
            BadValue,
            "weights='default' is for networks of torchvision, timm, hf; lenet starts with random weights. To load a "
            "file into it, use load_network of reptrans.checkpoints.",
        ),
        (
            {"name": "torchvision/resnet18", "in_channels": 1},
            BadValue,
            "torchvision/resnet18 takes images of 3 channels, in_channels is 1. channels=3 of load_dataset repeats "
            "grey images three times; or choose a network of this package (model_names()).",
        ),
        (
            {"name": "torchvision/resnet18", "weights": "default", "num_classes": 7},
            BadValue,
            "The weights IMAGENET1K_V1 of torchvision/resnet18 have num_classes=1000, not 7. Leave it out, or use "
            "weights=None for fresh weights.",
        ),
        (
            {"name": "torchvision/resnet18", "weights": "IMAGENET1K_V9"},
            UnknownName,
            "torchvision/resnet18 has no weights 'IMAGENET1K_V9'. Did you mean 'IMAGENET1K_V1'? Weights: default, "
            "IMAGENET1K_V1",
        ),
        (
            {"name": "torchvision/vit_h_14"},
            ShapeMismatch,
            "torchvision/vit_h_14 needs square images of a multiple of 14 pixels, its patch; image_size is 32 x 32.",
        ),
        (
            {"name": "no_such_package.nets:make"},
            UnknownName,
            "There is no module 'no_such_package.nets' on the Python path. Install it, start Python in its folder, or "
            "give the file: path/to/file.py:function.",
        ),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error) as raised:
        build(**arguments)
    assert str(raised.value) == message


# torchvision


def test_torchvision_is_imported_only_when_asked_for():
    code = "import sys; from reptrans.models import build; build('lenet'); print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_torchvision_network_with_another_number_of_classes():
    assert build("torchvision/shufflenet_v2_x0_5", num_classes=4).eval()(random_images(2, 32)).shape == (2, 4)


def test_googlenet_returns_logits_in_train_mode_without_a_warning():
    net = build("torchvision/googlenet", num_classes=4)
    assert net.training and net(random_images(2, 32)).shape == (2, 4)


def test_unknown_torchvision_network_names_the_near_ones():
    with pytest.raises(UnknownName) as raised:
        build("torchvision/resnet19")
    message = str(raised.value)
    start = (
        "torchvision has no classification network 'resnet19'. Did you mean 'resnet101' or 'resnet152' or 'resnet18'? "
    )
    assert message.startswith(start + "Networks: alexnet, convnext_base, ") and message.endswith("wide_resnet50_2")


def test_options_reach_torchvision_and_unknown_ones_are_refused():
    assert build("torchvision/squeezenet1_1", dropout=0.25).classifier[0].p == 0.25
    with pytest.raises(BadValue, match=r"^torchvision/squeezenet1_1 does not accept the options \{'depth': 3\}: "):
        build("torchvision/squeezenet1_1", depth=3)


def test_weights_that_cannot_be_downloaded_are_asked_for_by_name(monkeypatch, tmp_path):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(urllib.request, "_opener", None)  # an earlier download's, which knows other proxies
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    with pytest.raises(NotAvailable) as raised:
        build("torchvision/resnet18", weights="IMAGENET1K_V1")
    assert str(raised.value) == (
        f"The weights IMAGENET1K_V1 of torchvision/resnet18 could not be downloaded ({raised.value.__cause__}). "
        f"Download {weights.url} where you can and put the file into {tmp_path / 'hub' / 'checkpoints'}, under the "
        "name resnet18-f37072fd.pth."
    )


# The user's own


OWN_NETWORK = """
from torch import nn
def make(num_classes, in_channels=3, *, width=4):
    conv = nn.Conv2d(in_channels, width, 3)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
def all_of_it(**given):
    net = nn.Identity()
    net.given = given
    return net
def wrong():
    return "a network"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    path = tmp_path / "my_networks.py"
    path.write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    for name in ("my_networks", "reptrans_user_my_networks"):
        sys.modules.pop(name, None)


def test_own_network_by_module_and_by_file(own):
    by_module = build("my_networks:make", num_classes=5, in_channels=1, seed=2, width=6)
    by_file = build(f"{own}:make", num_classes=5, in_channels=1, seed=2, width=6)
    assert by_module(random_images(2, 8, channels=1)).shape == (2, 5)
    assert by_module[0].out_channels == 6
    assert all(torch.equal(a, b) for a, b in zip(by_module.parameters(), by_file.parameters(), strict=True))


def test_own_function_that_takes_anything_gets_everything(own):
    given = build("my_networks:all_of_it", image_size=(8, 9), seed=2, depth=1).given
    assert given == {"num_classes": 10, "in_channels": 3, "image_size": (8, 9), "seed": 2, "depth": 1}


def test_messages_about_own_networks(own):
    for name, options, error, message in (
        ("my_networks:mak", {}, UnknownName, "my_networks:mak: there is no function 'mak'. Did you mean 'make'? "
         "It has: make, all_of_it, wrong"),
        ("my_networks:wrong", {}, BadValue, "my_networks:wrong returned str, not a torch.nn.Module."),
        ("my_networks:make", {"widht": 3}, BadValue, "my_networks:make has no argument 'widht'. Did you mean 'width'? "
         "Its arguments: num_classes, in_channels, width"),
    ):  # fmt: skip
        with pytest.raises(error) as raised:
            build(name, **options)
        assert str(raised.value) == message


def test_own_file_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName) as raised:
        build("nets/mine.py:make")
    assert str(raised.value) == f"There is no file nets/mine.py, looked for in {tmp_path}."


def test_an_import_that_fails_inside_the_users_module_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="^No module named 'no_such_package'$"):
        build("needs_more:make")
