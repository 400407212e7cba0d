"""Files of weights: what comes back, what is refused, and that nothing is ever half there."""

import errno
import multiprocessing
import pickle
from dataclasses import replace

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
    "Delete it, then train or download it again."
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


@pytest.mark.parametrize("content", [nn.Linear(1, 1), {"state_dict": {}, "trap": Trap()}])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_would_run_code_are_refused(content, zipped, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert message_of(BadCheckpoint, read_weights, path) == (
        f"{path} was refused: it is a pickle of more than weights, and reading it would run code. "
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
        "net.h5 has the suffix '.h5'. Possible: .safetensors, .pt, .pth, .tar"
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
            "the checkpoint has no bn1.bias, Tiny needs (4,) (1 missing, 1 unexpected, 1 of another shape, of 9)",
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
def test_whatever_changes_the_result_changes_the_file(tmp_path):
    options = {"seed": 0, "plan": SHORT, "batch_size": 5, "batch_seed": 0, "augment": "none", "folder": tmp_path}
    changes = [{}, {"seed": 1}, {"plan": replace(SHORT, lr=0.02)}, {"batch_size": 4}, {"batch_seed": 1}]
    for count, change in enumerate([*changes, {"augment": "flip"}], start=1):
        trained("tiny", noise_set(), **options | change)
        assert len(list(tmp_path.glob("*.safetensors"))) == count
    trained("tiny", noise_set(train=noise(20, 5)), **options)
    assert len(list(tmp_path.glob("*.safetensors"))) == count + 1


@pytest.mark.usefixtures("tiny_networks")
def test_trained_goes_on_after_an_interruption(tmp_path, monkeypatch):
    options = {"plan": SHORT, "batch_size": 5}
    whole = trained("tiny", noise_set(), folder=tmp_path / "whole", **options)
    calls = []

    def interrupted(net, loader):
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
        f"{path} is not of the recipe its name stands for. Delete it, and it is trained again."
    )
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert message_of(BadCheckpoint, trained, "tiny", noise_set(), **options) == (
        INCOMPLETE.format(path=path, size=len(content) - 1)
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
    with pytest.raises(CannotWrite, match="could not write in .*file"):
        trained("cnn3_w2", dataset, 0, folder=tmp_path / "file" / "networks")
