"""Where one triplet is found."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Item:
    """Where one triplet is found.

    Attributes:
        id: the triplet's.
        where: what a user would look for, a file or a row of a list.
    """

    id: str
    where: str

    @property
    def origin(self) -> str:
        """What triplets of one source clip have in common: they go into the same split."""
        return self.id
