"""Which units are restarted when one of a group fails, and in which order. Pure, after OTP's supervisors.

A group is what ``binds_to`` joins, directly or over others. The strategy is that of the unit that failed:

    one_for_one    it alone
    rest_for_one   it, and those of its group that start after it (that depend on it, by whatever relation)
    one_for_all    its whole group

What is bound to a unit that is restarted is always restarted with it: that is what binds_to means. An operator's stop
or restart is no failure and asks for no strategy.
"""

from __future__ import annotations

from typing import Literal

from agentd.model.ordering import start_order
from agentd.model.relations import Relations, reached

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]


def group(name: str, relations: Relations) -> set[str]:
    """The units that binds_to joins with this one, itself included."""
    return reached(name, lambda one: (*relations.of(one).binds_to, *relations.bound(one)))


def restarted(strategy: Strategy, failed: str, relations: Relations) -> list[tuple[str, ...]]:
    """The units that are restarted, the failed one included: generations, in the order in which they start."""
    if strategy == "one_for_all":
        names = group(failed, relations)
    elif strategy == "rest_for_one":
        names = reached(failed, relations.dependants) & group(failed, relations)
    else:
        names = reached(failed, relations.bound)
    return start_order(relations.graph(names))


def stopped(name: str, relations: Relations) -> list[tuple[str, ...]]:
    """The units that an operator's stop of one takes down, itself included: generations, in the order of stopping."""
    return start_order(relations.graph(reached(name, relations.needing)))[::-1]


def started(name: str, relations: Relations) -> list[tuple[str, ...]]:
    """The units that an operator's start of one brings up, itself included: generations, in the order of starting."""
    return start_order(relations.graph(reached(name, lambda one: relations.of(one).needs)))
