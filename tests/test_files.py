"""Names of files made from any text, and folders that are none."""

import pytest

from reptrans import paths
from reptrans.checkpoints import read_weights
from reptrans.data import load_dataset
from reptrans.errors import BadValue
from reptrans.files import file_name

ODD = ["a b", "слой", "слои", "x" * 250, "x" * 251, "../up", "a/b", "a_b/", "a:b", ".", "..", "", " ", "-a", ".a"]
ODD += ["a\0b", "a\nb", "\udc80", "a\u0301", "\u00e1", "con?", "*"]


@pytest.mark.parametrize("text", ["conv1", "layer1.0.conv2", "features.3", "digits_0_4", "A=b,c+d-e", "x" * 64])
def test_a_plain_name_stays(text):
    assert file_name(text) == text


def test_any_text_becomes_a_short_name_of_its_own(tmp_path):
    names = [file_name(text) for text in ODD]
    assert len(set(names)) == len(ODD) and names == [file_name(text) for text in ODD]
    for name in names:
        (tmp_path / name).write_text("")
        assert len(name) <= 64 and name.isascii() and name[0] not in ".-"
    assert {path.name for path in tmp_path.iterdir()} == set(names)


@pytest.mark.parametrize("variable", ["REPTRANS_DATA", "REPTRANS_RUNS"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{}/a", "Symlink loop"),
        ("{}/a/below", "Symlink loop"),
        ("~nobody-of-this-name/x", "Could not determine home directory"),
        ("{}/" + "n" * 300, "File name too long"),
    ],
)
def test_folders_that_cannot_be_are_one_clear_error(variable, given, reason, tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    given = given.format(tmp_path)
    monkeypatch.setenv(variable, given)
    with pytest.raises(BadValue) as caught:
        paths.runs_root()
    assert str(caught.value) == (
        f"{variable} is {given!r}, which cannot be used: {reason}. Give a path that is there or can be made."
    )


@pytest.mark.parametrize("given", ["~nobody-of-this-name/a.pt", "a\0b.pt", "n" * 300 + ".pt"])
@pytest.mark.parametrize("door", [read_weights, lambda path: load_dataset(f"folder:{path}"),
                                  lambda path: load_dataset("mnist", path)])  # fmt: skip
def test_doors_say_so_of_a_path_that_cannot_be(door, given):
    with pytest.raises(
        BadValue, match=r"^(a checkpoint|folder|root) is '.*', which cannot be used: .* Give a path that"
    ):
        door(given)


def test_a_path_with_nul():
    with pytest.raises(BadValue, match="root is 'a.*b', which cannot be used: embedded null byte. Give"):
        paths.real("a\0b", "root")
