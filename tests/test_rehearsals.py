"""What an experiment cannot do is said before the first training step, by one of the package's errors."""

import json

import pytest
import torch

from reptrans.errors import BadValue, ReptransError
from reptrans.experiments.atlas import AtlasRun, atlas
from reptrans.experiments.autoencoding import AutoencodingRun, autoencode
from reptrans.experiments.classifier import ClassifierRun
from reptrans.experiments.distillation import DistillationRun, distill_all
from reptrans.experiments.extension import ExtensionRun, extend_all
from reptrans.experiments.invariances import InvariancesRun, invariances, load
from reptrans.experiments.l2t import L2TRun, source_network, tasks, train_all
from reptrans.experiments.merging import MergingRun, train_networks
from reptrans.experiments.model_similarity import ModelSimilarityRun, compare_models
from reptrans.experiments.similarity import SimilarityRun, heat_maps, same_layers
from reptrans.experiments.stitching import StitchingRun, network_pairs
from reptrans.notebook import listed
from reptrans.training import loop

SMALL = {"image_size": 0, "limit": 5}


def extension(p, folder):
    return extend_all(p, p.load(), folder)


def l2t(p, folder):
    learned, dataset = tasks(p)
    return train_all(p, source_network(p, learned), dataset, folder)


def merging(p, folder):
    return train_networks(p, p.load())


def similarity(p, folder):
    return heat_maps(p, p.load())


def distillation(p, folder):
    return distill_all(p, p.load(), folder)


def models(p, folder):
    return compare_models(p, p.load(), folder)


def looking(p, folder):
    return invariances(p, load(p), folder)


def whole_atlas(p, folder):
    return atlas(p, p.load(), lambda name: folder / name)


EXTENSION = (
    ExtensionRun,
    extension,
    SMALL
    | {"model": "cnn3_w4", "conditions": "lin_cka", "layer": "conv2", "report": "conv1,conv2", "seeds": 1, "epochs": 1},
)
L2T = L2TRun, l2t, SMALL | {"source_model": "cnn3_w4", "model": "cnn3_w4", "seeds": 1, "epochs": 1}
MERGING = MergingRun, merging, SMALL | {"model": "cnn3_w4", "teacher": "cnn3_w8", "layers": "bn1:bn1", "pairs": 1}
SIMILARITY = (
    SimilarityRun,
    similarity,
    SMALL | {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "layers": "relu1,relu2", "seeds": 1},
)
DISTILLATION = (
    DistillationRun,
    distillation,
    SMALL
    | {"method": "plain,kd", "teacher": "cnn3_w4", "student": "cnn3_w2", "labelled": 3, "holdout": 1, "images": 50},
)
INVERSION = AutoencodingRun, lambda p, folder: autoencode(p, folder), SMALL | {"model": "cnn3_w4", "steps": 1}
MODELS = ModelSimilarityRun, models, SMALL | {"image_size": 8, "models": "cnn3_w4,cnn3_w2", "judge": "cnn3_w8"}
INVARIANCES = (
    InvariancesRun,
    looking,
    {
        "dataset": "shapes:shape:images=200",
        "image_size": 8,
        "model": "cnn3_w4",
        "layer": "relu2",
        "images": 20,
        "seeds": 1,
    },
)
ATLAS = (
    AtlasRun,
    whole_atlas,
    SMALL
    | {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "layers": "conv1,relu1,conv2,relu2", "student": "cnn3_w2"},
)

