"""The keeper: parent of all processes. Mechanism only, no policy; standard library only.

Others may import ``keeper.plan`` and ``keeper.protocol``, nothing else. See PROTOCOL.md beside this file.
"""
