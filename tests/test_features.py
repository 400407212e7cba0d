"""Stored activations: the same from every format, compared only where they are of the same examples."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from reptrans.errors import BadCheckpoint, BadData, BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.similarity import Features, compare, debiased_cka

IDS = [f"image-{i}" for i in range(30)]


def features(seed=0, ids=IDS):
    g = torch.Generator().manual_seed(seed)
    return Features({"conv": torch.randn(30, 4, 3, 3, generator=g), "fc": torch.randn(30, 6, generator=g)}, ids)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("ids", [IDS, list(range(100, 130))])
def test_what_is_saved_is_loaded(tmp_path, suffix, ids):
    own = features(ids=ids)
    own.save(tmp_path / f"f{suffix}")
    found = Features.load(tmp_path / f"f{suffix}")
    assert found.ids == ids and list(found.layers) == ["conv", "fc"]
    for name, v in own.layers.items():
        same = found.layers[name].float()
        assert torch.equal(same.flatten(1), v.flatten(1)) and (suffix == ".parquet" or same.shape == v.shape)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_layers_of_numbered_blocks_stay_apart(tmp_path, suffix):
    own = Features({f"layer1.{i}": torch.randn(30, 2 + i) for i in range(2)}, IDS)
    own.save(tmp_path / f"f{suffix}")
    found = Features.load(tmp_path / f"f{suffix}").layers
    assert {name: v.shape for name, v in found.items()} == {"layer1.0": (30, 2), "layer1.1": (30, 3)}


@pytest.mark.parametrize(
    ("layers", "ids", "message"),
    [
        ([torch.zeros(2, 3)], [0, 1], "given a list and a list"),
        ({"fc": torch.zeros(2, 3)}, None, "given a dict and a NoneType"),
        ({"fc": torch.zeros(2, 3)}, [0, "1"], "'1' is a str, and the first of them is 0"),
        ({"fc": torch.zeros(2, 3)}, [0.5, 1.5], "0.5 is a float"),
        ({"ids": torch.zeros(2, 3)}, [0, 1], "no layer may be called 'ids'"),
        ({"fc": torch.zeros(3, 3)}, [4, 5, 5], "the id 5 is there more than once"),
    ],
)
def test_what_is_no_features(layers, ids, message):
    with pytest.raises(BadData, match=message):
        Features(layers, ids)


def test_features_are_shown_by_their_shapes():
    assert repr(features()) == "Features(30 examples: conv (30, 4, 3, 3), fc (30, 6))"


def test_files_of_other_programs(tmp_path):
    own = features()
    save_file({"fc": own.layers["fc"].numpy(), "id": np.arange(30)}, tmp_path / "a.safetensors")
    table = pd.DataFrame(own.layers["fc"].numpy(), columns=[f"fc.{i}" for i in range(6)])
    table = table[table.columns[::-1]].assign(id=range(30))
    table.to_parquet(tmp_path / "a.parquet")
    for suffix in (".safetensors", ".parquet"):
        found = Features.load(tmp_path / f"a{suffix}")
        assert found.ids == list(range(30)) and torch.equal(found.layers["fc"].float(), own.layers["fc"])
    np.savez(tmp_path / "none.npz", fc=own.layers["fc"].numpy())
    with pytest.raises(BadData, match="none.npz has no ids, so that nothing says"):
        Features.load(tmp_path / "none.npz")
    assert Features.load(tmp_path / "none.npz", ids=range(30)).ids == list(range(30))


def test_a_broken_file_is_no_features(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for name in ("a.npz", "a.parquet", "there_is.npz"):
        with pytest.raises(BadCheckpoint):
            Features.load(tmp_path / name)
    with pytest.raises(UnknownName, match="its format is '.npy'"):
        Features.load(tmp_path / "pickled.npy")


def test_stored_features_compare_as_their_networks_do():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval() for _ in range(2)]
    images = torch.randn(30, 3, 8, 8)
    stored = [Features.of(net, images.split(7), ["0", "3"]) for net in nets]
    for how in ("pool", "pixels"):
        expected = compare(*nets, images.split(7), ["0", "3"], fold=how)
        assert np.allclose(compare(*stored, fold=how), expected, atol=1e-6)
    assert compare(*stored, layers_a="0", layers_b=["3"]).shape == (1, 1)
    calibrated = compare(*stored, null=20)
    assert calibrated.value.equals(compare(*stored))


def test_ids_must_be_the_same_in_the_same_order():
    a = features()
    turned = Features({k: v.flip(0) for k, v in a.layers.items()}, IDS[::-1])
    with pytest.raises(BadData, match="in other orders: at place 0 there is 'image-0' in the first, 'image-29' in"):
        compare(a, turned)
    assert np.allclose(np.diag(compare(a, turned.like(a))), 1)
    some = Features({k: v[:20] for k, v in a.layers.items()}, IDS[:20])
    with pytest.raises(BadData, match="of other examples: 10 ids are in the first alone, 0 in the second, as 'image-2"):
        compare(a, some)
    with pytest.raises(BadData, match="10 of 30 ids are missing here, as 'image-20'"):
        some.like(a)
    assert np.allclose(np.diag(compare(a.like(some), some)), 1)
    for ids, message in ((IDS[:-1], "29 ids need"), ([*IDS[:-1], IDS[0]], "'image-0' is there more than once")):
        with pytest.raises((BadData, ShapeMismatch), match=message):
            Features(a.layers, ids)
    with pytest.raises(BadData, match="no layer"):
        Features({}, [])


def test_a_table_of_models():
    models = {"first": features(0), "second": features(1), "third": features(2)}
    table = compare(*[Features.beside(models, "fc")] * 2)
    assert list(table) == list(models) and np.allclose(np.diag(table), 1) and np.allclose(table, table.T)
    assert table.loc["first", "third"] == pytest.approx(
        float(debiased_cka(*(models[k].layers["fc"].double() for k in ("first", "third"))))
    )
    with pytest.raises(UnknownName, match="second has no layer 'conv2'"):
        Features.beside(models, {"first": "fc", "second": "conv2", "third": "fc"})


def test_networks_and_features_are_not_mixed():
    with pytest.raises(BadValue, match="two networks and a loader, or two Features and none"):
        compare(features(), nn.Linear(3, 3), torch.randn(30, 3))
    with pytest.raises(BadValue, match="two Features and none"):
        compare(features(), features(), torch.randn(30, 3))
    with pytest.raises(LayerNotFound, match="no layer 'fc2' is stored. Did you mean 'fc'"):
        compare(features(), features(), layers_a="fc2")
