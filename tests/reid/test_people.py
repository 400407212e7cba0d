"""People: pose maps by formula, generated figures, folders of Market-1501's form, and what is refused."""

import math

import pytest
import torch
from PIL import Image

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.reid import People, as_floats, load_market, pose_maps, read_landmarks, stick_figures


def test_pose_maps_are_gaussians_around_the_joints():
    maps = pose_maps(torch.tensor([[[2.0, 1.0], [0.5, 3.0]]]), (5, 4), 1.5, torch.float64)
    assert maps.shape == (1, 2, 5, 4)
    assert maps[0, 0, 2, 1] == 1
    assert maps[0, 0, 4, 2] == pytest.approx(math.exp(-(2**2 + 1) / (2 * 1.5**2)))
    assert maps[0, 1, 0, 3] == maps[0, 1, 1, 3] == pytest.approx(math.exp(-0.25 / (2 * 1.5**2)))


def test_the_map_of_a_joint_not_seen_is_zero():
    maps = pose_maps(torch.tensor([[[math.nan, math.nan], [1.0, 1.0]]]), (3, 3), 1.0)
    assert not maps[0, 0].any() and maps[0, 1, 1, 1] == 1


def test_pose_maps_refuse_a_sigma_that_is_not_positive():
    with pytest.raises(BadValue, match="sigma is 0"):
        pose_maps(torch.zeros(1, 1, 2), (2, 2), 0)


def test_images_become_numbers_from_minus_one_to_one():
    found = as_floats(torch.tensor([0, 255, 51], dtype=torch.uint8), torch.float64)
    torch.testing.assert_close(found, torch.tensor([-1, 1, -0.6], dtype=torch.float64))


def test_figures_have_the_sizes_of_the_description():
    found = stick_figures()
    assert found.train.images.shape == (28 * 20, 3, 64, 32)
    assert len(found.query) == 12 * 4 and len(found.gallery) == 12 * 16
    assert found.train.landmarks.shape == (28 * 20, 6, 2)


def test_nobody_is_both_learned_from_and_asked_for():
    found = stick_figures(10, 8, 4)
    query, gallery = set(found.query.identities.tolist()), set(found.gallery.identities.tolist())
    assert query == gallery == {6, 7, 8, 9}
    assert set(found.train.identities.tolist()) == set(range(6))
    assert sorted(found.query.cameras.tolist()) == [0] * 8 + [1] * 8


def test_every_query_can_be_answered_by_the_other_camera():
    found = stick_figures(4, 6, 2)
    for who, camera in zip(found.query.identities, found.query.cameras, strict=True):
        assert ((found.gallery.identities == who) & (found.gallery.cameras != camera)).any()


def test_figures_follow_from_the_seed_and_leave_the_random_state():
    before = torch.get_rng_state()
    first, again, other = (stick_figures(4, 6, 2, seed).train for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.images, again.images) and torch.equal(first.landmarks, again.landmarks)
    assert not torch.equal(first.images, other.images)


def test_landmarks_are_where_the_limbs_end():
    """Without clutter, tint and contrast a joint stands out from the grey behind it, and nothing reaches far beyond."""
    people = stick_figures(6, 8, 2, clutter=0, contrast=0.0, tint=0.0, seed=1).train
    at = people.landmarks.round().long()
    corner = people.images[:, :, 0, 0].float()

    def standing_out(row, column):
        here = people.images.float()[torch.arange(len(people))[:, None], :, row, column]
        return ((here - corner[:, None]).abs().amax(2) > 25).float().mean()

    assert standing_out(at[..., 0], at[..., 1]) > 0.8
    # Some pixels aside, for most joints, is only ground.
    aside = at[..., 1] + torch.where(at[..., 1] < 8, 8, -8)
    assert standing_out(at[..., 0], aside) < 0.4
    below = people.landmarks[:, :, 0].amax(1) + 4
    for image, last in zip(people.images.float(), below, strict=True):
        assert (image[:, int(last) :] - 127.5).abs().max() < 40 if last < 63 else True


def test_people_are_told_by_colours_that_keep_in_all_poses():
    people = stick_figures(4, 10, 2, clutter=0, contrast=0.0, tint=0.0).train
    hip = people.landmarks[:, 3].round().long()
    colours = people.images.float()[torch.arange(len(people)), :, hip[:, 0], hip[:, 1]]
    means = torch.stack([colours[people.identities == who].mean(0) for who in (0, 1)])
    within = max(colours[people.identities == who].std(0).max() for who in (0, 1))
    assert (means[0] - means[1]).abs().max() > 2 * within


