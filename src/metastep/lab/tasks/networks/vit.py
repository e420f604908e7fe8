"""A vision transformer (Dosovitskiy et al. 2021)."""

import torch
from torch import Tensor, nn

from metastep.lab.tasks.networks.transformer import Block


class VisionTransformer(nn.Module):
    """Patches and a class token through transformer blocks with layer norm first; the class token is read out.

    Args:
        num_classes: Outputs.
        channels: Channels of the images.
        size: Height and width of the images.
        patch: Height and width of a patch; divides the size.
        width: Of the tokens and of every block.
        layers: Blocks.
        heads: Attention heads a block; divides the width.

    Raises:
        ValueError: If the patches do not tile the image.
    """

    def __init__(
        self, num_classes: int, *, channels: int, size: int, patch: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide the size {size} of the images, got {patch}.")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, size, size) to (batch, classes)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (batch, patches, width)
        tokens = torch.cat((self.class_token.expand(len(images), -1, -1), patches), 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits
