"""Files of weights: what comes back, what is refused, and that nothing is ever half there."""

import errno
import multiprocessing
import pickle
import re
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reptrans import checkpoints, files
from reptrans.checkpoints import (
    default_recipe,
    fingerprint,
    load_network,
    load_tensors,
    read_weights,
    save_tensors,
    trained,
)
from reptrans.data import Dataset, Split, load_dataset
from reptrans.errors import BadCheckpoint, BadValue, CannotWrite
from reptrans.models import build
from reptrans.training import Plan

INCOMPLETE = (
    "{path} ({size} bytes) is not a complete checkpoint: it breaks off or is of another format. "
    "Train or download it again, or save its weights with torch.save."
)


def same(a, b):
    """Whether nested states agree in structure, types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def message_of(error, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return str(caught.value)


# Nested tensors


def test_nested_states_come_back_as_they_were(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "views": [base, base.t(), base[1:], base[:, 0]],
        "types": (
            torch.tensor(3),
            torch.zeros(0, 2),
            base.double(),
            base.bfloat16(),
            torch.tensor([True]),
            base.byte(),
        ),
        0: {"momentum": None, "lr": 0.1, "name": "sgd", "flag": True, "none": {}, "empty": []},
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    path = tmp_path / "deep" / "er" / "state.safetensors"
    save_tensors(path, state, {"rows": [{"x": 0.1, "n": None}]})
    loaded, meta = load_tensors(path)
    assert same(loaded, state)
    assert meta == {"rows": [{"x": 0.1, "n": None}]}
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


def test_an_optimiser_comes_back(tmp_path):
    net = nn.Linear(2, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    save_tensors(tmp_path / "o.safetensors", optimiser.state_dict())
    assert same(load_tensors(tmp_path / "o.safetensors")[0], optimiser.state_dict())


def test_a_flat_state_is_an_ordinary_file(tmp_path):
    path = tmp_path / "net.safetensors"
    state = dict(nn.Linear(2, 3).state_dict())
    save_tensors(path, state)
    assert same(dict(sorted(load_file(path).items())), dict(sorted(state.items())))
    save_file(state, path, metadata={"from": "elsewhere"})
    assert load_tensors(path)[1] == {"from": "elsewhere"}
    assert same(dict(sorted(load_tensors(path)[0].items())), dict(sorted(state.items())))


def test_saving_takes_a_copy(tmp_path):
    path, tensor = tmp_path / "t.safetensors", torch.zeros(3)
    save_tensors(path, [tensor, tensor])
    one, two = load_tensors(path)[0]
    one.add_(1)
    assert two.sum() == 0 and tensor.sum() == 0 and load_tensors(path)[0][0].sum() == 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"a": [1, {2, 3}]},
            "cannot save a.1: it is a set. Possible: tensors, numbers, strings, True, False, None, and dicts, lists "
            "and tuples of these.",
        ),
        ({"a": {(1, 2): 3}}, "cannot save a: its key (1, 2) is not a string or a number."),
    ],
)
def test_what_is_no_plain_data_is_refused(state, message, tmp_path):
    assert message_of(BadValue, save_tensors, tmp_path / "x.safetensors", state) == message
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_tensors(path, {"x": torch.ones(2)})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    monkeypatch.setattr(files, "free_space", lambda folder: "0 B")
    with pytest.raises(CannotWrite) as caught:
        save_tensors(path, {"x": torch.zeros(2)})
    assert str(caught.value) == (
        f"could not write net.safetensors in {tmp_path}: No space left on device (0 B free). "
        "Free some space or choose another folder."
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["net.safetensors"]
    assert load_tensors(path)[0]["x"].tolist() == [1, 1]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    message = message_of(CannotWrite, save_tensors, tmp_path / "file" / "sub" / "net.safetensors", {})
    start = f"could not make the folder {tmp_path / 'file' / 'sub'}: Not a directory ("
    assert message.startswith(start) and message.endswith(" free). Free some space or choose another folder.")


# Files that are not what they should be


def test_missing_files(tmp_path):
    assert message_of(BadCheckpoint, load_tensors, tmp_path / "no" / "a.safetensors") == (
        f"there is no file {tmp_path / 'no' / 'a.safetensors'}: its folder does not exist."
    )
    path = tmp_path / "net1.pt"
    assert message_of(BadCheckpoint, read_weights, path) == f"there is no file {path}. Its folder holds no files."
    (tmp_path / "net2.pt").write_text("")
    assert message_of(BadCheckpoint, read_weights, path) == (
        f"there is no file {path}. Did you mean 'net2.pt'? In that folder: net2.pt"
    )


def written(kind, path):
    state = {"weight": torch.randn(300, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(2)}
    if kind == "safetensors":
        save_tensors(path, state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.11, 0.12, 0.15, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", ".safetensors"), ("zip", ".pt"), ("legacy", ".pth")])
def test_half_written_files(kind, suffix, share, tmp_path):
    path = tmp_path / f"net{suffix}"
    whole = written(kind, path)
    assert set(read_weights(path)) == {"weight", "bias"}
    path.write_bytes(whole[: int(len(whole) * share)])
    expected = INCOMPLETE.format(path=path, size=int(len(whole) * share))
    assert message_of(BadCheckpoint, read_weights, path) == expected


@pytest.mark.parametrize("content", [b"hello world this is text", b"<!DOCTYPE html>" * 9, bytes(100), b"\x80\x02"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".tar"])
def test_files_of_another_kind(content, suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    assert message_of(BadCheckpoint, read_weights, path) == INCOMPLETE.format(path=path, size=len(content))


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a file ran code')",)


@pytest.mark.parametrize(
    ("content", "met"),
    [
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"state_dict": {}, "trap": Trap()}, "exec"),
        ({"state_dict": {}, "kept": np.zeros(3)}, "numpy._core.multiarray._reconstruct"),
        ({"state_dict": {}, "where": PurePosixPath("a")}, f"{PurePosixPath.__module__}.PurePosixPath"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_would_run_code_are_refused(content, met, zipped, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert message_of(BadCheckpoint, read_weights, path) == (
        f"{path} was refused: it is a pickle of more than weights ({met}), and reading it would run code. "
        "Where you trust it, save its state_dict() with torch.save, and read that."
    )


def test_a_bare_pickle_is_not_run(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps({"weight": Trap()}, protocol=2))
    assert message_of(BadCheckpoint, read_weights, path).startswith(f"{path} ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(2), "found a Tensor."),
        ([torch.zeros(2)], "found a list."),
        ({}, "found an empty dict."),
        ({"state_dict": {}}, "found an empty dict."),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "but its entry 'epoch' is a int."),
        ({"model": {"w": torch.zeros(1), "n": {"a": 1}}}, "but its entry 'n' is a dict with 'a'."),
    ],
)
def test_files_without_weights(content, found, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(content, path)
    assert message_of(BadCheckpoint, read_weights, path) == (
        f"{path} holds no weights: a dict of tensors was expected, {found}"
    )


def test_another_suffix_is_refused(tmp_path):
    assert message_of(BadValue, read_weights, tmp_path / "net.h5") == (
        "net.h5 has the suffix '.h5'. Possible: .safetensors, .pt, .pth, .ckpt, .bin, .th, .tar"
    )


@pytest.mark.parametrize(
    "nesting", [[], ["state_dict"], ["model"], ["model_state_dict"], ["net"], ["model", "state_dict"]]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_nesting_and_prefixes_are_taken_off(nesting, prefix, tmp_path):
    state = dict(nn.Linear(2, 3).state_dict())
    content = {prefix + name: value for name, value in state.items()}
    for name in reversed(nesting):
        content = {"epoch": 3, name: content}
    torch.save(content, tmp_path / "net.pth.tar")
    assert same(read_weights(tmp_path / "net.pth.tar"), state)


def test_parameters_become_plain_tensors(tmp_path):
    torch.save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "net.pt")
    assert not read_weights(tmp_path / "net.pt")["w"].requires_grad


# Into a network


class Tiny(nn.Module):
    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


def fill(net, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return net


def test_a_network_comes_back(tmp_path):
    net = fill(Tiny())
    save_tensors(tmp_path / "net.safetensors", dict(net.state_dict()))
    other = Tiny().double()
    assert load_network(other, tmp_path / "net.safetensors") is other
    assert other.conv1.weight.dtype == torch.float64
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_translate_gives_names_of_the_network(tmp_path):
    net = fill(nn.Linear(2, 2))
    torch.save({"W": net.weight.detach(), "b": net.bias.detach()}, tmp_path / "net.pt")
    names = {"W": "weight", "b": "bias"}
    other = load_network(
        nn.Linear(2, 2), tmp_path / "net.pt", translate=lambda state: {names[n]: v for n, v in state.items()}
    )
    assert torch.equal(other.weight, net.weight)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            lambda s: s | {"conv1.weight": torch.zeros(4, 1, 3, 3), "fc.bias": torch.zeros(3)},
            "the checkpoint has conv1.weight (4, 1, 3, 3), Tiny needs (4, 3, 3, 3) (0 missing, 0 unexpected, 2 of "
            "another shape, of 9)",
        ),
        (
            lambda s: {n: v for n, v in s.items() if n != "bn1.bias"} | {"fc.bias": torch.zeros(3), "x": torch.ones(2)},
            "the checkpoint has no bn1.bias but x (2,), Tiny needs (4,) (1 missing, 1 unexpected, 1 of another shape, "
            "of 9)",
        ),
        (
            lambda s: s | {"bn9.bias": torch.zeros(2), "bn9.weight": torch.zeros(2)},
            "the checkpoint has bn9.bias (2,), Tiny has no such weight (0 missing, 2 unexpected, 0 of another "
            "shape, of 9)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, difference, tmp_path):
    path, net = tmp_path / "net.pt", Tiny()
    torch.save(change(dict(fill(Tiny()).state_dict())), path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert message_of(BadCheckpoint, load_network, net, path) == f"{path} does not fit: {difference}."
    assert same(dict(net.state_dict()), before)


def test_a_missing_counter_of_batches_is_no_difference(tmp_path):
    net = fill(Tiny())
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pt")
    assert torch.equal(load_network(Tiny(), tmp_path / "net.pt").bn1.weight, net.bn1.weight)


@pytest.mark.parametrize(
    "file_prefix", ["", "module.", "_orig_mod.module.", "model.", "module.model._orig_mod.", "net."]
)
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: nn.ModuleDict({"net": net})])
def test_prefixes_may_be_on_either_side(file_prefix, wrap, tmp_path):
    net = fill(Tiny())
    torch.save({file_prefix + name: value for name, value in net.state_dict().items()}, tmp_path / "net.bin")
    other = load_network(wrap(Tiny()), tmp_path / "net.bin")
    assert all(map(torch.equal, other.parameters(), net.parameters()))


def test_a_prefix_that_is_the_networks_own_stays_where_others_have_none(tmp_path):
    net = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    path = tmp_path / "net.pt"
    torch.save({name: v for name, v in net.state_dict().items() if name.startswith("model.")}, path)
    assert message_of(BadCheckpoint, load_network, net, path) == (
        f"{path} does not fit: the checkpoint has no head.weight, the network needs (2, 2) (2 missing, 0 unexpected, 0 "
        "of another shape, of 4)."
    )


def test_lightnings_file_with_its_prefix(tmp_path):
    net = fill(Tiny())
    weights = {f"model.{name}": value for name, value in net.state_dict().items()}
    content = {"pytorch-lightning_version": "2.4.0", "epoch": 3, "hyper_parameters": {"lr": 0.1}, "state_dict": weights}
    torch.save(content, tmp_path / "last.ckpt")
    assert torch.equal(load_network(Tiny(), tmp_path / "last.ckpt").fc.weight, net.fc.weight)
    torch.save({**content, "state_dict": weights | {"loss.weight": torch.ones(2)}}, tmp_path / "more.ckpt")
    assert message_of(BadCheckpoint, load_network, Tiny(), tmp_path / "more.ckpt") == (
        f"{tmp_path / 'more.ckpt'} does not fit: the checkpoint has no conv1.weight but model.conv1.weight (4, 3, 3, "
        "3), Tiny needs (4, 3, 3, 3) (8 missing, 10 unexpected, 0 of another shape, of 9)."
    )


def test_timms_file_says_which_of_its_networks_is_taken(tmp_path):
    path, (one, two) = tmp_path / "last.pth.tar", ({"w": torch.full((1,), k)} for k in (1.0, 2.0))
    torch.save({"arch": "x", "state_dict": one, "state_dict_ema": two, "args": Namespace(lr=0.1), "metric": 0.5}, path)
    with pytest.warns(UserWarning) as caught:
        assert read_weights(path)["w"].item() == 1
    assert [str(w.message) for w in caught] == [
        f"{path} holds several networks, and 'state_dict' is taken. Another: part='state_dict_ema'."
    ]
    assert read_weights(path, "state_dict_ema")["w"].item() == 2
    assert message_of(BadValue, read_weights, path, "model_ema") == (
        f"{path} has no part 'model_ema'. Possible: state_dict, state_dict_ema."
    )


@pytest.mark.parametrize(
    "number", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.uint8(2), np.float16(1)]
)
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_numpy_numbers_beside_weights_are_plain_data(number, core, tmp_path):
    path = tmp_path / "best.th"
    torch.save({"best": number, "state_dict": {"w": torch.ones(1)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core" in content
    # NumPy 1 wrote the other name; the pickle ends a name with a new line, so that lengths do not matter.
    path.write_bytes(content.replace(b"numpy._core", core.encode()))
    assert read_weights(path)["w"].item() == 1


def test_a_torchscript_program_is_refused_as_such(tmp_path):
    path = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), str(path))
    assert message_of(BadCheckpoint, load_network, nn.Linear(3, 2), path) == (
        f"{path} was refused: it is a TorchScript program, and reading it would run code. Where you trust it, save "
        "torch.jit.load('scripted.pt').state_dict() with torch.save, and read that."
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor([[1.0, float("nan")]]), "is no use: weight holds NaN or infinity in torch.float32. Take the "
         "weights from before the training diverged, or from another copy."),
        (torch.tensor([[1.0, -float("inf")]]), "is no use: weight holds NaN or infinity in torch.float32. Take the "
         "weights from before the training diverged, or from another copy."),
        (torch.tensor([[1.0, 1e300]], dtype=torch.float64), "is no use: weight holds NaN or infinity in torch.float32. "
         "Take the weights from before the training diverged, or from another copy."),
        (torch.ones(1, 2, dtype=torch.int8), "does not fit: weight is torch.int8, and the network's is torch.float32. "
         "Save the weights as real floating-point numbers."),
        (torch.ones(1, 2, dtype=torch.complex64), "does not fit: weight is torch.complex64, and the network's is "
         "torch.float32. Save the weights as real floating-point numbers."),
    ],
)  # fmt: skip
def test_weights_that_are_no_numbers_are_refused(value, reason, tmp_path):
    path, net = tmp_path / "net.pt", nn.Linear(2, 1, bias=False)
    torch.save({"weight": value}, path)
    before = net.weight.clone()
    assert message_of(BadCheckpoint, load_network, net, path) == f"{path} {reason}"
    assert torch.equal(net.weight, before)


def test_a_mask_may_be_infinite_where_the_networks_own_is(tmp_path):
    def masked(value):
        net = nn.Module()
        net.register_buffer("mask", torch.tensor([0.0, value]))
        return net

    torch.save(masked(-float("inf")).state_dict(), tmp_path / "net.pt")
    load_network(masked(-float("inf")), tmp_path / "net.pt")
    with pytest.raises(BadCheckpoint, match="mask holds NaN or infinity"):
        load_network(masked(0.0), tmp_path / "net.pt")


# Damage


@pytest.mark.parametrize("at", [-1, -30, -200])
def test_a_flipped_bit_is_noticed(at, tmp_path):
    path = tmp_path / "net.safetensors"
    save_tensors(path, {"w": torch.arange(100.0)}, {"a": 1})
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    text = message_of(BadCheckpoint, read_weights, path)
    assert re.fullmatch(
        rf"{re.escape(str(path))} is damaged: the digest of what was written is [0-9a-f]{{16}}, of what it holds now "
        r"[0-9a-f]{16}\. Take it from a copy, or train or download it again\.",
        text,
    )


def test_every_byte_of_a_header_is_read_right_or_refused(tmp_path):
    path, state, meta = tmp_path / "a.safetensors", {"m": {"": {"w": torch.ones(3)}}, "n": [1, (2.0, None)]}, {"r": [1]}
    save_tensors(path, state, meta)
    whole = path.read_bytes()
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        for flip in (1, 32, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                found = load_tensors(path)
            except BadCheckpoint:
                continue
            assert same(found[0], state) and found[1] == meta, (at, flip)


@pytest.mark.parametrize(
    "skeleton",
    ['{"tensor":"zz"}', "{}", "{", '{"lisst":[]}', '{"dict":[[[1],2]]}', '{"dict":3}', '{"tensor":["a"]}',
     '{"list":[' * 100_000 + "]}" * 100_000, '{"list":[' * 900 + "]}" * 900 + "x", '{"a":1,"b":2}'],
    ids=lambda text: text[:20],
)  # fmt: skip
@pytest.mark.parametrize("meta", ["{}", None, "3"])
def test_skeletons_that_are_none_are_bad_checkpoints(skeleton, meta, tmp_path):
    path = tmp_path / "a.safetensors"
    described = {"reptrans.skeleton": skeleton} | ({"reptrans.meta": meta} if meta else {})
    save_file({"a": torch.ones(1)}, path, metadata=described)
    assert message_of(BadCheckpoint, load_tensors, path) == INCOMPLETE.format(path=path, size=path.stat().st_size)


# Files of the studies


def test_the_stitching_studys_tiny10(shared):
    path = shared("data/networks/drfrankenstein/Tiny10-in0-gn0/110000.pt")
    state = read_weights(path)
    assert len(state) == 58 and sum(v.numel() for v in state.values() if v.is_floating_point()) == 87418
    net = load_network(build("tiny10"), path)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert message_of(BadCheckpoint, load_network, build("tiny10", in_channels=1), path) == (
        f"{path} does not fit: the checkpoint has conv1.weight (16, 3, 3, 3), the network needs (16, 1, 3, 3) "
        "(0 missing, 0 unexpected, 1 of another shape, of 58)."
    )


def test_the_stitching_studys_resnet(shared):
    path = shared("data/networks/drfrankenstein/ResNet20_w1-in0-gn0/110000.pt")
    assert len(read_weights(path)) == 128
    load_network(build("resnet20_w1"), path)


def test_the_nested_file_of_the_transfer_study(shared):
    state = read_weights(shared("data/networks/l2t_ww/tinyimagenet-200-resnet32/model_best.pth.tar"))
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert not any(name.startswith("module.") for name in state)


# Trained once


def noise(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 2)


def noise_set(**changes):
    parts = {"train": noise(20, 0), "test": noise(10, 1), "classes": ("a", "b"), "mean": (0.5,), "std": (0.25,)}
    return Dataset(**{"name": "noise"} | parts | changes)


@pytest.fixture
def tiny_networks(monkeypatch):
    def build(name, *, num_classes, in_channels, image_size, seed):
        assert image_size == (8, 8)
        return fill(Tiny(in_channels, num_classes), seed)

    monkeypatch.setattr(checkpoints, "build", build)


SHORT = Plan(epochs=2, precision="float64", lr=0.01)


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.usefixtures("tiny_networks")
def test_trained_trains_once(tmp_path, monkeypatch):
    data = noise_set()
    first = trained("tiny", data, 3, plan=SHORT, batch_size=5, folder=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert path.name.startswith("tiny-noise-s3-") and path.suffix == ".safetensors"
    monkeypatch.setattr(checkpoints, "train_classifier", lambda *_, **__: pytest.fail("trained again"))
    again = trained("tiny", data, 3, plan=SHORT, batch_size=5, folder=tmp_path)
    assert same(weights(again), weights(first))
    assert not same(weights(first), weights(fill(Tiny(1, 2), 3).double()))
    for net in (first, again):
        assert not any(module.training for module in net.modules())
        assert all(p.requires_grad and p.grad is None and p.dtype == torch.float64 for p in net.parameters())
    meta = load_tensors(path)[1]
    assert meta["recipe"]["dataset"] == fingerprint(data) and meta["recipe"]["batch_seed"] == 3
    assert [row["epoch"] for row in meta["rows"]] == [1, 2]


@pytest.mark.usefixtures("tiny_networks")
def test_one_pixel_among_many_images_makes_other_images(tmp_path):
    images = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (
        Dataset("noise", Split(x, torch.arange(200) % 2), Split(x[:4], torch.arange(4) % 2), ("a", "b"), (0.5,), (0.2,))
        for x in (images, torch.cat([images[:1], images[1:2] ^ 1, images[2:]]))
    )
    assert fingerprint(first) == fingerprint(second)
    for _ in range(2):
        trained("tiny", first, 3, plan=SHORT, batch_size=50, folder=tmp_path)
    with pytest.raises(
        BadCheckpoint, match="was trained on other images under the same name, with the same labels. Mo"
    ):
        trained("tiny", second, 3, plan=SHORT, batch_size=50, folder=tmp_path)


@pytest.mark.usefixtures("tiny_networks")
def test_whatever_changes_the_result_changes_the_file(tmp_path):
    options = {"seed": 0, "plan": SHORT, "batch_size": 5, "batch_seed": 0, "augment": "none", "folder": tmp_path}
    changes = [{}, {"seed": 1}, {"plan": replace(SHORT, lr=0.02)}, {"batch_size": 4}, {"batch_seed": 1}]
    for count, change in enumerate([*changes, {"augment": "flip"}], start=1):
        trained("tiny", noise_set(), **options | change)
        assert len(list(tmp_path.glob("*.safetensors"))) == count
    trained("tiny", noise_set(train=noise(20, 5)), **options)
    assert len(list(tmp_path.glob("*.safetensors"))) == count + 1


FUNCTION = """
from torch import nn
from torch.nn import functional as F
from neighbour import width, act
class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.slope, self.a, self.b = 0.1, nn.Linear(64, width), nn.Linear(width, classes)
    def forward(self, x):
        return self.b(F.relu(act(self.a(x.flatten(1)))))
