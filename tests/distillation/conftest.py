"""A student and a teacher of three groups, small enough for a second."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.data import load_dataset
from reptrans.distillation.distill import loaders
from reptrans.distillation.method import Pair
from reptrans.matching import Teacher
from reptrans.models import build


def network(width: int, seed: int) -> torch.nn.Module:
    return build(f"cnn3_w{width}", num_classes=10, in_channels=1, image_size=(8, 8), seed=seed).double()


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits", image_size=None, limit=6)


@pytest.fixture
def pair(digits) -> Pair:
    """A student of width 2 under a teacher of width 4, untrained, on 60 images in batches of 20."""
    return make_pair(digits, 2, 4)


@pytest.fixture
def twins(digits) -> Pair:
    """A student that is equal to its teacher."""
    return make_pair(digits, 4, 4)


def make_pair(digits, student: int, teacher: int, teachers: int = 1) -> Pair:
    loader, _ = loaders(digits, 20, 0, "none", "cpu", torch.float64)
    taught = [Teacher(network(teacher, seed=k).eval(), loader) for k in range(teachers)]
    images = next(iter(loader.plain())).images
    return Pair.of(network(student, seed=0 if student == teacher else 9), taught, images)


@pytest.fixture(scope="session")
def maps():
    """Fixed Gaussian features s1..s3, t1..t3, logits zs, zt, and gradients that public implementations gave."""
    return load_file(Path(__file__).parent.parent / "reference/distillation_maps.safetensors")