WRONG = [
    (EXTENSION, {"layer": "nope"}, "'nope'"),
    (EXTENSION, {"layer": ""}, "no name"),
    (EXTENSION, {"report": "conv1,nope"}, "'nope'"),
    (EXTENSION, {"report": ""}, "no name"),
    (EXTENSION, {"conditions": ""}, "no name"),
    (EXTENSION, {"conditions": "lin_cka,lin_cka"}, "twice"),
    (EXTENSION, {"conditions": "lens,lin_cka", "layer": "nope"}, "'nope'"),
    (EXTENSION, {"mode": "subtraction", "depth": 0}, "depth is 0"),
    (EXTENSION, {"weight": 1e12}, "numbers are taken"),
    (EXTENSION, {"depth": 10**6}, "less than or equal to 100"),
    (EXTENSION, {"model": "no_such"}, "no_such"),
    (L2T, {"source_layers": "relu1,nope"}, "'nope'"),
    (L2T, {"target_layers": "nope"}, "'nope'"),
    (L2T, {"target_layers": ""}, "no name"),
    (L2T, {"methods": ""}, "missing"),
    (L2T, {"methods": "scratch,l2t_ww,scratch"}, "twice"),
    (L2T, {"source_layers": "relu1,relu1"}, "twice"),
    (L2T, {"model": "no_such"}, "no_such"),
    (L2T, {"T": 10**12}, "less than or equal to 1000"),
    (MERGING, {"layers": "bn1:nope"}, "'nope'"),
    (MERGING, {"layers": "nope:bn1"}, "'nope'"),
    (MERGING, {"layers": "bn1:bn1, bn1 : bn1"}, "twice"),
    (MERGING, {"layers": ""}, "no name"),
    (MERGING, {"teacher": "no_such"}, "no_such"),
    (MERGING, {"teacher_checkpoints": "nowhere.pt"}, "nowhere.pt"),
    (SIMILARITY, {"layers": "relu1,nope"}, "'nope'"),
    (SIMILARITY, {"layers": ""}, "no name"),
    (SIMILARITY, {"layers": "relu1,relu1"}, "twice"),
    (SIMILARITY, {"measures": ""}, "no name"),
    (SIMILARITY, {"measures": "rsa,rsa"}, "twice"),
    (SIMILARITY, {"fold": "tokens"}, "token"),
    (SIMILARITY, {"images": 10**12}, "numbers are taken"),
    (DISTILLATION, {"method": ""}, "no name"),
    (DISTILLATION, {"method": "kd,kd"}, "twice"),
    (DISTILLATION, {"options": "kd.temperature=0"}, "above 0"),
    (DISTILLATION, {"options": "kd.temperature=-1"}, "above 0"),
    (DISTILLATION, {"options": "kd.temperature=abc"}, "a number"),
    (DISTILLATION, {"options": "kd.temperature=1e400"}, "a number"),
    (DISTILLATION, {"options": "kd.weight=-0.5"}, "from 0"),
    (DISTILLATION, {"options": "kd.weight=True"}, "a number"),
    (DISTILLATION, {"options": "kd.foo=1"}, "no option 'foo'"),
    (DISTILLATION, {"options": "kd.weight=1,kd.weight=2"}, "twice"),
    (DISTILLATION, {"options": "lsl.pairs=1.5"}, "a whole number"),
    (DISTILLATION, {"options": "nst.everywhere=1"}, "True or False"),
    (DISTILLATION, {"options": "nst.kernel=2"}, "a text"),
    (DISTILLATION, {"method": "nst", "options": "nst.kernel=round"}, "'round'"),
    (DISTILLATION, {"method": "plain,fitnets", "options": "fitnets.share=2"}, "share is 2"),
    (DISTILLATION, {"teacher": "no_such"}, "no_such"),
    (DISTILLATION, {"student": "no_such"}, "no_such"),
    (INVERSION, {"layers": "conv1,nope"}, "'nope'"),
    (INVERSION, {"layers": ""}, "no name"),
    (INVERSION, {"regimes": ""}, "no name"),
    (INVERSION, {"regimes": "trained,round"}, "'round'"),
    (INVERSION, {"regimes": "trained", "weights": "none"}, "leave no network"),
    (INVERSION, {"regimes": "as built,trained", "weights": "nowhere.pt"}, "nowhere.pt"),
    (INVERSION, {"pictures": "3,03"}, "twice"),
    (INVERSION, {"pictures": ""}, "no name"),
    (MODELS, {"models": "cnn3_w4"}, "two names"),
    (MODELS, {"models": "cnn3_w4,cnn3_w4"}, "twice"),
    (MODELS, {"judge": "no_such"}, "no_such"),
    (INVARIANCES, {"layer": "nope"}, "'nope'"),
    (INVARIANCES, {"model": "no_such"}, "no_such"),
    (INVARIANCES, {"dataset": "digits"}, "must be shapes"),
    (INVARIANCES, {"dataset": "shapes:shape:shortcut=colour@1"}, "without a shortcut"),
    (INVARIANCES, {"cue": "shape@1"}, "which the label tells"),
    (INVARIANCES, {"cue": "colour@2"}, "from 0 to 1"),
    (INVARIANCES, {"images": 1000}, "Take fewer"),
    (INVARIANCES, {"start": "nothing"}, "noise"),
    (ATLAS, {"layers": "conv1,relu1,conv2,nope"}, "'nope'"),
    (ATLAS, {"layers": "conv1,relu1,conv2,conv2"}, "twice"),
    (ATLAS, {"student_layers": "relu1,nope"}, "'nope'"),
    (ATLAS, {"student_layers": ""}, "no name"),
    (ATLAS, {"options": "sp.weight=-1"}, "from 0"),
    (ATLAS, {"fold": "tokens"}, "token"),
]


