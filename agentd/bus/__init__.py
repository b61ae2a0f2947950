"""The bus: nats-server as a unit, connection, topology, dead letters. The only owner of nats-py."""
