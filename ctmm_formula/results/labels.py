"""The names of a fit's parameters, one for each thing everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..design.labelled import Design
from ..structures import Structure

METHODS = {"ml": "ML", "reml": "REML", "he": "HE", "robust": "robust moments"}
"""Estimators as texts name them."""

RESERVED = ("shared", "specific", "means", "fixed", "noise", "total", "none", "all")
"""Names with a meaning among random effects and shares of variance."""


@dataclass(frozen=True)
class Labels:
    """Names of fixed effects, the structure's components, the random effects' and the kinship's."""

    fixed: tuple[str, ...]
    donor: tuple[str, ...]
    random: tuple[str, ...]
    genetic: tuple[str, ...] = ()

    @classmethod
    def of(cls, design: Design, structure: Structure) -> Labels:
        """The names in a fit of `design` under `structure`."""
        names = component_names(structure.labels, design.names, design.random_names)
        count = len(structure.labels)
        genetic = component_names(design.genetic_names, (*design.names, *names), ())
        return cls(tuple(design.names), names[:count], names[count:], genetic)

    @property
    def components(self) -> list[str]:
        """Of all variance components."""
        return [*self.donor, *self.random, *self.genetic]

    @property
    def params(self) -> list[str]:
        """Of all parameters, in their order."""
        return [*self.fixed, *self.components]


def component_names(
    labels: Sequence[str], fixed: Sequence[str], random: Sequence[str]
) -> tuple[str, ...]:
    """Names of the variance components: the structure's labels, then the random effects.

    A label that is the name of a fixed effect as well becomes ``var(label)``, a random effect
    whose name is taken ``random(name)``.

    >>> component_names(["hom", "V[T]"], ["Intercept", "hom"], ["batch", "hom"])
    ('var(hom)', 'V[T]', 'batch', 'random(hom)')
    """
    out: list[list[str]] = [[], []]
    kinds = ("var", labels, fixed), ("random", random, (*RESERVED, *labels, *fixed))
    for own, (wrap, names, taken) in zip(out, kinds, strict=True):
        for name in names:
            while name in {*taken, *own}:
                name = f"{wrap}({name})"
            own.append(name)
    return (*out[0], *out[1])
