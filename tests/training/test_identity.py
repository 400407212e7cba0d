"""What a kept training is a training of: images, settings and code, and not what they are called."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from reptrans.data import Loader, Split, load_dataset
from reptrans.errors import BadCheckpoint, BadValue
from reptrans.matching import Match, softened_kl
from reptrans.training import Plan, fit
from reptrans.training.resume import content, recipe_of, structure

PLAN = Plan(epochs=1, lr=0.01)
FORM = {"mean": (0.5,), "std": (0.25,)}


def split(seed=0):
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Split(images, torch.arange(300) % 3)


def examples():
    return torch.rand(20, 16, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def changed(tensor, at):
    other = tensor.clone()
    other.view(-1)[at] += 1
    return other


def train(loader, path, net=None, facts=None):
    net = net or nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    loss = nn.CrossEntropyLoss()
    fit(lambda batch, _: ({"loss": loss(net(batch.images), batch.labels)}, {}), net, loader, PLAN,
        checkpoint=path, facts=facts)  # fmt: skip


@pytest.mark.parametrize(
    ("other", "form"),
    [
        (split(1), {}),
        (Split(changed(split().images, 7), split().labels), {}),
        (Split(split().images, split().labels.flip(0)), {}),
        (Split(split().images.flip(0), split().labels), {}),
        (split(), {"mean": (0.4,)}),
        (split(), {"std": (0.2,)}),
    ],
    ids=["other images", "one pixel", "labels", "order", "mean", "std"],
)
def test_a_training_on_other_images_is_another(other, form, tmp_path):
    path = tmp_path / "run.safetensors"
    train(Loader(split(), 50, **FORM), path)
    train(Loader(split(), 50, **FORM), path)
    what = next(iter(form), "content")
    there, here = (f"{what}.0" if form else what for _ in range(2))
    with pytest.raises(BadCheckpoint) as caught:
        train(Loader(other, 50, **FORM | form), path)
    text = str(caught.value)
    assert text.startswith(f"{path} belongs to another training: loader.{there} is ")
    assert text.endswith(" Give the same values to go on with it; move it away or name another file to start anew.")


def test_float_images_are_known_but_for_their_last_bits():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert content([x]) == content([x * (1 + 1e-6)]) == content([x.double()])
    others = [x.flip(0), x[[1, 0, *range(2, 200)]], -x, x.t(), x[:100], 1.1 * x, torch.zeros_like(x)]
    assert len({content([x]), *(content([other]) for other in others)}) == 1 + len(others)


def test_images_that_are_streamed_are_known_by_some_of_them(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("reptrans.data.folder.MOST_SIDE", 2)
    loaders = []
    for shift in (0, 0, 9):
        for part in ("train", "test"):
            for name in ("a", "b"):
                (tmp_path / "pets" / part / name).mkdir(parents=True, exist_ok=True)
                pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) + shift
                Image.fromarray(pixels).save(tmp_path / "pets" / part / name / "0.png")
        loaders.append(load_dataset(f"folder:{tmp_path / 'pets'}", normalise="mnist").loader("train", 2))
        if len(loaders) < 3:
            train(loaders[-1], tmp_path / "run.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    with pytest.raises(BadCheckpoint, match="loader.content is"):
        train(loaders[-1], tmp_path / "run.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))


def test_torchs_own_data_are_known(tmp_path):
    images, labels = examples()
    train(DataLoader(TensorDataset(images, labels), 5), tmp_path / "run.safetensors")
    with pytest.raises(BadCheckpoint, match="loader.content is"):
        train(DataLoader(TensorDataset(images.flip(0), labels), 5), tmp_path / "run.safetensors")


@pytest.mark.parametrize("form", [list, DataLoader], ids=["a list of batches", "a subset"])
def test_what_a_loader_holds_is_known(form, tmp_path):
    def loader(images):
        if form is list:
            return [(images[:10], labels[:10]), (images[10:], labels[10:])]
        return DataLoader(Subset(TensorDataset(images, labels), range(0, 20, 2)), 5)

    images, labels = examples()
    for _ in range(2):
        train(loader(images), tmp_path / "run.safetensors")
    with pytest.raises(BadCheckpoint, match="loader.content is"):
        train(loader(images.flip(0)), tmp_path / "run.safetensors")


class Own(Dataset):
    """Of the user: images as they are, or each with noise drawn anew."""

    def __init__(self, images, noise):
        self.images, self.noise = images, noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i] + self.noise * torch.rand(16), i % 3


def test_a_dataset_of_ones_own_is_known_by_its_examples(tmp_path):
    images, _ = examples()
    state = torch.get_rng_state()
    for path, noise in ((tmp_path / "still.safetensors", 0.0), (tmp_path / "noisy.safetensors", 0.1)):
        for _ in range(2):
            torch.manual_seed(0)
            train(DataLoader(Own(images, noise), 5), path)
    torch.set_rng_state(state)
    train(DataLoader(Own(images.flip(0), 0.1), 5), path)  # what is drawn anew is known by its number alone
    with pytest.raises(BadCheckpoint, match="loader.content is"):
        train(DataLoader(Own(images.flip(0), 0.0), 5), tmp_path / "still.safetensors")


def test_a_generator_of_the_loaders_own_goes_with_no_checkpoint(tmp_path):
    data = TensorDataset(*examples())
    loader = DataLoader(data, 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    train(loader, None)
    with pytest.raises(BadValue, match="a generator of its own, whose state no checkpoint keeps"):
        train(loader, tmp_path / "run.safetensors")


# The objective


def test_facts_tell_objectives_apart(tmp_path):
    path, loader = tmp_path / "run.safetensors", Loader(split(), 50, **FORM)
    train(loader, path, facts={"weight": 1.0})
    train(loader, path, facts={"weight": 1.0})
    for facts in ({"weight": 2.0}, {}):
        with pytest.raises(BadCheckpoint, match="belongs to another training: objective.weight is 1.0 there"):
            train(loader, path, facts=facts)


def distance(power, scale=1.0):
    return lambda x, y: scale * (x - y) ** power


def test_a_recipe_is_known_by_what_its_functions_do():
    told = [recipe_of([Match("a", "b", function, weight=w)]) for function, w in (
        (distance(2), 1.0), (distance(2), 1.0), (distance(1), 1.0), (distance(2, 3.0), 1.0), (distance(2), 2.0),
        (lambda x, y: x - y, 1.0), (softened_kl(2.0), 1.0), (softened_kl(4.0), 1.0),
    )]  # fmt: skip
    assert told[0] == told[1] and len(set(told[1:])) == 7


def test_a_recipe_is_the_same_in_every_process():
    code = """
