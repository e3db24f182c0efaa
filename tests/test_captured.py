"""Parts of per-row gradients: norms of products and sums, and which modules are affine.

Shape suffixes: B rows, T tokens of a row, S positions, I inputs, O outputs, H and F features,
V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.test_gradnorms import Odd
from trainer.captured import affine, matrix_squares, slopes, table_squares

torch.set_num_threads(1)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    elements=st.sampled_from([1, 30, 10_000]),
    seed=st.integers(0, 99),
)
def test_squares_of_a_matrix(shape: tuple[int, int, int, int], elements: int, seed: int) -> None:
    b, s, i, o = shape
    generator = torch.Generator().manual_seed(seed)
    x_BSI = torch.randn(b, s, i, generator=generator, dtype=torch.float64)
    g_BSO = torch.randn(b, s, o, generator=generator, dtype=torch.float64)
    wanted_B = torch.einsum("bsi,bso->bio", x_BSI, g_BSO).square().sum((1, 2))
    found_B = matrix_squares(x_BSI.float(), g_BSO.float(), elements)
    np.testing.assert_allclose(found_B, wanted_B, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 4), tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_squares_of_an_embedding(rows: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, 4, (rows, tokens), generator=generator)
    grad_BTH = torch.randn(rows, tokens, 3, generator=generator)
    hot_BTV = nn.functional.one_hot(ids_BT, 4).float()
    wanted_B = torch.einsum("btv,bth->bvh", hot_BTV, grad_BTH).square().sum((1, 2))
    np.testing.assert_allclose(table_squares(ids_BT, grad_BTH), wanted_B, rtol=1e-5, atol=1e-6)


def test_norms_are_affine_in_their_weights_and_others_are_not() -> None:
    x_BSF = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    norm = nn.LayerNorm(8)
    assert affine(norm, x_BSF, ["weight", "bias"])
    found = slopes(norm, x_BSF, ["weight", "bias"])
    plain = nn.functional.layer_norm(x_BSF, (8,))
    torch.testing.assert_close(found["weight"], plain)
    torch.testing.assert_close(found["bias"], torch.ones_like(plain))
    assert not affine(Odd(8), x_BSF, ["weight"])
    assert not affine(Rolled(8), x_BSF, ["weight"])


class Rolled(Odd):
    """Linear in its weight, which works on another feature."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).roll(1, -1)
