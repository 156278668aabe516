"""Lightning's arguments for processes that are there already."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy

from xraylab.system.processes import Processes


class FixedClusterEnvironment(ClusterEnvironment):
    """Lightning's cluster environment for processes that are started already."""

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.processes.address

    @property
    def main_port(self) -> int:
        return self.processes.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.processes.world

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self.processes.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self.processes.local_rank

    def node_rank(self) -> int:
        return self.processes.rank // self.processes.local_world


def trainer_options(processes: Processes) -> dict[str, Any]:
    """Arguments of a Trainer that make it one of several; new ones for each Trainer."""
    return {"strategy": DDPStrategy(cluster_environment=FixedClusterEnvironment(processes))} if processes.world > 1 else {}
