import torch
from hypothesis import given
from hypothesis import strategies as st

from metastep.lab.tasks.images import crop_and_flip


def one_by_one(images, offsets, flips, padding):
    """Pixel by pixel, as the definition says."""
    out = torch.zeros_like(images)
    batch, height, width, channels = images.shape
    for i in range(batch):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    from_y = y + int(offsets[i, 0]) - padding
                    from_x = x + int(offsets[i, 1]) - padding
                    if 0 <= from_y < height and 0 <= from_x < width:
                        from_x = width - 1 - from_x if flips[i] else from_x
                        out[i, y, x, c] = images[i, from_y, from_x, c]
    return out


@given(seed=st.integers(0, 2**32), padding=st.integers(0, 3), height=st.integers(1, 5), width=st.integers(1, 5))
def test_crop_and_flip_is_its_definition_pixel_by_pixel(seed, padding, height, width):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (4, height, width, 2), generator=generator, dtype=torch.uint8)
    offsets = torch.randint(2 * padding + 1, (4, 2), generator=generator)
    flips = torch.randint(2, (4,), generator=generator)
    expected = one_by_one(images, offsets, flips, padding)
    assert torch.equal(crop_and_flip(images, offsets, flips, padding=padding), expected)


def test_the_middle_crop_unflipped_is_the_image():
    images = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    offsets, flips = torch.full((3, 2), 4), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(crop_and_flip(images, offsets, flips, padding=4), images)
