"""What the ranks of a node take together on CPUs: pages that they share count once.

They are forked from a process that has done the imports, whose pages they keep until they write to them; and the file
of the base model is mapped by all of them, but in memory once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from distft.plan.case import Case
from distft.plan.moments import FILE, moments
from distft.plan.prediction import Moment
from distft.plan.process import code_bytes, imports_bytes


def together(case: Case) -> Iterator[Moment]:
    """At the moments of a run, which all ranks reach together, on the node of rank 0."""
    for each in zip(*(moments(case, rank) for rank in range(case.per_node)), strict=True):
        terms = Counter({"imports": imports_bytes(case)})
        for moment in each:
            terms.update(moment.terms)
        terms["process"] += code_bytes(case, "loading" if each[0].name == "start" else "training")
        if FILE in terms:
            terms[FILE] = max(moment.terms.get(FILE, 0) for moment in each)
        yield Moment(each[0].name, dict(terms))
