"""Lines of a local text file as token ids: padded batches with a mask that says which tokens are the example's."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from reptrans.data.folder import Parts
from reptrans.data.loader import Batch, Loader
from reptrans.data.split import Limited, a_fifth
from reptrans.errors import BadData, BadValue, NotAvailable, check_whole, choose
from reptrans.paths import expanded

BYTES = 256  # ids 0 to 255 are the bytes of the text, this one is padding
TEXT_OPTIONS = ("tokenizer", "length")


@dataclass(frozen=True, eq=False, repr=False)
class Texts(Limited):
    """Ids (n, longest) int64 filled up with padding, the number of tokens (n,) of each line, and labels (n,) int64."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Texts({len(self)} lines of up to {self.shape[0]} tokens)"

    @property
    def shape(self) -> tuple[int]:
        """The shape of one line: (longest,)."""
        return tuple(self.ids.shape[1:])

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (1 for tokens, 0 for padding), int64 (b, the longest of these lines)."""
        lengths = self.lengths[index]
        places = torch.arange(int(lengths.max()))
        mask = (places < lengths[:, None]).long()
        return {"input_ids": self.ids[index, : len(places)], "attention_mask": mask}

    def select(self, index: Tensor) -> "Texts":
        """The lines at `index` (int64 positions), in that order."""
        return Texts(self.ids[index], self.lengths[index], self.labels[index])


class TextLoader(Loader):
    """Iterates over Batches of Texts whose `images` are the mapping that `Texts.batch` gives, for `net(**images)`.

    Raises BadValue for an augmentation, which text has none of, and as Loader does.
    """

    def _check_split(self) -> None:
        if self._kinds:
            raise BadValue(f'augment is {self.augment!r}, but text cannot be augmented; choose "none".')

    def _batches(self, epoch: int) -> Iterator[Batch]:
        for index in self.order(epoch).split(self.batch_size)[: len(self)]:
            inputs = {name: value.to(self.device) for name, value in self.split.batch(index).items()}
            yield Batch(inputs, self.split.labels[index].to(self.device), index.to(self.device))


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Lines to fit, lines to test, the names of their classes, and how many ids there are (a network's vocab_size)."""

    name: str
    train: Texts
    test: Texts
    classes: tuple[str, ...]
    vocabulary: int
    multi_label = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def form(self) -> dict[str, object]:
        """What `models.build` is told, to make a network for text: nothing."""
        return {}

    def loader(self, part: str = "train", batch_size: int = 128, **settings) -> TextLoader:
        """A TextLoader of the "train" or "test" part; `settings`: shuffle, seed, drop_last, device."""
        lines = choose(part, {"train": self.train, "test": self.test}, "a data set has no part {}")
        return TextLoader(lines, batch_size, mean=(), std=(), **settings)

    def __getattr__(self, name: str):
        if name in ("channels", "image_size", "mean", "std"):
            raise BadValue(
                f"{self.name} is text, which has no {name}: it is for reading networks (compare, record), not for what "
                "needs images."
            )
        raise AttributeError(name)


def load_text(
    path: Path, split_seed: int, *, tokenizer: str | Path | None = None, length: int = 512
) -> tuple[Parts, int]:
    """The lines of a UTF-8 file, a fifth of every class to test, and the size of the vocabulary.

    A line is an example; after a tab, which all lines have or none, comes its class. Without classes all lines are of
    one, "line". Blank lines are left out. `tokenizer`: a tokenizer.json or its folder, read by the library tokenizers,
    special tokens included; None: the bytes of the text. A line of more than `length` tokens is cut there.
    Raises BadData, BadValue, NotAvailable without tokenizers.
    """
    check_whole("length", length, 1, of=" of tokens")
    lines, labels, classes = _read(path)
    ids, padding, vocabulary = _bytes(lines, length) if tokenizer is None else _tokens(lines, Path(tokenizer), length)
    if not all(ids):
        raise BadData(f"{path}: no token is left of the text {lines[ids.index([])]!r}. Delete the line.")
    padded = torch.full((len(ids), max(map(len, ids))), padding)
    for row, line in zip(padded, ids, strict=True):
        row[: len(line)] = torch.tensor(line)
    whole = Texts(padded, torch.tensor([len(line) for line in ids]), torch.tensor(labels))
    numbered = {name: (whole.labels == k).nonzero().flatten().tolist() for k, name in enumerate(classes)}
    parts = a_fifth(numbered, split_seed, "line", lambda i: f"{lines[i][:60]!r} in {path}")
    train, test = (torch.tensor(sorted(chain.from_iterable(part.values()))) for part in parts)
    return Parts(whole.select(train), whole.select(test), classes), vocabulary


def _read(path: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The texts, their labels, and the sorted names of the classes."""
    try:
        rows = [
            (n, row.rstrip("\r")) for n, row in enumerate(path.read_text("utf-8-sig").split("\n"), 1) if row.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as UTF-8 text ({error}).") from error
    if not rows:
        raise BadData(f"{path} has no lines of text. Put one example on each line.")
    if not any("\t" in row for _, row in rows):
        return [row for _, row in rows], [0] * len(rows), ("line",)
    for number, row in rows:
        if not all(part.strip() for part in row.rpartition("\t")[::2]):
            raise BadData(
                f"line {number} of {path} is not a text, a tab and a class, as other lines are: {row[:60]!r}."
            )
    texts, _, names = zip(*(row.rpartition("\t") for _, row in rows), strict=True)
    classes = tuple(sorted({name.strip() for name in names}))
    return list(texts), [classes.index(name.strip()) for name in names], classes


def _bytes(lines: list[str], length: int) -> tuple[list[list[int]], int, int]:
    return [list(line.encode()[:length]) for line in lines], BYTES, BYTES + 1


def _tokens(lines: list[str], place: Path, length: int) -> tuple[list[list[int]], int, int]:
    """The ids of each line, the padding's id, and the number of ids."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise NotAvailable("tokenizer= needs tokenizers. Install it: pip install 'reptrans[hf]'.") from error
    place = expanded(place, "tokenizer")
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise BadData(
            f"{file} cannot be read as a tokenizer ({error}). Give a tokenizer.json, or the folder that has it."
        ) from error
    padding = (found.padding or {}).get("pad_id")
    named = (found.token_to_id(token) for token in ("[PAD]", "<pad>", "<|endoftext|>"))
    padding = next((i for i in (padding, *named) if i is not None), 0)
    found.no_padding()
    found.enable_truncation(length)
    return [line.ids for line in found.encode_batch(lines)], padding, max(found.get_vocab().values()) + 1
