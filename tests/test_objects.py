"""Objects of another kind than a function takes: one error that says what was given and what is possible."""

import math

import pytest
import torch

from reptrans import build
from reptrans.errors import BadData, BadValue
from reptrans.inputs import Pixels, class_logit, noise, optimise_input
from reptrans.inputs.metamers import metamers, stir
from reptrans.inputs.objective import blur, jitter
from reptrans.merging import aligned
from reptrans.merging.interpolate import task_vector, with_task_vectors
from reptrans.similarity import Moments
from reptrans.stitching import Stitch, direct_matching
from reptrans.stitching.relative import inverse_relative, relative

NET, OTHER = (build("cnn3_w2", in_channels=1, image_size=8, num_classes=10, seed=k).eval() for k in range(2))
IMAGES = torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8)
ROWS = torch.arange(40.0).view(10, 4).sin()
LOGIT = class_logit(NET, 1)

WRONG = {
    "rows of nothing": (lambda: relative(None, ROWS), BadData, "x: a tensor, a NumPy array or lists"),
    "rows of NaN": (lambda: relative(ROWS * math.nan, ROWS), BadData, "x: NaN or infinity"),
    "no anchors": (lambda: relative(ROWS, ROWS[:0]), BadValue, "there are no anchors"),
    "anchors of text": (lambda: inverse_relative("a", ROWS), BadData, "the front's anchors: a tensor"),
    "anchors of NaN": (lambda: inverse_relative(ROWS, ROWS / 0), BadData, "the end's anchors: NaN or infinity"),
    "rows for moments": (lambda: direct_matching(ROWS, "ridge"), BadValue, "direct matching takes Moments.*a Tensor"),
    "a ridge of NaN": (
        lambda: direct_matching(Moments(4, 4).update(ROWS, ROWS), "ridge", ridge=math.nan), BadValue, "ridge must be"
    ),
    "no features": (lambda: Moments(0, 4), BadValue, "p is 0; it must be a whole number from 1 on"),
    "features of text": (lambda: Moments(4, "a"), BadValue, "q is 'a'"),
    "sizes for shapes": (lambda: Stitch(3, 5), BadValue, r"shapes of one example's activations; given 3 and 5"),
    "no images": (lambda: aligned(NET, OTHER, None), BadValue, "takes a tensor .* given a NoneType"),
    "no vectors": (lambda: with_task_vectors(NET, None), BadValue, "vectors is a list of task vectors"),
    "one vector": (lambda: with_task_vectors(NET, task_vector(NET, OTHER)), BadValue, "vectors is a list"),
    "a class of text": (lambda: class_logit(NET, "cat"), BadValue, "classes are whole numbers.*given 'cat'"),
    "a function": (lambda: optimise_input(NET, Pixels(IMAGES)), BadValue, "the objective is a .*; give class_logit"),
    "an image by name": (lambda: optimise_input(LOGIT, "cat"), BadValue, "the image is a str; give Pixels"),
    "a number as prior": (lambda: optimise_input(LOGIT, Pixels(IMAGES), prior=3), BadValue, "prior is 3; it is a list"),
    "a shape of text": (lambda: noise(2, "ab"), BadValue, "a size of the images is 'a'"),
    "a size below 0": (lambda: noise(2, (1, -2, 2)), BadValue, "a size of the images is -2"),
    "half a pixel": (lambda: jitter(1.5), BadValue, "pixels is 1.5"),
    "a blur below 0": (lambda: blur(-1.0), BadValue, "sigma is -1.0"),
    "a name for metamers": (lambda: metamers("conv1", IMAGES, IMAGES.flip(0)), BadValue, "a network is a torch.nn"),
    "a name for STIR": (lambda: stir("conv1", IMAGES, IMAGES), BadValue, "a network is a torch.nn"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_of_another_kind(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
