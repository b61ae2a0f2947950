"""What the processes share: framing, the facts protocol, peer credentials, descriptors, config reading, logging set-up.

May be used by all rooms but ``keeper``, ``ctl`` and ``sdk``; may use ``errors``, ``model``, the standard library,
structlog and pydantic.
"""
