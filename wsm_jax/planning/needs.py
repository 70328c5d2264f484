"""What a run takes of each chip, whether it was estimated or compiled."""

import dataclasses
from collections.abc import Mapping

HEADROOM = 0.95  # of the memory; the rest is the runtime's and fragmentation


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes of one chip.

    Attributes:
      how: where the figures are from.
      state: parameters, optimizer, averages.
      temporaries: gradients, activations and what else an update makes and lets go of.
      batch: inputs and targets.
      collectives: axes of the mesh, joined by ``+`` -> bytes that the chip sends along them in an update.
    """

    how: str
    state: int
    temporaries: int
    batch: int
    collectives: Mapping[str, float]

    @property
    def total(self) -> int:
        """Arguments and temporaries."""
        return self.state + self.temporaries + self.batch
