"""Where pictures come from, and how they are drawn."""

import matplotlib
import pytest
import torch
from PIL import Image

from reptrans.data import load_dataset
from reptrans.errors import BadData, BadValue, ShapeMismatch, UnknownName
from reptrans.inputs import load_pictures, picture_grid
from reptrans.inputs.image import crops

matplotlib.use("agg")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=10)


def test_numbers_are_test_images(digits):
    found = load_pictures(["3", "0"], digits, 16)
    assert torch.equal(found, digits.test.images[[3, 0]].double() / 255)


def test_photographs_are_squares():
    found = load_pictures(["china", "flower"], None, 32)
    assert found.shape == (2, 3, 32, 32) and 0 <= found.min() and found.max() <= 1
    assert found[0].std() > 0.1 and not torch.equal(found[0], found[1])
    assert load_pictures(["china"], None, None).shape == (1, 3, 224, 224)


def test_files_are_read(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10), (255, 0, 51)).save(path)
    found = load_pictures([str(path)], None, 8)
    assert found.shape == (1, 3, 8, 8)
    assert found[0, :, 4, 4].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_what_cannot_be_had_is_refused(digits, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for given, dataset, error, words in [
        ([], None, BadValue, "no pictures are named"),
        (["5000"], digits, BadValue, "test image 5000 .* digits has 797"),
        (["0"], None, BadValue, "no data set here"),
        (["chine"], None, UnknownName, "Did you mean 'china'"),
        ([str(tmp_path / "text.png")], None, BadData, "cannot be read as an image"),
        (["0", "china"], digits, ShapeMismatch, "not both"),
    ]:
        with pytest.raises(error, match=words):
            load_pictures(given, dataset, 16)


def test_crops_are_parts_of_the_images():
    images = torch.arange(16.0).div(15).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    found = crops(images, 5)
    assert found.shape == (5, 1, 16, 16)
    # Three quarters of the ramp, stretched to the whole width.
    slopes = (found[..., 12] - found[..., 3]) / 9 * 15
    assert torch.allclose(slopes, torch.full_like(slopes, 0.75), atol=0.01)
    assert torch.equal(found, crops(images, 5)) and len(found[:, 0, 0, 8].unique()) > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(channels):
    pictures = {name: torch.rand(4, channels, 5, 5) * 2 - 0.5 for name in ("image", "conv1")}
    figure = picture_grid(pictures, ["trained", "", "as built", ""]).get_figure()
    assert len(figure.axes) == 8
    assert [ax.get_title() for ax in figure.axes[:4]] == ["trained", "", "as built", ""]
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["image", "conv1"]
    shown = torch.as_tensor(figure.axes[5].images[0].get_array())
    expected = pictures["conv1"][1].clamp(0, 1).movedim(0, -1).double()
    assert torch.equal(shown, expected.squeeze(-1) if channels == 1 else expected)
    matplotlib.pyplot.close(figure)
