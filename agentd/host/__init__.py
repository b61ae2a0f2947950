"""The daemon's view of the operating system: keeper client, plan compiler, staging, capability probes, usage."""
