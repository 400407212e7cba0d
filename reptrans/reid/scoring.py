"""How good codes are: people found again by them, and how much of the pose a linear map can read off them."""

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from torch import Tensor, nn

from reptrans.errors import BadData, ShapeMismatch, check_whole
from reptrans.reid.people import People, as_floats
from reptrans.training import evaluating

JUNK = -1


def codes_of(encoder: nn.Module, people: People, batch_size: int = 256) -> Tensor:
    """The encoder's codes (n, d) of all images, on the CPU, the network in eval mode meanwhile."""
    place = next(encoder.parameters())
    with evaluating(encoder), torch.no_grad():
        parts = [encoder(as_floats(images.to(place.device), place.dtype)) for images in people.images.split(batch_size)]
    return torch.cat(parts).cpu()


def retrieval(distances: Tensor, query: People, gallery: People) -> dict[str, float]:
    """{"rank1", "mAP", "queries"} of distances (queries, gallery), small for similar codes; the first two in [0, 1].

    For each query the gallery without the images of the same person by the same camera and without junk (identity -1)
    is ordered by distance; among equal distances right ones come last, so that constant codes earn nothing. rank1: the
    share of queries whose first is right. AP: the mean, over the right ones, of (right ones so far) / rank. Queries
    of whom no right one is left do not count. Raises ShapeMismatch; BadData for NaN, or where no query is left.
    Source: Zheng et al. 2015 (Market-1501's protocol). Deviation: their code averages the precision before and after
    each hit, and leaves the order of equal distances to the sort.
    """
    if distances.shape != (len(query), len(gallery)):
        raise ShapeMismatch(
            f"distances are {tuple(distances.shape)}, for {len(query)} queries and {len(gallery)} images."
        )
    if distances.isnan().any():
        raise BadData("some distances are NaN. Has the encoder diverged?")
    same = query.identities[:, None] == gallery.identities
    left = ~(same & (query.cameras[:, None] == gallery.cameras)) & (gallery.identities != JUNK)
    found = [_first_and_precision(d[k], s[k]) for d, s, k in zip(distances, same, left, strict=True) if s[k].any()]
    if not found:
        raise BadData("no query has an image of the same person by another camera in the gallery.")
    rank1, precision = np.mean(found, 0).tolist()
    return {"rank1": rank1, "mAP": precision, "queries": len(found)}


def find_again(encoder: nn.Module, query: People, gallery: People) -> dict[str, float]:
    """`retrieval` by the Euclidean distance of the encoder's codes."""
    return retrieval(torch.cdist(codes_of(encoder, query), codes_of(encoder, gallery)), query, gallery)


def pose_r2(encoder: nn.Module, people: People, folds: int = 5) -> float:
    """How well a ridge regression reads a person's pose off the codes of persons it has not seen: mean R^2.

    Codes and joints' coordinates are taken as differences from their means over each person's images, for who somebody
    is should tell nothing here. Persons are dealt to `folds` groups, 3 or more; each group's images are predicted by a
    regression on the others' codes, of mean square 1, whose penalty, from 10⁻⁴ to 10⁶, is the best for persons
    among these that it was not fitted on. (Not for single images: one is the sum of the same person's others, with the
    sign reversed.) R^2 is over all images, averaged over coordinates: 1, all of the pose can be read; 0 or less, none.
    Give people whom the encoder was not trained on either. Images that lack a joint are left out.
    Raises BadData where there are no landmarks, or too few persons with two such images; BadValue.
    """
    check_whole("folds", folds, 3)
    if people.landmarks is None:
        raise BadData("the images have no landmarks, so there is no pose to read. Give a file of landmarks.")
    people = people.select(~people.landmarks.isnan().flatten(1).any(1))
    _, who, counts = people.identities.unique(return_inverse=True, return_counts=True)
    if (counts > 1).sum() < folds:
        raise BadData(
            f"{int((counts > 1).sum())} persons have two images with all joints; {folds} folds need as many at least."
        )
    codes = _from_means(codes_of(encoder, people).double(), who).numpy()
    joints = _from_means(people.landmarks.flatten(1).double(), who).numpy()
    # One scale for all of them: a feature that hardly ever says anything stays small.
    codes, who, found = codes / (np.sqrt(np.mean(codes**2)) or 1.0), who.numpy(), np.zeros_like(joints)
    for others, these in GroupKFold(folds).split(codes, groups=who):
        search = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 6, 11)}, cv=GroupKFold(folds - 1))
        found[these] = search.fit(codes[others], joints[others], groups=who[others]).predict(codes[these])
    return float(r2_score(joints, found))


def _first_and_precision(distances: Tensor, same: Tensor) -> tuple[float, float]:
    """(1 if the nearest is right else 0, average precision) for one query."""
    order = np.lexsort((same.numpy(), distances.numpy()))
    hits = same.numpy()[order]
    ranks = np.flatnonzero(hits) + 1
    return float(hits[0]), float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def _from_means(values: Tensor, who: Tensor) -> Tensor:
    """`values` (n, d) minus their mean over the rows of the same person, `who` (n,) from 0."""
    sums = values.new_zeros(int(who.max()) + 1, values.shape[1]).index_add(0, who, values)
    return values - (sums / who.bincount()[:, None])[who]
