"""Pure values and functions. No clock, no I/O, no asyncio, no logging: time is an argument.

May be used by all rooms; may use only ``errors``, the standard library's data modules and pydantic.
"""