def make(num_classes):
    return Own(num_classes)
"""
NEIGHBOUR = "import torch, os\nwidth = 4\ndef act(x):\n    return x * 2\n"


def test_a_network_of_ones_own_is_known_by_its_code(tmp_path):
    (tmp_path / "own.py").write_text(FUNCTION)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    changes = [
        ("own.py", FUNCTION),
        ("own.py", FUNCTION.replace("F.relu", "F.gelu")),
        ("neighbour.py", NEIGHBOUR.replace("x * 2", "x * 3")),
        ("neighbour.py", NEIGHBOUR.replace("width = 4", "width = 5")),
    ]
    counts = []
    for name, text in [*changes, *changes[-2:]]:
        (tmp_path / name).write_text(text)
        trained(f"{tmp_path / 'own.py'}:make", noise_set(), plan=SHORT, batch_size=5, folder=tmp_path / "kept")
        counts.append(len(list((tmp_path / "kept").glob("*.safetensors"))))
    # The last two were there before.
    assert counts == [1, 2, 3, 4, 4, 4]


def test_first_weights_that_a_function_reads_from_a_file_count(tmp_path):
    text = """
import torch
from torch import nn
def make(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    net.load_state_dict(torch.load({!r}))
    return net
"""
    (tmp_path / "own.py").write_text(text.format(str(tmp_path / "first.pt")))
    for seed in (0, 1, 0):
        start = fill(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), seed).state_dict()
        torch.save(start, tmp_path / "first.pt")
        trained(f"{tmp_path / 'own.py'}:make", noise_set(), plan=SHORT, batch_size=5, folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("name", ["../noise", "a b", "шум", "n" * 300, ""])
def test_data_of_any_name_are_trained_on(name, tmp_path):
    trained("cnn3_w2", noise_set(name=name), plan=SHORT, batch_size=5, folder=tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob("*.safetensors")
    assert len(file.name) < 160 and list(tmp_path.iterdir()) == [tmp_path / "kept"]


@pytest.mark.usefixtures("tiny_networks")
def test_trained_goes_on_after_an_interruption(tmp_path, monkeypatch):
    options = {"plan": SHORT, "batch_size": 5}
    whole = trained("tiny", noise_set(), folder=tmp_path / "whole", **options)
    calls = []

    def interrupted(net, loader, plan=None):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5, "cross_entropy": 1.0}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("reptrans.training.loop.evaluate", interrupted)
        trained("tiny", noise_set(), folder=tmp_path / "broken", **options)
    (partial,) = (tmp_path / "broken").glob("*.safetensors")
    assert partial.name.endswith(".partial.safetensors")
    net = trained("tiny", noise_set(), folder=tmp_path / "broken", **options)
    assert same(weights(net), weights(whole))
    (path,) = (tmp_path / "broken").glob("*.safetensors")
    # The first row is the one of the interrupted training: it went on, and did not start anew.
    assert [row["test_accuracy"] == 0.5 for row in load_tensors(path)[1]["rows"]][0]


@pytest.mark.usefixtures("tiny_networks")
def test_trained_refuses_files_that_are_not_its_own(tmp_path):
    options = {"plan": SHORT, "batch_size": 5, "folder": tmp_path}
    trained("tiny", noise_set(), **options)
    (path,) = tmp_path.glob("*.safetensors")
    state, meta = load_tensors(path)
    save_tensors(path, state, meta | {"recipe": meta["recipe"] | {"seed": 9}})
    assert message_of(BadCheckpoint, trained, "tiny", noise_set(), **options) == (
        f"{path} is not of the recipe its name stands for. Move it away, and it is trained again."
    )
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert message_of(BadCheckpoint, trained, "tiny", noise_set(), **options) == (
        INCOMPLETE.format(path=path, size=len(content) - 1) + " Move it away, and it is trained again."
    )


def test_the_fingerprint_tells_data_apart():
    data = noise_set()
    print_of = fingerprint(data)
    assert print_of == fingerprint(noise_set()) and print_of.startswith("noise-20-10-1x8x8-")
    others = [
        noise_set(name="other"),
        noise_set(std=(0.2,)),
        noise_set(test=noise(11, 1)),
        noise_set(train=noise(20, 4)),
        noise_set(train=Split(data.train.images, 1 - data.train.labels)),
        noise_set(train=Split(data.train.images.flip(0), data.train.labels)),
    ]
    assert len({print_of, *map(fingerprint, others)}) == 1 + len(others)


def test_small_data_have_a_short_recipe_in_float64():
    plan, batch_size = default_recipe(noise_set())
    assert (plan.epochs, plan.precision, batch_size) == (4, "float64", 50)
    big = Split(torch.zeros(5001, 1, 1, 1, dtype=torch.uint8), torch.zeros(5001, dtype=torch.int64))
    assert default_recipe(noise_set(train=big)) == (Plan(), 128)


def _train_in_a_process(folder, results):
    torch.set_num_threads(1)
    dataset = load_dataset("digits", image_size=None, limit=5)
    plan = Plan(epochs=2, lr=0.1, precision="float64")
    net = trained("cnn3_w2", dataset, 0, plan=plan, batch_size=25, folder=folder)
    results.put(float(sum(p.double().sum() for p in net.parameters())))


def test_two_processes_that_want_the_same_network_get_the_same_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_train_in_a_process, args=(tmp_path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    values = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert values[0] == values[1] and all(worker.exitcode == 0 for worker in workers)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_folder_in_which_no_network_can_be_kept_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    dataset = load_dataset("digits", image_size=None, limit=5)
    with pytest.raises(CannotWrite, match="could not make the folder .*file/networks: Not a directory"):
        trained("cnn3_w2", dataset, 0, folder=tmp_path / "file" / "networks")
