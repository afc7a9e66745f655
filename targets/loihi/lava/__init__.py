"""The second engine for Loihi programs: Intel's lava-nc, in an environment and a process of its own.

``environment`` builds and finds that environment; ``simulate_lava`` runs a program in it and gives a SpikeRecord
equal to ``simulate_fixed``'s. The files in ``worker`` run inside the environment and import nothing of spikeport.
"""

from spikeport.targets.loihi.lava.engine import CONVOLUTIONS, shutdown, simulate_lava
from spikeport.targets.loihi.lava.environment import Status, require, setup, status

__all__ = ["CONVOLUTIONS", "Status", "require", "setup", "shutdown", "simulate_lava", "status"]
