"""The networks that come with the package: all that the defaults need, unchanged, and as good as those made again."""

import shutil

import default_networks
import pytest
import torch

from reptrans import checkpoints, paths
from reptrans.checkpoints import load_tensors, save_tensors
from reptrans.errors import BadCheckpoint
from reptrans.training import evaluate

DEFAULTS = list(default_networks.defaults())
FILES = sorted(paths.shipped_networks().glob("*.safetensors"))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The shipped networks in a folder of their own, in which they are looked for."""
    folder = tmp_path / "shipped"
    shutil.copytree(paths.shipped_networks(), folder)
    monkeypatch.setattr(paths, "shipped_networks", lambda: folder)
    return folder


def test_every_default_is_shipped_and_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "train_classifier", lambda *_, **__: pytest.fail("a network was trained"))
    for default in DEFAULTS:
        net = default.trained(folder=tmp_path)
        assert not net.training and next(net.parameters()).dtype == torch.float64
    assert not any(tmp_path.iterdir())


def test_nothing_else_is_shipped():
    assert len(FILES) == len(DEFAULTS)
    assert sum(file.stat().st_size for file in FILES) <= 4_000_000


ONE_OF_EACH = {f"{d.model}-{d.dataset.name}-{d.dataset.image_size[0]}": d for d in DEFAULTS}


@pytest.mark.parametrize("default", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_made_again_they_are_as_good(default, tmp_path):
    """One of each kind and size, from nothing: the same weights, unless one of them was rounded otherwise."""
    shipped, new = default.trained(), default.trained(folder=tmp_path, shipped=False)
    test = default.dataset.loader("test", 100, dtype=torch.float64)
    accuracies = [evaluate(net, test)["accuracy"] for net in (shipped, new)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.02)
    assert min(accuracies) > 0.9


def test_a_changed_weight_is_refused_with_recipe_and_digests(copies):
    default = DEFAULTS[0]
    (file,) = copies.glob(f"{default.model}-{default.dataset.name}-s0-*.safetensors")
    state, meta = load_tensors(file)
    state["conv1.weight"][0, 0, 0, 0] += 1e-6
    save_tensors(file, state, meta)
    with pytest.raises(BadCheckpoint) as caught:
        default.trained()
    for part in (str(file), meta["digest"], f"'model': '{default.model}'", "was changed after it was written"):
        assert part in str(caught.value)


def test_the_recipe_of_another_network_is_refused(copies):
    first, second = sorted(copies.glob("resnet8-*.safetensors"))[:2]
    shutil.copy(second, first)
    seed = int(first.name.split("-s")[1].split("-")[0])
    (default,) = (d for d in DEFAULTS if (d.model, d.seed) == ("resnet8", seed))
    with pytest.raises(BadCheckpoint, match="not of the recipe its name stands for"):
        default.trained()
