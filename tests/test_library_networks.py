"""Networks of timm and transformers by name: seeds, images, weights from safetensors alone, messages."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from reptrans.errors import BadCheckpoint, BadValue, NotAvailable, ReptransError, UnknownName
from reptrans.layers import cuttable_layers, end, front
from reptrans.layers.cut import same
from reptrans.layers.network import run
from reptrans.layers.values import answer
from reptrans.models import build

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TYPES = {
    "hf/bert": SMALL,
    "hf/gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "hf/llama": SMALL | {"num_key_value_heads": 2},
    "hf/vit": SMALL | {"patch_size": 8},
    "hf/swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "hf/convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}
NAMES = {"timm/test_resnet": {}, "timm/test_vit": {}, "timm/test_convnext": {}, "timm/test_efficientnet": {}} | TYPES


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys.modules["huggingface_hub"].constants, "HF_HUB_OFFLINE", True)


def message(error, name, **arguments) -> str:
    with pytest.raises(ReptransError) as raised:
        build(name, **arguments)
    assert raised.type is error
    return str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, other = (build(name, seed=seed, image_size=64, **NAMES[name]) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_default_dtype() == torch.float32
    torch.rand(7)
    again = build(name, seed=3, image_size=64, **NAMES[name]).state_dict()
    assert first.training and all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    assert {value.dtype for value in first.state_dict().values() if value.is_floating_point()} == {torch.float32}
    matrices = [key for key, value in first.state_dict().items() if value.ndim > 1 and value.unique().numel() > 9]
    assert matrices and not any(torch.equal(again[key], other.state_dict()[key]) for key in matrices)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("hf/bert", "hf/gpt2", "hf/llama")])
def test_images_of_any_size_and_channels_give_logits(name):
    for size, channels in ((64, 1), (96, 3)):
        net = build(name, num_classes=7, in_channels=channels, image_size=size, **NAMES[name]).eval()
        with torch.no_grad():
            assert answer(net(torch.rand(2, channels, size, size))).shape == (2, 7)
    oblong = build("timm/test_vit", image_size=(64, 96)).eval()
    assert oblong(torch.rand(1, 3, 64, 96)).shape == (1, 10)


@pytest.mark.parametrize("name", ["hf/bert", "hf/gpt2", "hf/llama"])
def test_text_gets_the_base_network_without_a_head(name):
    net = build(name, vocab_size=257, **TYPES[name]).eval()
    ids = torch.randint(0, 257, (2, 5), generator=torch.Generator().manual_seed(0))
    out = net(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert out.last_hidden_state.shape == (2, 5, 32) and not hasattr(net, "classifier")


@pytest.mark.parametrize(
    ("module", "name", "extra"), [("timm", "timm/resnet18", "timm"), ("transformers", "hf/bert", "hf")]
)
def test_a_missing_library_is_named_with_its_extra(module, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert message(NotAvailable, name) == (
        f"{name} needs {module}, which cannot be imported (import of {module} halted; None in sys.modules). Install "
        f"it: pip install 'reptrans[{extra}]'."
    )


def test_wrong_names_and_options_of_timm():
    import timm

    count = len(timm.list_models())
    found = message(UnknownName, "timm/test_resnett")  # the near names are those of a version
    assert found.startswith("timm has no network 'test_resnett'. Did you mean ") and "'test_resnet'" in found
    assert found.endswith(f"? timm.list_models() lists all {count} of them.")
    # What timm itself would fetch code's configuration for, or read from a folder.
    for source in ("hf_hub:timm/test_vit.r160_in1k", "hf-hub:any/thing", "local-dir:folder"):
        assert message(UnknownName, f"timm/{source}").startswith("timm has no network ")
    assert message(UnknownName, "timm/test_vit.none") == (
        "timm/test_vit has no weights 'none'. Weights: default, r160_in1k"
    )
    assert message(UnknownName, "timm/test_vit", weights="r161_in1k") == (
        "timm/test_vit has no weights 'r161_in1k'. Did you mean 'r160_in1k'? Weights: default, r160_in1k"
    )
    assert message(BadValue, "timm/test_vit", image_size=40) == (
        "timm/test_vit cannot be made for images of 40 x 40 pixels with in_chans=3, num_classes=10: Input height (40) "
        "should be divisible by patch size (16). Its usual images are 3 x 160 x 160."
    )
    for option in ("pretrained", "pretrained_cfg", "checkpoint_path"):
        assert message(BadValue, "timm/test_resnet", **{option: "x"}) == (
            f'timm/test_resnet takes no {option}: trained weights are asked for by weights="default" or a tag.'
        )
    assert message(BadValue, "timm/test_resnet", depth=3) == (
        "timm/test_resnet cannot be made for images of 32 x 32 pixels with in_chans=3, num_classes=10, depth=3: "
        "ResNet.__init__() got an unexpected keyword argument 'depth'. Its usual images are 3 x 160 x 160."
    )


def test_weights_of_timm_are_safetensors_for_their_own_classes_and_channels(tmp_path, monkeypatch):
    import huggingface_hub

    source = build("timm/test_resnet", num_classes=1000, seed=9)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name, weights in (("timm/test_resnet", "default"), ("timm/test_resnet", "r160_in1k"),
                          ("timm/test_resnet.r160_in1k", "default")):  # fmt: skip
        loaded = build(name, weights=weights).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")] * 3
    assert message(BadValue, "timm/test_resnet", weights="default", num_classes=7) == (
        "The weights test_resnet of timm have num_classes=1000, not 7. Leave it out, or use weights=None for fresh "
        "weights."
    )
    assert message(BadValue, "timm/test_resnet", weights="default", in_channels=1) == (
        "The weights test_resnet of timm have in_channels=3, not 1. channels=3 of load_dataset repeats grey images, or "
        "use weights=None for fresh weights."
    )
    assert message(NotAvailable, "timm/gcvit_xxtiny", weights="default") == (
        "timm has no weights of timm/gcvit_xxtiny as safetensors, and pickled ones are not loaded, since they may run "
        "code. Choose other weights or another network."
    )
    assert len(asked) == 3


def test_what_cannot_be_fetched_says_what_to_fetch(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = message(NotAvailable, "timm/test_resnet", weights="default")
    assert found.startswith(
        "The weights of timm/test_resnet, model.safetensors of timm/test_resnet.r160_in1k, could not be fetched ("
    )
    assert found.endswith(
        "). Where there is a connection: hf download timm/test_resnet.r160_in1k model.safetensors; then copy the cache "
        f"folder, {tmp_path}."
    )
    assert message(NotAvailable, "hf/bret") == (
        "hf/bret is no type of network, no folder, and no repository in the local cache (LocalEntryNotFoundError). Did "
        "you mean 'bart' or 'beit' or 'bert' or 'ibert' or 'mbart'? weights=\"default\" fetches it. The cache is "
        f"{tmp_path}."
    )


def test_networks_larger_than_the_memory_are_refused_before_it_is_taken(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr("reptrans.models.library.os.sysconf", pages.get)
    assert message(BadValue, "hf/llama") == (
        "hf/llama has 6.6 billion weights, 49 GiB while they are drawn; this machine has 4 GiB. Make it smaller: "
        "hidden_size=..., num_hidden_layers=..."
    )
    assert message(BadValue, "timm/vit_7b_patch16_dinov3") == (
        "timm/vit_7b_patch16_dinov3 has 6.7 billion weights, 50 GiB while they are drawn; this machine has 4 GiB. "
        "Choose a smaller network."
    )


def test_wrong_options_of_transformers():
    assert message(BadValue, "hf/bert", hiden_size=8).startswith(
        "hf/bert has no option 'hiden_size'. Did you mean 'hidden_act' or 'hidden_size'? Its options: "
    )
    for option in ("_attn_implementation", "attn_implementation"):  # which might name code of the hub
        assert message(BadValue, "hf/bert", **{option: "owner/kernel"}).startswith(
            f"hf/bert has no option '{option}'. "
        )
    assert message(BadValue, "hf/bert", hidden_size=7, num_attention_heads=2) == (
        "hf/bert cannot be made with these options: The hidden size (7) is not a multiple of the number of attention "
        "heads (2)"
    )
    assert message(BadValue, "hf/vit", image_size=8, **SMALL) == (
        "hf/vit cannot be made with these options for images (1, 3, 8, 8): Calculated padded input size per channel: "
        "(8 x 8). Kernel size: (16 x 16). Kernel size can't be greater than actual input size"
    )
    assert message(BadValue, "hf/bert", hidden_size="wide").startswith("hf/bert cannot be made with these options: ")
    assert message(BadValue, "hf/vit", weights="default") == (
        "hf/vit is a type of network, without trained weights. Name a folder or a repository that has some: "
        "hf/path/to/folder, hf/OWNER/NAME."
    )
    assert message(UnknownName, "hf/vit", weights="imagenet") == (
        "hf/vit has no weights 'imagenet'. Possible: default, which may fetch them, or None."
    )


# Folders


@pytest.fixture
def folder(tmp_path, capfd):
    net = build("hf/vit", num_classes=4, seed=2, **TYPES["hf/vit"])
    net.save_pretrained(tmp_path / "vit")
    capfd.readouterr()
    return tmp_path / "vit"


def test_a_folder_has_the_weights_of_its_safetensors(folder, monkeypatch, capfd):
    source = build("hf/vit", num_classes=4, seed=2, **TYPES["hf/vit"]).state_dict()
    monkeypatch.chdir(folder.parent)
    for name, more in ((f"hf/{folder}", {}), ("hf/vit", None), ("hf/./vit", {"num_classes": 4, "weights": "default"})):
        if more is None:  # a type comes before a folder of that name
            assert build(name, **TYPES["hf/vit"]).config.num_labels == 10
            continue
        net = build(name, seed=7, **more)
        assert net.training and all(torch.equal(value, source[key]) for key, value in net.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_a_configuration_alone_has_fresh_weights(folder):
    (folder / "model.safetensors").unlink()
    a, b = (build(f"hf/{folder}", num_classes=5, in_channels=1, seed=seed) for seed in (1, 2))
    assert not torch.equal(a.vit.embeddings.cls_token, b.vit.embeddings.cls_token) or not torch.equal(
        a.classifier.weight, b.classifier.weight
    )
    assert answer(a.eval()(torch.rand(2, 1, 32, 32))).shape == (2, 5)
    assert message(BadCheckpoint, f"hf/{folder}", weights="default") == _no_safetensors(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert message(BadCheckpoint, f"hf/{folder}") == _no_safetensors(folder)


def _no_safetensors(folder) -> str:
    return (
        f"{folder} has no weights in safetensors, and pickled ones are not loaded, since they may run code. Fetch them "
        '(weights="default"), or save the network again with save_pretrained of a present transformers.'
    )


def test_a_folder_that_does_not_fit_is_refused(folder):
    name = f"hf/{folder}"
    assert message(BadValue, name, num_classes=3) == (
        f"The weights of {name} have num_classes=4, not 3. Leave it out, or choose a type: hf/vit."
    )
    assert message(BadValue, name, in_channels=1) == (
        f"The weights of {name} have in_channels=3, not 1. channels=3 of load_dataset repeats grey images, or choose a "
        "type: hf/vit."
    )
    found = message(BadCheckpoint, name, hidden_size=64)
    assert found.startswith(f"{folder} has no weights, or none of that shape, for classifier.weight, vit.embeddings.")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    assert message(BadCheckpoint, name) == (
        f"The weights in {folder} cannot be loaded (Error while deserializing header: invalid header length). Replace "
        "them."
    )


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}']
)
def test_broken_and_foreign_configurations_are_refused_and_their_code_is_not_run(text, folder):
    (folder / "config.json").write_text(text)
    (folder / "code.py").write_text("raise SystemExit('this code was run')")
    found = message(BadCheckpoint, f"hf/{folder}")
    assert found.startswith(f"{folder / 'config.json'} is no configuration of a network that transformers itself has (")
    assert found.endswith("). Code that comes with a repository is not run.")


def test_a_kernel_of_the_hub_in_a_configuration_is_not_fetched(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace("{", '{"attn_implementation": "owner/kernel",', 1))
    assert build(f"hf/{folder}").config._attn_implementation in ("sdpa", "eager")


def test_a_folder_without_a_configuration(tmp_path):
    assert message(BadCheckpoint, f"hf/{tmp_path}") == (
        f"{tmp_path} has no config.json. Give a folder that save_pretrained of transformers wrote."
    )


def test_no_layer_of_a_loaded_network_is_random(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

    language = BertForMaskedLM(BertConfig(**SMALL))
    language.save_pretrained(tmp_path / "language")
    net = build(f"hf/{tmp_path / 'language'}")
    assert net.pooler is None  # of which a masked language model has none
    assert torch.equal(net.embeddings.word_embeddings.weight, language.bert.embeddings.word_embeddings.weight)
    ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(tmp_path / "headless")
    assert message(BadCheckpoint, f"hf/{tmp_path / 'headless'}") == (
        f"{tmp_path / 'headless'} has no weights, or none of that shape, for classifier.bias, classifier.weight of "
        "ViTForImageClassification. They would be drawn at random; build what it does hold in a function of your own: "
        "path/to/file.py:function."
    )


def test_a_cached_repository_is_found_and_one_without_weights_refused(folder, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    folder.rename(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    source = build("hf/vit", num_classes=4, seed=2, **TYPES["hf/vit"]).state_dict()
    assert all(torch.equal(value, source[key]) for key, value in build("hf/owner/name").state_dict().items())
    (snapshot / "model.safetensors").unlink()
    assert message(BadCheckpoint, "hf/owner/name") == _no_safetensors(snapshot)


SAMPLE = [
    "timm/levit_128s", "timm/test_byobnet", "timm/test_convnext", "timm/test_mambaout", "timm/test_nfnet",
    "timm/test_vit", "timm/test_vit4", "torchvision/densenet121", "torchvision/googlenet",
    "torchvision/mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5", "torchvision/swin_t", "torchvision/vit_b_32",
    *TYPES,
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
@torch.no_grad()
def test_every_cut_is_exact(name):
    net = build(name, num_classes=5, image_size=64, **NAMES.get(name, {})).eval()
    text = name in ("hf/bert", "hf/gpt2", "hf/llama")
    x = {"input_ids": torch.arange(9)[None], "attention_mask": torch.ones(1, 9).long()} if text else None
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) if x is None else x
    whole, names = run(net, x), cuttable_layers(net, x)
    values, told = front(net, names)(x), (x,) if text else ()
    assert len(names) > 2 and all(same(end(net, n, example=x)(values[n], *told), whole) for n in names)
