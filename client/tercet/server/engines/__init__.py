"""Which engine runs each network on this processor: tried for accuracy and speed, chosen, remembered."""

from tercet.server.engines.choice import CHOICES, ENGINES, Trial, choose
from tercet.server.engines.networks import Network, choose_engines, find_networks

__all__ = ["CHOICES", "ENGINES", "Network", "Trial", "choose", "choose_engines", "find_networks"]
