"""How rasters are cut into tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bita.scenes.windows import EDGES, Edge, Grid

sizes = st.integers(1, 90)


@given(
    st.tuples(sizes, sizes),
    st.tuples(sizes, sizes),
    st.tuples(sizes, sizes),
    st.sampled_from(EDGES),
)
def test_tiles_lie_inside_in_order_and_leave_nothing_out(
    size: tuple[int, int], window: tuple[int, int], step: tuple[int, int], edge: Edge
) -> None:
    grid = Grid(size, window, step, edge)
    seen = np.zeros(size[::-1], int)
    for number, tile in enumerate(grid):
        assert tile.number == number
        assert 0 <= tile.x < tile.x + tile.width <= size[0]
        assert 0 <= tile.y < tile.y + tile.height <= size[1]
        whole = (tile.width, tile.height) == (min(window[0], size[0]), min(window[1], size[1]))
        assert whole or edge == "pad"
        seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] += 1
    if edge != "drop" and all(one <= other for one, other in zip(step, window, strict=True)):
        assert seen.min() > 0


@pytest.mark.parametrize(
    ("edge", "starts", "last"),
    [("shift", [0, 40, 60], 40), ("pad", [0, 40, 80], 20), ("drop", [0, 40], 40)],
)
def test_the_last_tile_is_shifted_padded_or_left_out(edge: Edge, starts: list[int], last: int) -> None:
    tiles = list(Grid((100, 40), (40, 40), (40, 40), edge))
    assert [tile.x for tile in tiles] == starts
    assert tiles[-1].width == last


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("left", "tiles"), [(1, 3), (2, 3), (3, 4), (255, 4)])
def test_less_than_a_hundredth_of_a_tile_makes_none(edge: Edge, left: int, tiles: int) -> None:
    """256 pixels of 0.3 m on tiles of other metres leave such strips, whose captions say nothing new."""
    grid = Grid((3 * 256 + left, 256), (256, 256), (256, 256), edge)
    assert grid.counts == (3 if edge == "drop" else tiles, 1)
