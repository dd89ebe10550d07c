"""How loops over arrays become LLVM code: few instructions for each operation.

By itself numba stores an array to look at one of its numbers, lets every index count from the end
too, and counts a reference for every name that an array has.  Here an entry is some arithmetic on
its indices, of which only constants may be negative, and references are counted only for arrays
that a function has made: what it was given its caller keeps, with all parts of it.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from llvmlite import ir as llvm
from numba import types
from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.cgutils import alloca_once
from numba.core.lowering import Lower

from .renaming import used

_COUNT = llvm.IntType(64)
_VIEWS = ("array.reshape",)  # methods that make no array

_POWERS = (operator.pow, operator.ipow)
_SUMS = {operator.add: "add", operator.sub: "sub", operator.mul: "mul"}
_ORDERS = {
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "==",
    operator.ne: "!=",
}  # fmt: skip
_LOOPING = ("call", "getiter", "iternext", "pair_first", "pair_second")


def entry_address(context: Any, builder: Any, kind: types.Array, array: Any, index: list) -> Any:
    """Address of the entry at an index, one integer for each axis; the first of them if fewer."""
    model = context.data_model_manager[kind]
    data = builder.extract_value(array, model.get_field_position("data"))
    if kind.layout == "C":
        sizes, place = model.get_field_position("shape"), index[0]
        for axis in range(1, kind.ndim):
            size = builder.extract_value(array, [sizes, axis])
            place = builder.mul(place, size, flags=("nsw",))
            if axis < len(index):
                place = builder.add(place, index[axis], flags=("nsw",))
        return builder.gep(data, [place], inbounds=True)
    steps, place = model.get_field_position("strides"), _COUNT(0)
    for axis, at in enumerate(index):
        step = builder.extract_value(array, [steps, axis])
        place = builder.add(place, builder.mul(at, step, flags=("nsw",)), flags=("nsw",))
    raw = builder.bitcast(data, llvm.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(raw, [place], inbounds=True), data.type)


def array_of(context, builder, kind, sizes, steps, **fields):
    """The value of an array by its sizes, steps in bytes, and other fields."""
    model, number = context.data_model_manager[kind], _COUNT(1)
    out = llvm.Constant(model.get_value_type(), llvm.Undefined)
    for axis, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        out = builder.insert_value(out, size, [model.get_field_position("shape"), axis])
        out = builder.insert_value(out, step, [model.get_field_position("strides"), axis])
        number = builder.mul(number, size, flags=("nsw",))
    for field, value in {**fields, "nitems": number}.items():
        out = builder.insert_value(out, value, model.get_field_position(field))
    return out


def _row(context, builder, kind, array, index, wanted):
    """The array at a shorter index."""
    model, rest = context.data_model_manager[kind], range(len(index), kind.ndim)

    def take(field, *axis):
        return builder.extract_value(array, [model.get_field_position(field), *axis])

    return array_of(
        context, builder, wanted,
        [take("shape", axis) for axis in rest],
        [take("strides", axis) for axis in rest],
        data=entry_address(context, builder, kind, array, index),
        **{field: take(field) for field in ("meminfo", "parent", "itemsize")},
    )  # fmt: skip


def new_array(context: Any, builder: Any, kind: types.Array, sizes: list, align: int) -> Any:
    """An array of these sizes, which starts at a multiple of so many bytes."""
    width = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    steps = [_COUNT(width)]
    for size in reversed(sizes):
        steps.insert(0, builder.mul(steps[0], size, flags=("nsw",)))
    place = context.get_constant(types.uint32, align)
    meminfo = context.nrt.meminfo_alloc_aligned(builder, steps[0], place)
    model = context.data_model_manager[kind]
    given = model.get_value_type().elements
    data = context.nrt.meminfo_data(builder, meminfo)
    parent = given[model.get_field_position("parent")]
    return array_of(
        context, builder, kind, sizes, steps[1:],
        data=builder.bitcast(data, given[model.get_field_position("data")]),
        meminfo=meminfo, parent=llvm.Constant(parent, None), itemsize=_COUNT(width),
    )  # fmt: skip


def _part(value, at):
    """Member of a tuple that was just made, or None."""
    while isinstance(value, llvm.instructions.InsertValue):
        if tuple(value.indices) == (at,):
            return value.operands[1]
        value = value.operands[0]
    return None


class _Turns(NamedTuple):
    """A range: its start, stop and step; of a loop over it, addresses of the next number and stop.

    Every loop has its own: the range may have others.
    """

    following: Any
    stop: Any
    step: Any
    kind: types.Integer


class Lowered(Lower):
    """Numba's, with less for arrays, tuples of arrays, ranges, and names of numbers."""

    def init(self) -> None:
        """What each name stands for: `lent` are parts of what others keep, `kept` its own arrays.

        Those have been made once in a call, and are kept until it returns.
        """
        super().init()
        self._counting: dict[str, bool] = {}
        given = defaultdict(list)
        for at, block in self.blocks.items():
            for one in block.find_insts(ir.Assign):
                if self._counts(one.target.name):
                    given[one.target.name].append((at, one.value))
        turns = compute_cfg_from_blocks(self.blocks).loops().values() if given else ()
        again = set().union(*(turn.body for turn in turns))
        self._kept = {
            name
            for name, [(at, value), *others] in given.items()
            if not others and at not in again and _is_call(value) and self._whole(value) is None
        }
        whole = {name: [self._whole(value) for _, value in given[name]] for name in given}
        self._lent = {name for name, sources in whole.items() if None not in sources}
        lost = {""}
        while lost:
            known = {"", *self._lent, *self._kept}
            lost = {name for name in self._lent if not known.issuperset(whole[name])}
            self._lent -= lost
        self._singly_assigned_vars -= self._kept
        self._turns: dict[str, _Turns] = {}
        self._pairs: dict[str, tuple] = {}

    def _find_singly_assigned_variable(self) -> None:
        """Names that need no place of memory: given a value once, and read in that block only."""
        found: dict[str, int] = {}
        again = set()
        for at, block in self.blocks.items():
            for one in block.find_insts(ir.Assign):
                name = one.target.name
                if name in found:
                    again.add(name)
                found[name] = at
        for block in self.blocks.values():
            known = set()
            for one in block.body:
                if not isinstance(one, ir.Del):
                    again.update(var.name for var in used(one) if var.name not in known)
                if isinstance(one, ir.Assign):
                    known.add(one.target.name)
        self._singly_assigned_vars = found.keys() - again
        self._blk_local_varmap: dict[str, Any] = {}

    def _counts(self, name: str) -> bool:
        """Whether values of the name have references."""
        if name not in self._counting:
            model = self.context.data_model_manager[self.typeof(name)]
            self._counting[name] = model.contains_nrt_meminfo()
        return self._counting[name]

    def _whole(self, value: Any) -> str | None:
        """Name of that which a value is a part of, "" for what the function was given, or None."""
        if isinstance(value, ir.Arg):
            return ""
        if isinstance(value, ir.Var):
            return value.name
        if isinstance(value, ir.Expr):
            if value.op in ("getattr", "static_getitem", "exhaust_iter"):
                # a reference to a tuple has none itself: its arrays are the caller's
                return value.value.name if self._counts(value.value.name) else ""
            if value.op == "getitem" and not self._counts(value.index.name):
                return value.value.name
            if value.op == "call":
                method = self.typeof(value.func.name)
                if isinstance(method, types.BoundFunction) and method.typing_key in _VIEWS:
                    return value.func.name
        return None

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        self.context.enable_nrt, before = False, self.context.enable_nrt
        yield
        self.context.enable_nrt = before

    def lower_block(self, block: Any) -> None:
        """Its statements; errors say which."""
        self.pre_block(block)
        for inst in block.body:
            self.loc = inst.loc
            try:
                self.lower_inst(inst)
            except Exception as error:
                error.add_note(f"lowering {inst} at {inst.loc}")
                raise
        self.post_block(block)

    def lower_inst(self, inst: Any) -> None:
        """Numba's, but for arrays."""
        if isinstance(inst, ir.Assign):
            if inst.target.name in self._lent:
                with self._uncounted():
                    self._assign(inst)
            else:
                self._assign(inst)
        elif isinstance(inst, ir.Del):
            if inst.value not in self._kept:
                self.delvar(inst.value)
        elif not isinstance(inst, ir.SetItem | ir.StaticSetItem) or not self._put(inst):
            if isinstance(inst, ir.Return):
                for name in sorted(self._kept):
                    self.decref(self.typeof(name), self.loadvar(name))
            super().lower_inst(inst)

    def _assign(self, inst):
        if self._loops and self._turn(inst.target.name, inst.value):
            return
        self.storevar(self.lower_assign(self.typeof(inst.target.name), inst), inst.target.name)

    @cached_property
    def _loops(self) -> bool:
        """Whether every range of the function is one loop's."""
        names = [
            one.target.name
            for block in self.blocks.values()
            for one in block.find_insts(ir.Assign)
            if isinstance(self.typeof(one.target.name), types.RangeType | types.RangeIteratorType)
            or (isinstance(one.value, ir.Expr) and one.value.op == "iternext")
        ]
        return len(names) == len(set(names))

    def _turn(self, name, value):
        """Lower what loops over ranges do; False for all else."""
        if isinstance(value, ir.Var) and value.name in self._turns:
            self._turns[name] = self._turns[value.name]
            return True
        if not isinstance(value, ir.Expr) or value.op not in _LOOPING:
            return False
        of = "" if value.op == "call" else value.value.name
        if value.op == "call":
            kind = self.typeof(name)
            if value.vararg or not isinstance(kind, types.RangeType):
                return False
            self._turns[name] = self._range(kind.dtype, value.args)
        elif value.op == "getiter" and of in self._turns:
            start, stop, step, kind = self._turns[of]
            if not isinstance(step, llvm.Constant):
                step = self._slot(step)
            self._turns[name] = _Turns(self._slot(start), self._slot(stop), step, kind)
        elif value.op == "iternext" and of in self._turns:
            self._pairs[name] = self._next(self._turns[of])
        elif value.op in ("pair_first", "pair_second") and of in self._pairs:
            self.storevar(self._pairs[of][value.op == "pair_second"], name)
        else:
            return False
        return True

    def _range(self, kind, args):
        one, given = self.context.get_constant(kind, 1), [self.loadvar(arg.name) for arg in args]
        given = [
            self.context.cast(self.builder, value, self.typeof(arg.name), kind)
            for value, arg in zip(given, args, strict=True)
        ]
        if len(given) == 1:
            given.insert(0, self.context.get_constant(kind, 0))
        start, stop, step = given if len(given) == 3 else [*given, one]
        return _Turns(start, stop, step, kind)

    def _slot(self, value):
        """A place of memory that holds the value."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(value.type)
        self.builder.store(value, place)
        return place

    def _next(self, turns):
        """The number, and whether there is one."""
        builder = self.builder
        number, stop, step = builder.load(turns.following), builder.load(turns.stop), turns.step
        less = builder.icmp_signed if turns.kind.signed else builder.icmp_unsigned
        if isinstance(step, llvm.Constant):
            there = less("<" if step.constant > 0 else ">", number, stop)
        else:
            step = builder.load(step)
            up = less(">", step, step.type(0))
            there = builder.select(up, less("<", number, stop), less(">", number, stop))
        builder.store(builder.add(number, step, flags=("nsw",)), turns.following)
        return number, there

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        """Numba's, which looks at the old value, too, if it is counted."""
        if self._counts(name) and name not in self._lent:
            super().storevar(value, name, argidx)
            return
        self._alloca_var(name, self.typeof(name))
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def delvar(self, name: str) -> None:
        """Numba's, where something is counted."""
        if self._counts(name) and name not in self._lent:
            super().delvar(name)
        elif name not in self._blk_local_varmap:
            self._singly_assigned_vars.discard(name)

    def _index(self, index):
        """The integers of an index, if they are such, and none of them counts from the end."""
        if isinstance(index, ir.Var):
            return self._integers(index.name)
        parts = index if isinstance(index, tuple) else (index,)
        plain = all(type(each) is int and each >= 0 for each in parts)
        return [_COUNT(each) for each in parts] if plain else None

    def _integers(self, name):
        kind, value = self.typeof(name), self.loadvar(name)
        if isinstance(kind, types.BaseTuple):
            kinds, values = list(kind), [_part(value, at) for at in range(len(kind))]
        else:
            kinds, values = [kind], [value]
        if not all(isinstance(each, types.Integer) for each in kinds) or None in values:
            return None
        if any(isinstance(each, llvm.Constant) and each.constant < 0 for each in values):
            return None
        return [
            self.context.cast(self.builder, value, kind, types.intp)
            for value, kind in zip(values, kinds, strict=True)
        ]

    def lower_expr(self, kind: types.Type, expr: Any) -> Any:
        """Numba's, but for entries and rows of arrays, their shapes and lengths.

        Only powers mean something else where a number is known, which numba asks everywhere.
        """
        if expr.op in ("binop", "inplace_binop") and expr.fn not in _POWERS:
            expr.static_lhs = expr.static_rhs = ir.UNDEFINED
            out = self._binary(kind, expr)
            if out is not None:
                return out
        if expr.op in ("getitem", "static_getitem"):
            array = self.typeof(expr.value.name)
            if isinstance(array, types.Array):
                out = self._entry(array, expr, kind)
                if out is not None:
                    return out
        elif expr.op == "getattr" and expr.attr == "shape":
            array = self.typeof(expr.value.name)
            if isinstance(array, types.Array):
                return self._sizes(array, expr.value)
        elif expr.op == "call" and len(expr.args) == 1:
            array = self.typeof(expr.args[0].name)
            called = self.typeof(expr.func.name)
            if isinstance(array, types.Array) and getattr(called, "typing_key", None) is len:
                return self.builder.extract_value(self._sizes(array, expr.args[0]), 0)
        return super().lower_expr(kind, expr)

    def _binary(self, kind, expr):
        """Sums, products, quotients and comparisons of two doubles or integers of 64 bits."""
        signature, builder = self.fndesc.calltypes[expr], self.builder
        of, other = signature.args
        double = of == types.float64
        if other != of or not (double or of == types.int64) or signature.return_type != kind:
            return None
        what = expr.fn if expr.op == "binop" else expr.immutable_fn
        values = [
            self.context.cast(builder, self.loadvar(var.name), self.typeof(var.name), of)
            for var in (expr.lhs, expr.rhs)
        ]
        if what in _SUMS and kind == of:
            if double:
                return getattr(builder, "f" + _SUMS[what])(*values)
            return getattr(builder, _SUMS[what])(*values, flags=("nsw",))
        if what is operator.truediv and double:
            return builder.fdiv(*values)
        if what in _ORDERS:
            if not double:
                return builder.icmp_signed(_ORDERS[what], *values)
            compare = builder.fcmp_unordered if what is operator.ne else builder.fcmp_ordered
            return compare(_ORDERS[what], *values)
        return None

    def alloca(self, name: str, type: Any) -> Any:
        """A place for values of a name, of which nothing is told to debuggers."""
        return alloca_once(self.builder, self.context.get_value_type(type), name=name)

    def _sizes(self, kind, array):
        position = self.context.data_model_manager[kind].get_field_position("shape")
        return self.builder.extract_value(self.loadvar(array.name), position)

    def _entry(self, array, expr, kind):
        index = self._index(expr.index)
        if not index or len(index) > array.ndim:
            return None
        whole = self.loadvar(expr.value.name)
        if len(index) == array.ndim:
            place = entry_address(self.context, self.builder, array, whole, index)
            return self.context.unpack_value(self.builder, array.dtype, place)
        if array.layout != "C" or kind.layout != "C":
            return None
        row = _row(self.context, self.builder, array, whole, index, kind)
        self.incref(kind, row)
        return row

    def _put(self, inst):
        """Assign to an entry; False where it is something else."""
        array, given = self.typeof(inst.target.name), self.typeof(inst.value.name)
        if not isinstance(array, types.Array) or not isinstance(
            given, types.Number | types.Boolean
        ):
            return False
        index = self._index(inst.index)
        if not index or len(index) != array.ndim:
            return False
        value = self.context.cast(self.builder, self.loadvar(inst.value.name), given, array.dtype)
        whole = self.loadvar(inst.target.name)
        place = entry_address(self.context, self.builder, array, whole, index)
        self.context.pack_value(self.builder, array.dtype, value, place)
        return True


def _is_call(value):
    return isinstance(value, ir.Expr) and value.op == "call"
