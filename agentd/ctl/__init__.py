"""agentctl: one file per noun. Light imports: start-up time is felt by a person."""
