"""The router process: the only client of the bus. Channels, delivery, attempts by cause."""
