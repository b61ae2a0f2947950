"""What an agent may spawn: the bounds that its unit file gives it, for all of its descendants together."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from agentd.model import quantity
from agentd.model.section import Section

Bytes = Annotated[int, BeforeValidator(quantity.size)]
Cpus = Annotated[float, BeforeValidator(quantity.cpu)]
TokenAllowance = Annotated[quantity.Allowance, BeforeValidator(quantity.token_allowance)]


class Grant(Section):
    """The table ``[agent] may_spawn``. Each bound is on the sum over all descendants; ``offspring`` does the sums."""

    number: int = Field(description="Descendants that may be there at once.", ge=1, le=1000)
    depth: int = Field(1, description="Generations: 1 is children that may not spawn.", ge=1, le=8)
    memory: Bytes | None = Field(None, description="Sum of their limits.memory.", ge=1)
    cpu: Cpus | None = Field(None, description="Sum of their limits.cpu.")
    pids: int | None = Field(None, description="Sum of their limits.pids.", ge=1)
    tokens: TokenAllowance | None = Field(None, description="Sum of their budget.tokens, per window.")