def test_smaller_figures_are_the_same_ones():
    large, small = stick_figures(4, 6, 2).train, stick_figures(4, 6, 2, height=32).train
    assert small.images.shape[2:] == (32, 16)
    torch.testing.assert_close(small.landmarks * 2, large.landmarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 1}, "held_out is 1 of 6"),
        ({"held_out": 5}, "held_out is 5 of 6"),
        ({"poses": 5}, "take 6 at least"),
        ({"height": 33}, "height is 33"),
        ({"clutter": -1}, "clutter is -1"),
        ({"tint": 2.0}, "tint 2.0"),
    ],
)
def test_figures_refuse(options, message):
    with pytest.raises(BadValue, match=message):
        stick_figures(**({"identities": 6, "poses": 6, "held_out": 2} | options))


def test_people_refuse_what_does_not_fit():
    images, two = torch.zeros(2, 3, 4, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ShapeMismatch, match=r"images are \(2, 3, 4, 2\) float32"):
        People(images.float(), two, two)
    with pytest.raises(ShapeMismatch, match=r"2 images, but cameras are \(1,\)"):
        People(images, two, two[:1])
    with pytest.raises(ShapeMismatch, match=r"landmarks are \(2, 6\); they must be \(2, joints, 2\)"):
        People(images, two, two, torch.zeros(2, 6))
    with pytest.raises(BadData, match="no images"):
        People(images, two, two).select(torch.zeros(2, dtype=torch.bool))


@pytest.fixture
def market(tmp_path):
    """Three folders of 8 x 4 images whose red says which person it is."""
    names = {
        "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c1s1_000001_01.jpg"],
        "query": ["0010_c1s1_000001_00.png"],
        "bounding_box_test": ["-1_c1s1_000401_03.jpg", "0000_c3s2_000001_02.jpg", "0010_c6s2_000001_02.jpg"],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Thumbs.db").write_text("not an image")
        for file in files:
            Image.new("RGB", (4, 8), (10 * abs(int(file.split("_")[0])), 0, 0)).save(tmp_path / folder / file)
    return tmp_path


def test_a_market_folder_is_read_by_its_file_names(market):
    found = load_market(market, (16, 8))
    assert found.train.images.shape == (3, 3, 16, 8)
    assert found.train.identities.tolist() == [2, 2, 7]
    assert found.train.cameras.tolist() == [1, 2, 1]
    assert found.gallery.identities.tolist() == [0, 10]
    assert found.gallery.cameras.tolist() == [3, 6]
    assert found.query.identities.tolist() == [10]
    assert found.query.images[0, 0, 0, 0] == 100
    assert found.train.landmarks is None and found.train.joints == 0


def test_landmarks_are_scaled_with_the_image(market):
    lines = ["name:keypoints_y:keypoints_x", "0002_c1s1_000451_03.jpg: [0, 7, -1]: [3, 0, -1]"]
    (market / "landmarks.csv").write_text("\n".join(lines))
    found = load_market(market, (16, 8), market / "landmarks.csv").train.landmarks
    there = [name.name for name in sorted((market / "bounding_box_train").glob("*.jpg"))]
    first = found[there.index("0002_c1s1_000451_03.jpg")]
    # The first of 8 rows becomes the first two of 16: its centre lies between theirs.
    torch.testing.assert_close(first[:2], torch.tensor([[0.5, 6.5], [14.5, 0.5]], dtype=torch.float64))
    assert first[2].isnan().all()
    assert found[there.index("0007_c1s1_000001_01.jpg")].isnan().all()


def test_landmark_files_that_cannot_be_read_name_the_line(tmp_path):
    path = tmp_path / "landmarks.csv"
    for text, message in [
        ("a.jpg: [1, 2]: [3]", "line 1 of .*'a.jpg"),
        ("a.jpg: [1, 2]", "line 1 of .*expected 'name"),
        ("a.jpg: [1]: [2]\nb.jpg: [1, 2]: [3, 4]", "line 2 of .* has 2 joints, those before it 1"),
        ("a.jpg: [x]: [3]", "line 1"),
        ("name:keypoints_y:keypoints_x\n", "names no image"),
    ]:
        path.write_text(text)
        with pytest.raises(BadData, match=message):
            read_landmarks(path)
    with pytest.raises(BadData, match="there is no file of landmarks"):
        read_landmarks(tmp_path / "missing.csv")


def test_market_folders_refuse(market):
    with pytest.raises(BadData, match="there is no folder .*bounding_box_train"):
        load_market(market / "query")
    (market / "query" / "anna.png").write_bytes(b"")
    with pytest.raises(BadData, match="anna.png is not named like 0002_c1s1_000451_03.jpg"):
        load_market(market)
    (market / "query" / "anna.png").rename(market / "query" / "0001_c1s1_000001_00.png")
    with pytest.raises(BadData, match="0001_c1s1_000001_00.png cannot be read as an image"):
        load_market(market)
    for file in (market / "query").glob("*.png"):
        file.unlink()
    with pytest.raises(BadData, match="query has no images"):
        load_market(market)
