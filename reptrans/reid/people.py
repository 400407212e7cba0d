"""Images of people: who, by which camera, and where the joints are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reptrans.errors import BadData, ShapeMismatch
from reptrans.matching import above_0


@dataclass(frozen=True, eq=False)
class People:
    """n images of people.

    `images` (n, 3, h, w) uint8; `identities` (n,) int64; `cameras` (n,) int64; `landmarks` (n, j, 2): row and column of
    each joint in pixels, the centre of the first pixel at 0, NaN where a joint is not seen; None where nobody knows.
    Raises ShapeMismatch, BadData.
    """

    images: Tensor
    identities: Tensor
    cameras: Tensor
    landmarks: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ShapeMismatch(f"images are {_described(self.images)}; they must be (n, 3, h, w) uint8.")
        for name in ("identities", "cameras"):
            if getattr(self, name).shape != (n,):
                raise ShapeMismatch(f"there are {n} images, but {name} are {tuple(getattr(self, name).shape)}.")
        if self.landmarks is not None and (self.landmarks.ndim != 3 or self.landmarks.shape[::2] != (n, 2)):
            raise ShapeMismatch(f"landmarks are {tuple(self.landmarks.shape)}; they must be ({n}, joints, 2).")
        if n == 0:
            raise BadData("there are no images of people.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.images.shape[2:])

    @property
    def joints(self) -> int:
        """How many landmarks an image has, 0 where they are unknown."""
        return 0 if self.landmarks is None else self.landmarks.shape[1]

    def select(self, index: Tensor) -> "People":
        """The images at `index`, positions or a mask (n,)."""
        fields = (self.images, self.identities, self.cameras, self.landmarks)
        return People(*(None if field is None else field[index] for field in fields))


@dataclass(frozen=True)
class Reid:
    """A re-identification data set: people to learn from, and queries and a gallery of people never seen before."""

    name: str
    train: People
    query: People
    gallery: People


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images as numbers in [-1, 1], what the networks see and the generator makes."""
    return images.to(dtype) / 127.5 - 1


def pose_maps(landmarks: Tensor, size: tuple[int, int], sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """One map for each joint, exp(-d^2 / (2 sigma^2)) with d the distance from the joint in pixels: (n, j, h, w).

    `landmarks` (n, j, 2), rows and columns; the map of a joint that is not seen (NaN) is 0. Raises BadValue.
    """
    above_0(" (pixels)", sigma=sigma)
    rows, columns = (torch.arange(n, dtype=dtype, device=landmarks.device) for n in size)
    r, c = landmarks.to(dtype).unbind(2)
    r, c = ((axis - at[..., None]).square() / (-2 * sigma**2) for axis, at in ((rows, r), (columns, c)))
    return (r[..., :, None] + c[..., None, :]).exp().nan_to_num(0.0)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
