"""Pairs: who is with whom, which targets, the same again from the same seed, and what is refused."""

import pytest
import torch

from reptrans.errors import BadData, BadValue
from reptrans.reid import Pairs, People, pose_maps, stick_figures

PEOPLE = stick_figures(8, 6, 3, height=16).train


def unknown(people: People, landmarks: torch.Tensor | None) -> People:
    return People(people.images, people.identities, people.cameras, landmarks)


def chosen(pairs: Pairs, epoch: int = 0) -> list[torch.Tensor]:
    """first, second, same (n,), target (2, n) of a whole epoch."""
    return [torch.cat(part, -1) for part in zip(*pairs.choose(epoch), strict=True)]


def test_every_image_is_first_once_and_same_says_the_truth():
    first, second, same, _ = chosen(Pairs(PEOPLE, 10))
    assert sorted(first.tolist()) == list(range(30))
    assert torch.equal(PEOPLE.identities[first] == PEOPLE.identities[second], same)
    assert (first != second).all()


@pytest.mark.parametrize(("negatives", "share"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.25)])
def test_share_of_pairs_of_the_same_person(negatives, share):
    pairs = Pairs(PEOPLE, 10, negatives=negatives)
    found = torch.cat([chosen(pairs, epoch)[2] for epoch in range(60)]).double().mean()
    assert abs(found - share) < 0.03


def test_targets_show_the_source_and_are_shared_by_the_same_person():
    first, second, same, target = chosen(Pairs(PEOPLE, 10, negatives=1.0))
    assert torch.equal(PEOPLE.identities[target[0]], PEOPLE.identities[first])
    assert torch.equal(PEOPLE.identities[target[1]], PEOPLE.identities[second])
    assert torch.equal(target[0, same], target[1, same])
    assert len(target[0].unique()) > 10


def test_batches_hold_what_was_chosen():
    pairs = Pairs(PEOPLE, 10, sigma=1.0, dtype=torch.float64)
    (first, second, same, target), batch = pairs.choose(0)[0], next(iter(pairs))
    assert batch.sources.shape == (20, 3, 16, 8) and batch.maps.shape == (20, 6, 16, 8)
    assert torch.equal(((batch.sources + 1) * 127.5).round().byte(), PEOPLE.images[torch.cat([first, second])])
    assert torch.equal(((batch.targets + 1) * 127.5).round().byte(), PEOPLE.images[target.flatten()])
    assert torch.equal(batch.same, same.double()) and torch.equal(batch.index, first)
    peaks = batch.maps[0].flatten(1).argmax(1)
    near = PEOPLE.landmarks[target[0, 0]].round().long()
    assert (peaks // 8 - near[:, 0]).abs().max() <= 1 and (peaks % 8 - near[:, 1]).abs().max() <= 1


def test_pose_maps_are_made_batch_by_batch_and_none_is_kept():
    pairs = Pairs(PEOPLE, 10, sigma=1.0)
    target, batch = pairs.choose(0)[0][3], next(iter(pairs))
    assert torch.equal(batch.maps, pose_maps(PEOPLE.landmarks, PEOPLE.size, 1.0)[target.flatten()])
    kept = [value.numel() for value in vars(pairs).values() if isinstance(value, torch.Tensor)]
    assert max(kept) == PEOPLE.images.numel() < batch.maps.numel() / 20 * len(PEOPLE)


def test_the_same_seed_and_epoch_give_the_same_pairs():
    pairs, again = Pairs(PEOPLE, 10, seed=1), Pairs(PEOPLE, 7, seed=1)
    for epoch in (0, 5):
        assert all(torch.equal(a, b) for a, b in zip(chosen(pairs, epoch), chosen(again, epoch), strict=True))
    assert not torch.equal(chosen(pairs, 0)[0], chosen(pairs, 1)[0])
    assert not torch.equal(chosen(pairs, 0)[1], chosen(Pairs(PEOPLE, 10, seed=2), 0)[1])


def test_passes_count_epochs_and_leave_the_random_state():
    pairs, before = Pairs(PEOPLE, 10), torch.get_rng_state()
    epochs = [torch.cat([batch.index for batch in pairs]) for _ in range(2)]
    assert torch.equal(epochs[1], chosen(pairs, 1)[0])
    assert pairs.epoch == 2 and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "sizes"), [(10, [10, 10, 10]), (7, [7, 7, 7, 7, 2]), (29, [29]), (40, [30])])
def test_a_last_batch_of_one_pair_is_left_out(batch_size, sizes):
    pairs = Pairs(PEOPLE, batch_size)
    assert [len(batch.same) for batch in pairs] == sizes
    assert len(pairs) == len(sizes)


def test_a_person_with_one_image_has_only_different_pairs_and_herself_as_target():
    few = PEOPLE.select(torch.tensor([0, 1, 2, 6]))  # the last one is the only image of person 1
    first, second, same, target = chosen(Pairs(few, 4, negatives=0.0))
    alone = first == 3
    assert not same[alone].any() and same[~alone].all()
    assert second[alone].item() != 3
    assert target[0, alone].item() == 3


def test_no_targets_need_no_landmarks():
    batch = next(iter(Pairs(unknown(PEOPLE, None), 10, targets=False)))
    assert batch.maps is None and batch.targets is None


def test_images_without_landmarks_are_refused_for_targets():
    with pytest.raises(BadData, match="no landmarks, and stages II and III need the pose of every image. Give a file"):
        Pairs(unknown(PEOPLE, None), 10)
    landmarks = PEOPLE.landmarks.clone()
    landmarks[3:5], landmarks[7, 1] = torch.nan, torch.nan
    with pytest.raises(BadData, match="2 of 30 images have no landmark"):
        Pairs(unknown(PEOPLE, landmarks), 10)


def test_people_that_give_no_pairs_are_refused():
    for index in ([0, 1, 2], [0, 6, 12]):
        with pytest.raises(BadData, match="3 images of . persons do not give pairs of both kinds"):
            Pairs(PEOPLE.select(torch.tensor(index)), 4)


def test_bad_numbers_are_refused():
    with pytest.raises(BadValue, match="batch_size is 1"):
        Pairs(PEOPLE, 1)
    with pytest.raises(BadValue, match="negatives is -1"):
        Pairs(PEOPLE, 4, negatives=-1)
    with pytest.raises(BadValue, match="sigma is 0; it must be a number above 0 .pixels."):
        Pairs(PEOPLE, 4, sigma=0)
