"""How a batch is divided: into groups that BatchNorm normalises apart, and those among processes and parts.

A batch of B images is cut in G contiguous groups, as equal as can be: group g holds images g*B//G .. (g+1)*B//G. A
process takes whole groups, and where it accumulates, each part takes whole groups of the process's own. So neither B
nor G has to be a multiple of anything, and what a group holds does not depend on the number of processes or parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from dic3l.config import Config
from dic3l.errors import ConfigError


@dataclass(frozen=True)
class Division:
    """A batch of `images` in `groups`, over `ranks` processes that take their share in `parts`."""

    images: int
    groups: int
    ranks: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.groups // self.ranks < self.parts:
            told = "" if self.parts == 1 else f", each of which takes {self.parts} parts (train.accumulate)"
            raise ConfigError(
                f"method.bn_groups: expected at least one for each of the {self.ranks} processes{told}, found "
                f"{self.groups}; raise it, or start fewer processes"
            )

    def _groups_of(self, rank: int, part: int) -> tuple[int, int]:
        first, last = rank * self.groups // self.ranks, (rank + 1) * self.groups // self.ranks
        own = last - first
        return first + part * own // self.parts, first + (part + 1) * own // self.parts

    def _start(self, group: int) -> int:
        return group * self.images // self.groups

    def rows(self, rank: int) -> slice:
        """The images of the batch that a process holds."""
        return slice(self._start(rank * self.groups // self.ranks), self._start((rank + 1) * self.groups // self.ranks))

    def counts(self) -> list[int]:
        """Images of each process."""
        return [rows.stop - rows.start for rows in map(self.rows, range(self.ranks))]

    def part_rows(self, rank: int, part: int) -> slice:
        """The images of a part, among those of its process."""
        first, last = self._groups_of(rank, part)
        offset = self.rows(rank).start
        return slice(self._start(first) - offset, self._start(last) - offset)

    def group_sizes(self, rank: int, part: int) -> tuple[int, ...]:
        """Images of each group of a part."""
        first, last = self._groups_of(rank, part)
        return tuple(self._start(group + 1) - self._start(group) for group in range(first, last))


def division(config: Config, ranks: int = 1) -> Division:
    """Of the batches of a run; ConfigError where `ranks` processes cannot share them."""
    return Division(config.train.batch_size, config.method.bn_groups, ranks, config.train.accumulate)
