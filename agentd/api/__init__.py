"""The control API: HTTP on a unix socket, for agentctl. Knows the daemon by ``daemon.ports.Control`` only."""
