"""Which rows of a step share a tile of the kernel for adapters. Plain Python."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from phi3_serve.engine.adapters.page_table import Mix


@dataclass(frozen=True, slots=True)
class TileShape:
    """The sizes of ``AdaptedTiles``."""

    rows: int
    tiles: int
    rows_per_tile: int
    pages_per_tile: int

    @property
    def sizes(self) -> list[int]:
        """The integers of the rows, of the number of tiles, and of the tiles."""
        return [self.rows, 1, 4 * self.tiles]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows and tiles as ``AdaptedTiles`` has them."""

    rows: list[int]
    tiles: list[tuple[int, int, int, int]]
    rows_per_tile: int
    pages_per_tile: int

    @property
    def shape(self) -> TileShape:
        """Their sizes without padding."""
        return TileShape(len(self.rows), len(self.tiles), self.rows_per_tile, self.pages_per_tile)

    def integers(self, shape: TileShape) -> list[list[int]]:
        """The parts of a step's integers, padded to ``shape``."""
        rows = self.rows + [0] * (shape.rows - len(self.rows))
        tiles = [number for tile in self.tiles for number in tile]
        return [rows, [len(self.tiles)], tiles + [0] * (4 * shape.tiles - len(tiles))]


def first_pages(mixes: Iterable[Mix], start: int) -> dict[Mix, int]:
    """Where the pages of each different mix begin, if those of the first begin at ``start``."""
    firsts: dict[Mix, int] = {}
    for mix in mixes:
        if mix and mix not in firsts:
            firsts[mix] = start
            start += len(mix)
    return firsts


def tiles_of(mixes: Sequence[Mix], num_rows: Sequence[int], firsts: Mapping[Mix, int], rows_per_tile: int) -> Tiles:
    """The tiles of a batch that has ``num_rows`` rows with each of ``mixes``, one after another."""
    rows_of: dict[Mix, list[int]] = {}
    end = 0
    for mix, count in zip(mixes, num_rows, strict=True):
        first, end = end, end + count
        if mix and count:
            rows_of.setdefault(mix, []).extend(range(first, end))
    rows: list[int] = []
    tiles: list[tuple[int, int, int, int]] = []
    for mix, of_mix in rows_of.items():
        for start in range(0, len(of_mix), rows_per_tile):
            count = min(rows_per_tile, len(of_mix) - start)
            tiles.append((len(rows) + start, count, firsts[mix], len(mix)))
        rows += of_mix
    return Tiles(rows, tiles, rows_per_tile, max((len(mix) for mix in rows_of), default=1))
