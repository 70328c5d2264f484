"""A run that is planned: what is known of it before it is trained."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import Plan
from wsm_jax.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of one seed. It has of :class:`wsm_jax.Run` what is known before there is one.

    Attributes:
      name: in the experiment.
      seed: of its configuration.
      path: its run directory.
      config: its whole configuration.
      parent: the run that it is branched from, if it is.
      branch_step: where.
      params_from: the arm with whose parameters it starts; "": none.
    """

    name: str
    seed: int
    path: Path
    config: Config
    parent: "PlannedRun | None" = None
    branch_step: int | None = None
    params_from: str = ""

    @functools.cached_property
    def plan(self) -> Plan:
        """Its durations in steps."""
        return plan_lib.plan(self.config)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of what run.json will say, the step of the branch."""
        return {"branch_step": self.branch_step}

    @property
    def merge_stream(self) -> Path:
        """Folder of the checkpoints that are merged."""
        return run_lib.merge_stream(self.path)

    @property
    def branch_from(self) -> str:
        """``RUN@STEP``, or ""."""
        return f"{self.parent.path}@{self.branch_step}" if self.parent else ""

    @property
    def lineage(self) -> list["PlannedRun"]:
        """The runs whose checkpoints lie on one path of the parameters that ends with this one, oldest first.

        Other parameters than the parent's begin a path.
        """
        before = self.parent.lineage if self.parent and not self.params_from else []
        return [*before, self]
