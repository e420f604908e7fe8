"""Random crop and horizontal flip of a whole batch of uint8 images at once."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, *, padding: int) -> Tensor:
    """Pad each image with zeros, cut a window of its own size out of it, and mirror it where asked.

    out[i] = mirror_if(flips[i], pad(images[i])[:, dy_i : dy_i + H, dx_i : dx_i + W])

    Args:
        images: (batch, channels, H, W), any dtype.
        offsets: (batch, 2) int64, (dy, dx) in 0..2*padding.
        flips: (batch,) bool.
        padding: Zeros on every side, in pixels.

    Returns:
        (batch, channels, H, W), a new tensor.
    """
    height, width = images.shape[-2:]
    padded = pad(images, (padding,) * 4)
    # A view of all windows: (batch, channels, dy, dx, H, W); one index picks each image's own.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    cropped = windows[rows, :, offsets[:, 0], offsets[:, 1]]
    return torch.where(flips[:, None, None, None], cropped.flip(-1), cropped)