@pytest.mark.parametrize(("experiment", "wrong", "words"), WRONG, ids=[f"{e[0].__name__}-{w}" for e, w, _ in WRONG])
def test_is_refused_before_the_first_step(experiment, wrong, words, monkeypatch, tmp_path):
    kind, run, usual = experiment
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    monkeypatch.setattr(loop, "fit", None)
    monkeypatch.setattr(loop._Loop, "_step", lambda *_: pytest.fail("a training step was taken"))
    with pytest.raises(ReptransError) as caught:
        run(kind(**usual | wrong), tmp_path / "made")
    assert words in str(caught.value)


@pytest.mark.parametrize("seeds", ["", "0,0", "0,00", "1,1,2", "²", "-1", "9" * 20, "1.5"])
def test_seeds_that_are_none_or_are_there_twice(seeds):
    with pytest.raises(BadValue):
        ClassifierRun(init_seeds=seeds)
    assert ClassifierRun(init_seeds="0,7").init_seeds == "0,7"


def test_report_may_leave_out_the_layer_of_the_condition(tmp_path):
    kind, run, usual = EXTENSION
    rows = run(kind(**usual | {"report": "conv1", "images": 50}), tmp_path)
    assert set(rows["layer"]) == {"conv1", "conv2"}


def test_one_network_may_stand_before_several_and_a_pair_but_once(tmp_path):
    from reptrans.checkpoints import save_tensors
    from reptrans.models import build

    paths = [tmp_path / name for name in ("a,b.safetensors", "c.safetensors")]
    for seed, path in enumerate(paths):
        save_tensors(path, dict(build("cnn3_w4", in_channels=1, image_size=8, seed=seed).state_dict()))
    usual = SMALL | {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "layer": "relu2"}
    p = StitchingRun(**usual, front_checkpoint=str(paths[0]), end_checkpoint=listed(paths))
    assert len(network_pairs(p, p.load())) == 2
    twice = p.model_copy(update={"end_checkpoint": listed([paths[1], paths[1]])})
    with pytest.raises(ReptransError, match="is named twice"):
        network_pairs(twice, p.load())
    p = p.model_copy(update={"front_layer": "relu1,relu1", "end_layer": "relu1,bn1"})
    assert len(network_pairs(p, p.load())) == 2
    with pytest.raises(ReptransError, match="^'relu1 and bn1' is named twice"):
        network_pairs(p.model_copy(update={"end_layer": "bn1,bn1"}), p.load())


def test_a_rehearsal_leaves_the_results_as_they_are(monkeypatch, tmp_path):
    kind, _, usual = SIMILARITY
    p = kind(**usual | {"measures": "rsa", "train_epochs": 1, "images": 50})
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = same_layers(p, p.load())
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr("reptrans.experiments.similarity.rehearse", lambda *_: None)
    assert json.loads(same_layers(p, p.load()).to_json()) == json.loads(first.to_json())
