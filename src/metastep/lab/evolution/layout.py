"""How the parameters of a member lie in its row, so that those of a layer can be added up and moved together.

A layer is a parameter tensor, as in ``SignalSchedule(scope="layer")``. Each begins at a multiple of :data:`PIECE`; what
is left of its last piece stays 0. Sums over layers are then sums over pieces, all of one length, and a small product
with the table that says of which layer a piece is: a handful of operations, however many layers there are.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import one_hot

from metastep.lab.evolution.networks import Network

#: Numbers in a piece: longer ones add up faster, but more is left over behind each bias.
PIECE = 32


class Layout:
    """The rows of a population's parameters, (P, D), with the L layers of each in C pieces.

    Args:
        network: whose parameters.
        piece: numbers in a piece; 1 leaves nothing over.
        like: of the dtype and on the device of the parameters.

    Attributes:
        layers: L.
        width: D, what is left over included.
    """

    def __init__(self, network: Network, piece: int, like: Tensor) -> None:
        self.network, self.piece, self.layers = network, piece, len(network.weights)
        pieces = [-(-weight.size // piece) for weight in network.weights]
        self.width = sum(pieces) * piece
        self._left = [count * piece - weight.size for count, weight in zip(pieces, network.weights, strict=True)]
        self._pieces, self._zeros = pieces, like.new_zeros(0)

    @cached_property
    def _of(self) -> Tensor:
        """The layer of each piece, (C,)."""
        return torch.arange(self.layers).repeat_interleave(torch.tensor(self._pieces)).to(self._zeros.device)

    @cached_property
    def _table(self) -> Tensor:
        """1 where a piece is of a layer, (C, L)."""
        return one_hot(self._of, self.layers).to(self._zeros)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of (P, D) as the parameters, each (P, *shape)."""
        return self.network.split(flat, self.piece)

    def join(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write the parameters, or their gradients, into rows, (P, D), with 0 in what is left over."""
        if len(self._zeros) != len(out):
            self._zeros = out.new_zeros(len(out), self.piece)
        flat = []
        for part, left in zip(parts, self._left, strict=True):
            flat.append(part.flatten(1))
            if left:
                flat.append(self._zeros[:, :left])
        return torch.cat(flat, 1, out=out)

    def sums(self, products: Tensor, *rows: Tensor) -> Tensor:
        """Return sums over layers, (1 + rows, P, L): of the products, (P, D), and of the squares of each of the rows.

        What is not finite in a layer makes its sum NaN, and no other.
        """
        cut = (len(products), -1, self.piece)
        squares = [vector_norm(row.view(cut), dim=-1) ** 2 for row in rows]
        pieces = torch.stack((products.view(cut).sum(-1), *squares))
        finite = pieces.nan_to_num(0, 0, 0)
        spoiled = (finite != pieces).to(pieces)  # counted apart, because 0 times NaN would spread it to all layers
        return torch.where(spoiled @ self._table > 0, torch.nan, finite @ self._table)

    def of_pieces(self, values: Tensor) -> Tensor:
        """The values of layers, (P, L), for each piece, (P, C)."""
        return values.index_select(1, self._of)

    def of_parameters(self, values: Tensor) -> Tensor:
        """The values of layers, (P, L), for each parameter, (P, D)."""
        return self.of_pieces(values).repeat_interleave(self.piece, 1)
