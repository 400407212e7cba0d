"""Text as data: ids, masks, batches, tokenizers, and what a line of a file may be."""

import pytest
import torch

from reptrans.data import TextDataset, load_dataset
from reptrans.errors import BadData, BadValue, NotAvailable, ReptransError
from reptrans.experiments.stitched import Stitching, StitchingSettings
from reptrans.layers import front
from reptrans.training import Plan, train_classifier


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def animals(tmp_path):
    path = tmp_path / "animals.txt"
    path.write_text("".join(f"{'é' * n} of {n}\t{'cat' if n % 2 else 'ant'}\n" for n in range(1, 21)), "utf-8")
    return path


def message(error, *arguments, **settings) -> str:
    with pytest.raises(ReptransError) as raised:
        load_dataset(*arguments, **settings)
    assert raised.type is error
    return str(raised.value)


def test_lines_become_bytes_and_classes(animals):
    found = load_dataset(f"text:{animals}")
    assert isinstance(found, TextDataset) and (found.name, found.classes) == ("animals", ("ant", "cat"))
    assert (found.num_classes, found.vocabulary, len(found.train), len(found.test)) == (2, 257, 16, 4)
    assert found.test.labels.bincount().tolist() == [2, 2]
    lines = {f"{'é' * n} of {n}": n % 2 for n in range(1, 21)}
    for part in ("train", "test"):
        for inputs, labels, _ in found.loader(part, 3):
            for ids, mask, label in zip(*inputs.values(), labels, strict=True):
                assert lines.pop(bytes(ids[mask.bool()].tolist()).decode()) == label
                assert (ids[mask == 0] == 256).all() and mask[: mask.sum()].all()
    assert not lines


def test_batches_are_padded_to_their_own_longest_line(animals):
    (first, *_), longest = list(load_dataset(f"text:{animals}").loader("train", 4)), 0
    assert list(first.images) == ["input_ids", "attention_mask"]
    assert {value.dtype for value in first.images.values()} == {torch.int64}
    for inputs, _, _ in load_dataset(f"text:{animals}").loader("train", 4):
        width = inputs["input_ids"].shape[1]
        assert inputs["attention_mask"].shape == (4, width) and inputs["attention_mask"].sum(1).max() == width
        longest = max(longest, width)
    assert first.images["input_ids"].shape[1] < longest
    assert load_dataset(f"text:{animals}", length=5).train.shape == (5,)


def test_order_follows_from_seed_and_epoch(animals):
    found = load_dataset(f"text:{animals}", split_seed=3)
    loader = found.loader("train", 5, shuffle=True, seed=1)
    orders = [torch.cat([batch.index for batch in loader]).tolist() for _ in range(2)]
    again = [torch.cat([batch.index for batch in loader.over(found.train)]).tolist()]
    assert orders[0] == again[0] != orders[1] and sorted(orders[1]) == list(range(16))
    assert [len(batch.index) for batch in found.loader("train", 5, drop_last=True)] == [5, 5, 5]
    assert torch.equal(load_dataset(f"text:{animals}", split_seed=3).train.ids, found.train.ids)
    assert not torch.equal(load_dataset(f"text:{animals}", split_seed=4).train.ids, found.train.ids)
    assert load_dataset(f"text:{animals}", limit=3, limit_seed=1).train.labels.bincount().tolist() == [3, 3]


def test_lines_without_classes_blank_lines_and_other_ends(tmp_path, data_folder, monkeypatch):
    data_folder.mkdir()
    (data_folder / "plain.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \r\ntwo\r\nthree")
    monkeypatch.chdir(tmp_path)
    found = load_dataset("text:plain.txt")
    assert (found.classes, len(found.train), len(found.test)) == (("line",), 2, 1)
    ids = [*found.train.ids.tolist(), *found.test.ids.tolist()]
    assert {bytes(i for i in row if i < 256) for row in ids} == {b"one", b"two", b"three"}


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "of", "1", "2", "[PAD]"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


def test_a_local_tokenizer_by_folder_or_file(animals, tokenizer):
    for place in (tokenizer, str(tokenizer / "tokenizer.json")):
        found = load_dataset(f"text:{animals}", tokenizer=place)
        assert (found.vocabulary, found.train.shape) == (7, (5,))
        assert {(row[0].item(), row[2].item(), row[4].item()) for row in found.train.ids} == {(1, 3, 2)}
    # Cut, and still closed by the special tokens.
    assert load_dataset(f"text:{animals}", tokenizer=tokenizer, length=3).train.ids.unique(dim=0).tolist() == [
        [1, 0, 2]
    ]
    animals.write_text("of\nof 1\n")
    found = load_dataset(f"text:{animals}", tokenizer=tokenizer)
    assert {row[-1].item() for part in (found.train, found.test) for row in part.ids} == {2, 6}


