"""scikit-learn's bundled digits: 1,797 grey 8 x 8 images, the data set that is always there."""

import torch

from metastep.lab.tasks.images import ImageData, ImageStore, as_reconstruction, split_images
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.sources import optional_module

TEST_SIZE = 397


def load_digits(request: Request) -> ImageData:
    """Read the digits, whose pixels have the 17 values 0..16."""
    bunch = optional_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(3)  # (1797, 8, 8, 1)
    store = ImageStore(images, torch.from_numpy(bunch.target).long())
    return ImageData(
        splits_by_name=split_images(store, TEST_SIZE, request=request, num_classes=10),
        num_classes=10,
        mean=(4.884,),
        std=(6.017,),
        notes="scikit-learn's bundled digits, 1797 images of 8 x 8 pixels",
    )


def load_digits_to_reconstruct(request: Request) -> ImageData:
    """Read the digits, each of which is its own target."""
    return as_reconstruction(load_digits(request))
