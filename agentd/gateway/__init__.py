"""The LLM proxy process: surface, dialects, stream, meter, ledger file, upstreams, credentials."""