def test_a_missing_or_broken_tokenizer_is_refused(animals, tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    assert message(BadData, f"text:{animals}", tokenizer=tmp_path) == (
        f"{file} cannot be read as a tokenizer (No such file or directory (os error 2)). Give a tokenizer.json, or the "
        "folder that has it."
    )
    file.write_text("{}")
    assert message(BadData, f"text:{animals}", tokenizer=file).startswith(f"{file} cannot be read as a tokenizer (")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert message(NotAvailable, f"text:{animals}", tokenizer=file) == (
        "tokenizer= needs tokenizers. Install it: pip install 'reptrans[hf]'."
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "{path} has no lines of text. Put one example on each line."),
        (b" \n\n", "{path} has no lines of text. Put one example on each line."),
        (b"a\tx\nb", "line 2 of {path} is not a text, a tab and a class, as other lines are: 'b'."),
        (b"a\tx\n\nb\t", "line 3 of {path} is not a text, a tab and a class, as other lines are: 'b\\t'."),
        (b"\tx\nb\tx", "line 1 of {path} is not a text, a tab and a class, as other lines are: '\\tx'."),
        (b"a\tx\nb\tx\nc\ty", "class 'y' has one line only, 'c' in {path}. A split into train and test needs two."),
        (
            b"\xff\xfe",
            "{path} cannot be read as UTF-8 text ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
            "byte).",
        ),
    ],
)
def test_files_that_are_no_examples_are_refused(content, text, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert message(BadData, f"text:{path}") == text.format(path=path)


def test_what_is_for_images_is_refused(animals, data_folder):
    name = f"text:{animals}"
    for what, value in (("image_size", 32), ("normalise", "mnist"), ("channels", 3)):
        assert message(BadValue, name, **{what: value}) == (
            f"{what} is {value!r}, which is for images; {name} is text. Leave {what} out."
        )
    assert message(BadValue, "digits", tokenizer="here") == (
        "tokenizer is 'here', which is for text:PATH; digits has images. Leave tokenizer out."
    )
    assert message(BadValue, "digits", lenght=3) == (
        "load_dataset has no argument 'lenght'. Did you mean 'length'? Its arguments: root, limit, limit_seed, "
        "split_seed, image_size, normalise, channels, tokenizer, length"
    )
    assert message(BadValue, name, length=0) == "length is 0; it must be a whole number of tokens from 1 on."
    assert message(BadData, "text:nowhere.txt") == (
        f"there is no file 'nowhere.txt', neither here nor in {data_folder}. Name a file of text: text:PATH."
    )
    found = load_dataset(name)
    for what in ("channels", "image_size", "mean"):
        with pytest.raises(BadValue) as raised:
            getattr(found, what)
        assert str(raised.value) == (
            f"animals is text, which has no {what}: it is for reading networks (compare, record), not for what needs "
            "images."
        )
    with pytest.raises(BadValue, match="^augment is 'flip', but text cannot be augmented; choose \"none\".$"):
        found.loader(augment="flip")


def test_masked_tokens_do_not_change_what_a_network_says_of_a_line(animals):
    pytest.importorskip("transformers")
    from reptrans.models import build

    found = load_dataset(f"text:{animals}")
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    net = build("hf/bert", vocab_size=found.vocabulary, **options).eval()
    with torch.no_grad():
        (together,) = [net(**batch.images).pooler_output for batch in found.loader("test", 4)]
        alone = [net(**batch.images).pooler_output for batch in found.loader("test", 1)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_two_small_language_networks_are_compared_layer_by_layer(animals):
    pytest.importorskip("transformers")
    from reptrans.models import build
    from reptrans.similarity import compare

    found = load_dataset(f"text:{animals}")
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    a, b = (build("hf/bert", vocab_size=found.vocabulary, seed=seed, **options) for seed in (0, 1))
    layers = ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    same, other = (compare(a, net, found.loader("train", 4), layers) for net in (a, b))
    assert list(same.index) == list(other.columns) == layers
    assert all(same.loc[name, name] == pytest.approx(1, abs=1e-6) for name in layers)
    assert (other.to_numpy() < 1).all()


class Language(torch.nn.Module):
    """Ids and a mask to one vector for each token, through layers that see one another's tokens only by the mask."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(257, 6)
        self.first = torch.nn.Linear(6, width)
        self.last = torch.nn.Linear(width, 5)

    def forward(self, input_ids, attention_mask):
        h = self.first(self.embed(input_ids)).tanh()
        mean = (h * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return {"last_hidden_state": self.last(h) + mean[:, None, :5]}


def test_networks_of_text_are_stitched_by_least_squares(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{chr(97 + n % 26) * (n % 9 + 1)} {n}\n" for n in range(200)), "utf-8")
    dataset, a, b = load_dataset(f"text:{path}"), Language(7, 0).double(), Language(9, 1).double()
    settings = StitchingSettings(direct="least squares", ridge=0.0, epochs=0, dtype="float64", batch_size=16)
    done = Stitching(a, b, [("embed", "embed"), ("first", "first")], dataset, settings)
    same = Stitching(b, b, [("first", "first")], dataset, settings).stitch("first", "first").rows.iloc[-1]
    assert same["relative_accuracy"] == 1 and same["r2"] == pytest.approx(1)
    for layer in ("embed", "first"):
        row = done.stitch(layer, layer).rows.iloc[-1]
        assert 0 <= row["accuracy"] <= row["end_accuracy"] == 1 and row["front_accuracy"] != row["front_accuracy"]
        x, y = (torch.cat([front(net, layer)(inputs)[inputs["attention_mask"].bool()]
                           for inputs, *_ in dataset.loader("train", 16)]) for net in (a, b))  # fmt: skip
        x, y = (v.detach() for v in (x - x.mean(0), y - y.mean(0)))
        residual = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
        assert row["r2"] == pytest.approx(1 - (residual.square().sum() / y.square().sum()).item())
    with pytest.raises(BadValue, match="solved and not trained: choose epochs=0"):
        Stitching(a, b, [("first", "first")], dataset, StitchingSettings(epochs=1))


class Classifier(torch.nn.Module):
    """Which of two classes a line is of, by its mean byte."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = torch.nn.Embedding(300, 8), torch.nn.Linear(8, 2)

    def forward(self, inputs):
        mask = inputs["attention_mask"][..., None]
        return self.fc((self.embed(inputs["input_ids"]) * mask).sum(1) / mask.sum(1))


def test_a_network_learns_classes_of_text_in_single_precision(animals):
    rows = train_classifier(Classifier(), load_dataset(f"text:{animals}"), Plan(epochs=2), batch_size=4)
    assert rows["train_cross_entropy"].notna().all()
