"""Smaller data sets from larger ones: some classes, few training images, fewer test images."""

from dataclasses import replace

import torch

from reptrans.data import Dataset, Split


def of_classes(dataset: Dataset, kept: range) -> Dataset:
    """The images of some classes in a row, numbered from 0."""

    def part(split: Split) -> Split:
        found = split.select(((split.labels >= kept.start) & (split.labels < kept.stop)).nonzero().flatten())
        return Split(found.images, found.labels - kept.start)

    name = f"{dataset.name}_{kept.start}_{kept.stop - 1}"
    classes = tuple(dataset.classes[k] for k in kept)
    return Dataset(name, part(dataset.train), part(dataset.test), classes, dataset.mean, dataset.std)


def smaller(dataset: Dataset, limit: int = 0, test: int = 0) -> Dataset:
    """The first `limit` training images of each class, and `test` evenly spaced test images; 0 keeps all."""
    if limit:
        dataset = replace(dataset, train=dataset.train.limit(limit, None, dataset.classes))
    if not test or test >= len(dataset.test):
        return dataset
    spaced = torch.linspace(0, len(dataset.test) - 1, test, dtype=torch.float64).round().long()
    return replace(dataset, test=dataset.test.select(spaced))