from reptrans.training.resume import recipe_of
names = {"conv1", "conv2", "fc", "bn1"}
print(recipe_of([names, frozenset(names), {"of": lambda x: x in names}]))
"""
    found = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


# Code

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, slope=0.1):
        super().__init__()
        self.slope, self.layer = slope, nn.Linear(16, 3)
    def forward(self, x):
        y = x.flatten(1) if "a" in {"a", "b", "c", "d"} else x
        return self.layer(y * 2)
"""


def made(text=NET, **options):
    known = {"__name__": "own"}
    exec(compile(text, "own.py", "exec"), known)
    return known["Net"](**options)


def test_structure_is_that_of_the_code_and_not_of_the_weights():
    net = made()
    with torch.no_grad():
        net.layer.weight.zero_()
    assert structure(net.eval().double()) == structure(made("# moved down\n" + NET))
    others = [made(NET.replace("y * 2", "y * 3")), made(NET.replace("y * 2", "y + 2")), made(slope=0.2),
              made(NET.replace("16, 3", "16, 4")), made(NET.replace("16, 3)", "16, 3, bias=False)"))]  # fmt: skip
    assert len({structure(net), *map(structure, others)}) == 1 + len(others)


def test_structure_is_the_same_in_every_process():
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_identity as t; "
    code += "print(t.structure(t.made()), t.structure(t.nn.TransformerEncoderLayer(4, 2)))"
    found = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    }
    assert found == {f"{structure(made())} {structure(nn.TransformerEncoderLayer(4, 2))}\n"}


def test_a_network_of_other_code_does_not_go_on(tmp_path):
    path = tmp_path / "run.safetensors"
    train(Loader(split(), 50, **FORM), path, made())
    train(Loader(split(), 50, **FORM), path, made())
    with pytest.raises(BadCheckpoint, match=r"belongs to another training: code\.network is \w+ there and \w+ here"):
        train(Loader(split(), 50, **FORM), path, made(NET.replace("y * 2", "y.relu()")))
