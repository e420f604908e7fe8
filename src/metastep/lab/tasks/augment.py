"""Random crop and horizontal flip of a whole batch of images at once."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, *, padding: int) -> Tensor:
    """Mirror each image where asked, pad it with zeros, and cut a window of its own size out of it.

    out[i] = pad(mirror_if(flips[i], images[i]))[dy_i : dy_i + H, dx_i : dx_i + W]

    Args:
        images: (batch, H, W, channels), any dtype.
        offsets: (batch, 2) int64, (dy, dx) in 0..2*padding.
        flips: (batch,) int64, 1 for a mirrored image and 0 for one as it is.
        padding: Zeros on every side, in pixels.

    Returns:
        (batch, H, W, channels), a new tensor.
    """
    _, height, width, _ = images.shape
    both = pad(torch.stack((images, images.flip(2))), (0, 0, padding, padding, padding, padding))
    # A view of all windows: (flip, batch, dy, dx, channels, H, W); one index picks each image's own.
    windows = both.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[flips, rows, offsets[:, 0], offsets[:, 1]].permute(0, 2, 3, 1)
