"""One rule for every resized image: the shorter side to the size wanted, then the centre square."""

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate


def covering(h: int, w: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """For an image of (h, w): the (height, width) that just covers a square of `size`, and the square's (top, left)."""
    height, width = (max(size, round(side * size / min(h, w))) for side in (h, w))
    return (height, width), ((height - size) // 2, (width - size) // 2)


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 images (n, c, h, w) as (n, c, size, size), bilinear with antialiasing; as they are if `size` is None."""
    if size is None or images.shape[2:] == (size, size):
        return images
    larger, (top, left) = covering(*images.shape[2:], size)
    images = interpolate(images, larger, mode="bilinear", antialias=True)
    return images[:, :, top : top + size, left : left + size].contiguous()


def resized_picture(image: Image.Image, size: int) -> Image.Image:
    """The same for one Pillow image: Pillow resizes without the lock, so that threads can share the work."""
    if image.size == (size, size):
        return image
    (height, width), (top, left) = covering(image.height, image.width, size)
    box = (left, top, left + size, top + size)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop(box)
