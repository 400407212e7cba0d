"""The experiment as a whole, small; and the claims on rows made by hand."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from reptrans.data import load_dataset
from reptrans.errors import BadCheckpoint, BadValue, LayerNotFound, NotAvailable, UnknownName
from reptrans.experiments.autoencoding import AutoencodingRun, autoencode, claims
from reptrans.inputs import aligned_mse, as_built, calibrated, fast_front, noise, triviality, uniqueness_spread
from reptrans.models import build

SMALL = {"model": "cnn3_w8", "image_size": 8, "limit": 20, "pictures": "0,1", "layers": "conv1,conv3", "draws": 1,
         "steps": 5}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def found(folder):
    return autoencode(AutoencodingRun(**SMALL), folder)


def test_there_is_a_row_for_each_of_all(found):
    keys = ["network", "draw", "layer", "image", "start"]
    assert list(found.rows)[:5] == keys and not found.rows.duplicated(keys).any()
    assert len(found.rows) == 3 * 1 * 2 * 2 * 2
    assert found.rows["network"].unique().tolist() == ["trained", "as built", "calibrated"]
    assert found.rows.drop(columns=keys).notna().all(axis=None)
    assert set(found.trace["step"]) == set(range(6))


def test_the_columns_are_those_of_the_measures(found):
    base = load_dataset("digits", image_size=8, limit=20).train.images.double().mean(0, keepdim=True) / 255
    rows = found.rows.query("network == 'as built' and layer == 'conv3' and image == '1'")
    x, a = found.results["as built", 0, "conv3"][1], found.references[1:]
    assert x.shape == (2, 1, 8, 8)
    assert rows["start"].tolist() == [0, 1]
    assert rows["aligned_mse"].tolist() == pytest.approx(aligned_mse(x, a).tolist())
    assert rows["triviality"].tolist() == pytest.approx(triviality(x, a, base).tolist())
    assert rows["spread"].tolist() == pytest.approx([uniqueness_spread(x)] * 2)


def test_the_judge_is_of_a_seed_of_its_own(found, folder):
    assert sorted(path.name.split("-")[2] for path in folder.glob("*.safetensors")) == ["s0", "s1"]


@pytest.mark.parametrize("regime", ["as built", "calibrated"])
def test_yardsticks_by_hand(found, regime):
    data = load_dataset("digits", image_size=8, limit=20)
    net = build("cnn3_w8", num_classes=10, in_channels=1, image_size=8, seed=0).double()
    crowd = (data.train.images[:64].double() / 255 - data.mean[0]) / data.std[0]
    net = as_built(net) if regime == "as built" else calibrated(net, crowd)
    view = fast_front(net, "conv3", mean=data.mean, std=data.std)
    a, x = found.references[1:], found.results[regime, 0, "conv3"][1, :1]
    n = noise(2, (1, 8, 8), seed=1000, mean=0.0, std=0.04, dtype=torch.float64)[1:]
    where = f"network == '{regime}' and layer == 'conv3' and image == '1' and start == 0"
    row = found.rows.query(where).iloc[0]
    m_g, m_r = ((view(other) - view(a)).norm().item() for other in (x, a + n))
    assert row["m_g_over_m_r"] == pytest.approx(m_g / m_r)
    assert row["sensitivity"] == pytest.approx(m_r / view(a).norm().item())
    assert row["m_i_over_shift"] == pytest.approx(((x - a).norm() / n.norm()).item())
    both = view(found.references).flatten(1)
    assert row["cosine_other"] == pytest.approx(torch.cosine_similarity(both[:1], both[1:]).item())
    trace = found.trace.query(where)
    assert row["mse_over_least"] == pytest.approx(row["mse"] / trace["mse"].min())


def test_the_same_parameters_give_the_same_rows(found, tmp_path):
    again = autoencode(AutoencodingRun(**SMALL | {"regimes": "calibrated"}), tmp_path)
    first = found.rows[found.rows["network"] == "calibrated"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.drop(columns=["label_agreement", "blur_agreement"]),
                                  again.rows.drop(columns=["label_agreement", "blur_agreement"]))  # fmt: skip


def test_photographs_need_no_data_set():
    p = AutoencodingRun(model="cnn3_w8", weights="none", pictures="china,flower", image_size=12, draws=2, starts=1,
                        steps=2, layers="auto")  # fmt: skip
    found = autoencode(p)
    assert found.rows["network"].unique().tolist() == ["as built", "calibrated"]
    assert found.rows["layer"].unique().tolist() == ["conv1", "conv2", "conv3"]
    assert found.rows["label_agreement"].isna().all() and found.rows["spread"].isna().all()
    assert len(found.rows) == 2 * 2 * 3 * 2


def test_weights_from_a_file(tmp_path):
    net = build("cnn3_w8", in_channels=3, image_size=12, seed=9)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    p = AutoencodingRun(model="cnn3_w8", weights=str(tmp_path / "own.safetensors"), pictures="china", image_size=12,
                        steps=1, layers="conv1", regimes="trained", form="fourier")  # fmt: skip
    assert autoencode(p).rows["network"].tolist() == ["trained"] * 2
    with pytest.raises(BadCheckpoint, match="missing.safetensors"):
        autoencode(p.model_copy(update={"weights": str(tmp_path / "missing.safetensors")}))


def test_weights_that_cannot_be_had_say_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    p = AutoencodingRun(model="torchvision/resnet18", weights="default", pictures="china", image_size=32, steps=1,
                        regimes="trained")  # fmt: skip
    with pytest.raises(NotAvailable, match="put the file into .*checkpoints"):
        autoencode(p)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers": "conv9"}, LayerNotFound, "no layer 'conv9'.*Did you mean"),
        ({"regimes": "as_built"}, ValueError, "Did you mean 'as built'"),
        ({"pictures": "9999"}, BadValue, "test image 9999"),
        ({"pictures": "china", "weights": "none", "normalise": "imagnet"}, UnknownName, "Did you mean 'imagenet'"),
    ],
)
def test_what_is_refused(change, error, words, tmp_path):
    with pytest.raises(error, match=words):
        autoencode(AutoencodingRun(**SMALL | change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_parameters_are_checked():
    for wrong in ({"steps": 0}, {"distance": "l3"}, {"lr": 0.0}, {"unknown": 1}):
        with pytest.raises((BadValue, UnknownName)):
            AutoencodingRun(**wrong)


def made(**changes) -> pd.DataFrame:
    """Two layers, two rows each, of a network for which all claims hold."""
    first = {"layer": "conv1", "psnr": 90.0, "triviality": 1.0, "m_g_over_m_r": 0.1, "correlation": 1.0,
             "relative_error": 0.0, "spread": 0.0, "mse_over_least": 1.0, "label_agreement": 1.0,
             "blur_agreement": 1.0}  # fmt: skip
    last = first | {"layer": "fc", "triviality": 0.1, "correlation": 0.2, "spread": 0.9, "label_agreement": 0.9,
                    "blur_agreement": 0.1} | changes  # fmt: skip
    return pd.DataFrame([first, first, last, last]).assign(network="trained")


def verdict(rows: pd.DataFrame, words: str) -> bool:
    table = claims(rows)
    (held,) = table[table["claim"].str.contains(words)]["held"]
    return bool(held)


@pytest.mark.parametrize(
    ("words", "against"),
    [
        ("depth removes copying", {"triviality": 0.95}),
        ("m_g < m_r", {"m_g_over_m_r": 1.1}),
        ("m_g < m_r", {"correlation": 0.6}),
        ("is not unique", {"relative_error": 0.2}),
        ("is not unique", {"spread": 0.2}),
    ],
)
def test_claims_fall_where_the_numbers_are_against_them(words, against):
    assert verdict(made(), words) and not verdict(made(**against), words)


def test_the_other_claims():
    assert not verdict(made(), "m_i rises")
    rows = made(mse_over_least=1.5)
    rows.loc[1, "mse_over_least"] = 1.5
    assert verdict(rows, "m_i rises")
    assert verdict(made(), "inverted exactly")
    assert not verdict(made().assign(psnr=[90.0, 50.0, 90.0, 90.0]), "inverted exactly")
    assert len(claims(made())) == 5


def test_claims_about_training_need_both_networks():
    other = made(triviality=-0.5, label_agreement=0.1).assign(network="as built")
    both = pd.concat([made(), other])
    assert verdict(both, "keeps more of the image") and verdict(both, "what the image means")
    swapped = both.assign(network=both["network"].map({"trained": "as built", "as built": "trained"}))
    assert not verdict(swapped, "keeps more of the image") and not verdict(swapped, "what the image means")
    assert not claims(both.assign(label_agreement=math.nan))["claim"].str.contains("means").any()
