"""agentd: a supervisor for fleets of AI agents. This file stays light: the keeper imports it too."""

__version__ = "0.1.0"
