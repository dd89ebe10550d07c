"""Names in compiled functions that stand for several things, one after the other."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.ir_utils import build_definitions, replace_vars_inner, replace_vars_stmt


@register_pass(mutates_CFG=False, analysis_only=False)
class OneThingEach(FunctionPass):
    """Renames, so that a name has one type: assignments that reach a common use keep one name.

    Numba's own pass names every assignment, and copies them to yet another name where they meet.
    """

    _name = "one_thing_each"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Rename in ``state.func_ir``."""
        blocks = state.func_ir.blocks
        made, own = _assignments(blocks)
        if own:
            _rename(blocks, made, _Meetings(blocks, made, own))
            state.func_ir._definitions = build_definitions(blocks)
        return True


def _assignments(blocks):
    """Names assigned more than once: their assignments in order, and bits of these by name."""
    count = defaultdict(list)
    for block in blocks.values():
        for one in block.find_insts(ir.Assign):
            count[one.target.name].append(one)
    made: list[ir.Assign] = []
    own: dict[str, int] = {}
    for name, several in count.items():
        if len(several) > 1:
            own[name] = (1 << len(several)) - 1 << len(made)
            made += several
    return made, own


def used(one: ir.Stmt) -> list[ir.Var]:
    """Variables that a statement reads."""
    if not isinstance(one, ir.Assign):
        return one.list_vars()
    if isinstance(one.value, ir.Var):
        return [one.value]
    if not isinstance(one.value, ir.Expr):
        return []
    out = []
    for field in one.value._kws.values():
        if isinstance(field, ir.Var):
            out.append(field)
        elif isinstance(field, tuple | list):
            out += one.value._rec_list_vars(field)
    return out


class _Meetings:
    """Which assignments have a use in common, and which reach each use."""

    def __init__(self, blocks, made, own):
        self.same = list(range(len(made)))
        self.uses: list[tuple[Any, str, int]] = []
        bit = {id(one): 1 << k for k, one in enumerate(made)}
        reaching = _reaching(blocks, bit, own)
        for label, block in blocks.items():
            last: dict[str, int] = {}
            for one in block.body:
                for name in {var.name for var in used(one)} & own.keys():
                    bits = last.get(name) or reaching[label] & own[name]
                    if bits:
                        self.uses.append((one, name, self._meet(bits)))
                if id(one) in bit:
                    last[one.target.name] = bit[id(one)]

    def first(self, k):
        """The first of those that k has uses in common with."""
        while self.same[k] != k:
            k = self.same[k]
        return k

    def _meet(self, bits):
        one = self.first(bits.bit_length() - 1)
        while bits:
            other = self.first((bits & -bits).bit_length() - 1)
            one, other = min(one, other), max(one, other)
            self.same[other] = one
            bits &= bits - 1
        return one


def _reaching(blocks, bit, own):
    """Bits of the assignments that reach the start of each block."""
    flow = compute_cfg_from_blocks(blocks)
    made, lost = {}, {}
    for label, block in blocks.items():
        last = {one.target.name: bit[id(one)] for one in block.body if id(one) in bit}
        made[label], lost[label] = sum(last.values()), sum(own[name] for name in last)
    reaching = dict.fromkeys(blocks, 0)
    order, moved = flow.topo_order(), True
    while moved:
        moved = False
        for label in order:
            bits = 0
            for before, _ in flow.predecessors(label):
                bits |= made[before] | reaching[before] & ~lost[before]
            moved = moved or bits != reaching[label]
            reaching[label] = bits
    return reaching


def _rename(blocks, made, meetings):
    """Other names for all but the first thing that a name stands for."""
    scope, named, known = next(iter(blocks.values())).scope, {}, set()
    for k, one in enumerate(made):
        if meetings.first(k) == k:
            name = one.target.name
            named[k] = scope.redefine(name, loc=one.loc) if name in known else one.target
            known.add(name)
    for one, name, k in meetings.uses:
        other = {name: named[meetings.first(k)]}
        if other[name].name == name:
            continue
        if not isinstance(one, ir.Assign):
            replace_vars_stmt(one, other)
        elif isinstance(one.value, ir.Var):
            one.value = other[name]
        else:
            replace_vars_inner(one.value, other)
    for k, one in enumerate(made):
        one.target = named[meetings.first(k)]
