"""The channel's clients that we ship, and the one named in AGENTD_CHANNEL_AGENT, against the real router."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.router.channel_conformance import ChannelConformance

_PLAIN = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).with_name('plain_agent.py')))}"


class TestPlainAgent(ChannelConformance):
    """A client in plain Python, or the program named in the environment."""

    @pytest.fixture
    def command(self) -> list[str]:
        """Its command line."""
        return shlex.split(os.environ.get("AGENTD_CHANNEL_AGENT", _PLAIN))


class TestSecondClient(ChannelConformance):
    """The client that was written from CHANNEL.md alone."""

    @pytest.fixture
    def command(self) -> list[str]:
        """Its command line."""
        return [sys.executable, str(Path(__file__).with_name("second_client.py"))]
