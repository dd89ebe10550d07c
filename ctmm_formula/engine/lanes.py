"""Several numbers at a time: vectors of doubles for the compiled loops.

The matrices of one donor are too small for the vector units of a processor, so the kernels work
on the same entry of LANES donors at once, and tails of forms on POINTS points of a path.  A lane
value is one LLVM vector; the code generator splits it into whatever registers the machine has.
Arrays hold the lanes in their last axis:

    x = load(V, (j, a)) * weight + load(nu, a)      # V[j, a, :], nu[a, :]
    store(V, (j, a), x)
    total(x)                                        # sum over the lanes

Arithmetic with scalars spreads them over the lanes.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .lowering import array_of, entry_address, new_array
from .model import ALIGNED, LANES

POINTS = 8
"""Points of a path, or of another function, at a time."""

_WIDTH = 8  # bytes of a double
_INDEX = ir.IntType(32)
_FLAGS = ("contract", "reassoc", "nsz", "arcp")


class _LaneType(types.Type):
    """Numba's name of a lane value."""

    def __init__(self, size):
        self.size = size
        super().__init__(name=f"lanes[{size}]")


_KINDS = {size: _LaneType(size) for size in (POINTS, LANES)}
_FOUR = _LaneType(4)


@register_model(_LaneType)
class _LaneModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _vector(kind))


def _vector(kind):
    return ir.VectorType(ir.DoubleType(), kind.size)


def _shuffle(builder, vector, picks):
    mask = ir.Constant(ir.VectorType(_INDEX, len(picks)), list(picks))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder, scalar, kind):
    empty = ir.Constant(_vector(kind), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_INDEX, 0))
    return _shuffle(builder, first, [0] * kind.size)


def _pointer(context, builder, signature, args, lanes):
    """Address of the lanes at array[index]."""
    kind, index = signature.args[:2]
    several = isinstance(index, types.BaseTuple)
    parts = cgutils.unpack_tuple(builder, args[1]) if several else [args[1]]
    given = list(index) if several else [index]
    parts = [
        context.cast(builder, part, old, types.intp) for part, old in zip(parts, given, strict=True)
    ]
    address = entry_address(context, builder, kind, args[0], parts)
    return builder.bitcast(address, _vector(lanes).as_pointer())


def load_of(size: int) -> Any:
    """The loop's function that takes so many lanes at array[index]."""
    lanes = _KINDS[size]

    @intrinsic
    def load(typingctx, array, index):
        """Lanes at array[index]."""

        def codegen(context, builder, signature, args):
            return builder.load(_pointer(context, builder, signature, args, lanes), align=8)

        return lanes(array, index), codegen

    return load


def spread_of(size: int) -> Any:
    """The loop's function that puts a scalar in every one of so many lanes."""
    lanes = _KINDS[size]

    @intrinsic
    def spread(typingctx, value):
        """Scalar in every lane."""

        def codegen(context, builder, signature, args):
            return _spread(builder, args[0], lanes)

        return lanes(types.float64), codegen

    return spread


load, spread = load_of(LANES), spread_of(LANES)


def _new_signature(shape):
    axes = len(shape) if isinstance(shape, types.BaseTuple) else 1
    return types.Array(types.float64, axes, "C")(shape)


def _new(context, builder, signature, args):
    (shape,) = signature.args
    several = isinstance(shape, types.BaseTuple)
    sizes = cgutils.unpack_tuple(builder, args[0]) if several else [args[0]]
    kinds = list(shape) if several else [shape]
    sizes = [
        context.cast(builder, size, kind, types.intp)
        for size, kind in zip(sizes, kinds, strict=True)
    ]
    return new_array(context, builder, signature.return_type, sizes, ALIGNED * _WIDTH)


@intrinsic
def aligned(typingctx, shape):
    """An array of doubles at the start of a line of the cache: loads of lanes do not cross.

    Across two lines they take half as long again.
    """
    return _new_signature(shape), _new


@intrinsic
def zeros(typingctx, shape):
    """The same of zeros."""

    def codegen(context, builder, signature, args):
        out = _new(context, builder, signature, args)
        model = context.data_model_manager[signature.return_type]
        data, number = (
            builder.extract_value(out, model.get_field_position(field))
            for field in ("data", "nitems")
        )
        cgutils.memset(builder, data, builder.mul(number, ir.IntType(64)(_WIDTH)), 0)
        return out

    return _new_signature(shape), codegen


@intrinsic
def together(typingctx, shapes):
    """Arrays of several shapes in one piece of memory: most that a loop needs are small."""
    return _several(shapes), _together


@intrinsic
def zeros_together(typingctx, shapes):
    """The same of zeros."""

    def codegen(context, builder, signature, args):
        return _together(context, builder, signature, args, zero=True)

    return _several(shapes), codegen


def _several(shapes):
    return types.Tuple([types.Array(types.float64, len(shape), "C") for shape in shapes])(shapes)


def _together(context, builder, signature, args, zero=False):
    count, kinds = ir.IntType(64), signature.return_type.types
    places, total = [], count(0)
    for shape, given in zip(
        cgutils.unpack_tuple(builder, args[0]), signature.args[0].types, strict=True
    ):
        sizes = [
            context.cast(builder, size, kind, types.intp)
            for size, kind in zip(cgutils.unpack_tuple(builder, shape), given, strict=True)
        ]
        steps = [count(_WIDTH)]
        for size in reversed(sizes):
            steps.insert(0, builder.mul(steps[0], size, flags=("nsw",)))
        places.append((total, sizes, steps[1:]))
        total = builder.add(total, steps[0], flags=("nsw",))
        line = ALIGNED * _WIDTH
        total = builder.and_(builder.add(total, count(line - 1)), count(-line))
    number, flat = builder.lshr(total, count(3)), types.Array(types.float64, 1, "C")
    room = new_array(context, builder, flat, [number], ALIGNED * _WIDTH)
    model = context.data_model_manager[flat]
    data, meminfo, parent, itemsize = (
        builder.extract_value(room, model.get_field_position(field))
        for field in ("data", "meminfo", "parent", "itemsize")
    )
    if zero:
        cgutils.memset(builder, data, total, 0)
    out = []
    for kind, (start, sizes, steps) in zip(kinds, places, strict=True):
        first = builder.gep(data, [builder.lshr(start, count(3))], inbounds=True)
        out.append(
            array_of(
                context, builder, kind, sizes, steps,
                data=first, meminfo=meminfo, parent=parent, itemsize=itemsize,
            )
        )  # fmt: skip
    for _ in kinds[1:]:  # each keeps all of it
        context.nrt.incref(builder, flat, room)
    return context.make_tuple(builder, signature.return_type, out)


@intrinsic
def store(typingctx, array, index, value):
    """array[index] = lanes."""

    def codegen(context, builder, signature, args):
        address = _pointer(context, builder, signature, args, value)
        builder.store(args[2], address, align=8)
        return context.get_dummy_value()

    return types.none(array, index, value), codegen


@intrinsic
def total(typingctx, value):
    """Sum over the lanes."""

    def codegen(context, builder, signature, args):
        part, size = args[0], value.size
        while size > 1:
            size //= 2
            halves = [_shuffle(builder, part, range(s, s + size)) for s in (0, size)]
            part = builder.fadd(*halves, flags=_FLAGS)
        return builder.extract_element(part, ir.Constant(_INDEX, 0))

    return types.float64(value), codegen


@intrinsic
def add_totals(typingctx, array, index, values):
    """array[index:] += sums over the lanes of four values, which must be 8 at least."""

    def codegen(context, builder, signature, args):
        size, parts = values.dtype.size, cgutils.unpack_tuple(builder, args[2])
        while size > 8:
            size //= 2
            parts = [_folded(builder, part, part, range(size), 0, size) for part in parts]
        even, halves = range(0, 8, 2), range(0, 8, 4)
        pairs = [at for k in even for at in (k, k + 8)]  # one of each, in turn
        parts = [_folded(builder, *parts[k : k + 2], pairs, 0, 1) for k in (0, 2)]
        fours = [at for k in halves for at in (k, k + 1, k + 8, k + 9)]
        part = _folded(builder, *parts, fours, 0, 2)
        part = _folded(builder, part, part, range(4), 0, 4)
        address = _pointer(context, builder, signature, args, _FOUR)
        part = builder.fadd(builder.load(address, align=8), part, flags=_FLAGS)
        builder.store(part, address, align=8)
        return context.get_dummy_value()

    return types.none(array, index, values), codegen


@intrinsic
def add_to_rows(typingctx, array, rows, column, values):
    """array[rows[i], column:] += four values of lane i, for every lane; rows (lanes,) integers."""

    def codegen(context, builder, signature, args):
        size, values = signature.args[3].dtype.size, cgutils.unpack_tuple(builder, args[3])
        kinds = types.UniTuple(types.intp, 2)
        called = types.none(signature.args[0], kinds)
        column = context.cast(builder, args[2], signature.args[2], types.intp)

        def picked(one, other, picks):
            mask = ir.Constant(ir.VectorType(_INDEX, len(picks)), list(picks))
            return builder.shuffle_vector(one, other, mask)

        for first in range(0, size, 8):
            s, t, u, v = (picked(x, x, range(first, first + 8)) for x in values)
            for odd in (0, 1):
                pairs = [at for k in range(odd, 8, 2) for at in (k, k + 8)]
                one, other = picked(s, t, pairs), picked(u, v, pairs)
                for half in (0, 4):
                    fours = [at for k in (half, half + 2) for at in (k, k + 1, k + 8, k + 9)]
                    both = picked(one, other, fours)
                    for k in (0, 1):
                        lane = first + odd + half + 2 * k
                        place = entry_address(
                            context, builder, signature.args[1], args[1], [ir.IntType(64)(lane)]
                        )
                        index = context.make_tuple(builder, kinds, [builder.load(place), column])
                        address = _pointer(context, builder, called, (args[0], index), _FOUR)
                        own = picked(both, both, range(4 * k, 4 * k + 4))
                        own = builder.fadd(builder.load(address, align=8), own, flags=_FLAGS)
                        builder.store(own, address, align=8)
        return context.get_dummy_value()

    return types.none(array, rows, column, values), codegen


def _folded(builder, one, other, picks, *steps):
    """Sum of some entries of two vectors and of those so many steps after them."""
    masks = [
        ir.Constant(ir.VectorType(_INDEX, len(picks)), [at + step for at in picks])
        for step in steps
    ]
    return builder.fadd(*(builder.shuffle_vector(one, other, mask) for mask in masks), flags=_FLAGS)


def _call(builder, name, kind, args):
    """The LLVM function of that name on lanes."""
    vector = _vector(kind)
    function = ir.FunctionType(vector, [vector] * len(args))
    name = f"llvm.{name}.v{kind.size}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


@intrinsic
def root(typingctx, value):
    """Square root of each lane."""

    def codegen(context, builder, signature, args):
        return _call(builder, "sqrt", value, args)

    return value(value), codegen


@intrinsic
def signed(typingctx, size, sign):
    """The size of each lane with the sign of another."""

    def codegen(context, builder, signature, args):
        return _call(builder, "copysign", size, args)

    return size(size, sign), codegen


@intrinsic
def larger(typingctx, value, other):
    """The larger of two, in each lane."""

    def codegen(context, builder, signature, args):
        return _call(builder, "maxnum", value, args)

    return value(value, other), codegen


@intrinsic
def all_positive(typingctx, value):
    """Whether every lane is positive and finite."""

    def codegen(context, builder, signature, args):
        size = value.size
        bound = [ir.Constant(_vector(value), [limit] * size) for limit in (0.0, float("inf"))]
        above = builder.fcmp_ordered(">", args[0], bound[0])
        below = builder.fcmp_ordered("<", args[0], bound[1])
        bits = builder.bitcast(builder.and_(above, below), ir.IntType(size))
        return builder.icmp_unsigned("==", bits, ir.Constant(ir.IntType(size), 2**size - 1))

    return types.boolean(value), codegen


def _arithmetic(operators, instruction):
    """Let `operators` mean `instruction` on lanes, and on lanes and scalars."""
    number = types.float64
    kinds = [
        (each, pair)
        for each in _KINDS.values()
        for pair in ((each, each), (each, number), (number, each))
    ]

    class Template(ConcreteTemplate):
        metadata = {"target": "cpu"}  # noqa: RUF012 - asked before what numba has for all targets
        cases = [signature(each, *pair) for each, pair in kinds]  # noqa: RUF012

    def lower(context, builder, signature, args):
        lanes = [
            _spread(builder, arg, signature.return_type) if kind is number else arg
            for arg, kind in zip(args, signature.args, strict=True)
        ]
        return getattr(builder, instruction)(*lanes, flags=_FLAGS)

    for each in operators:
        infer_global(each)(Template)
        for _, pair in kinds:
            lower_builtin(each, *pair)(lower)


_arithmetic((operator.add, operator.iadd), "fadd")
_arithmetic((operator.sub, operator.isub), "fsub")
_arithmetic((operator.mul, operator.imul), "fmul")
_arithmetic((operator.truediv, operator.itruediv), "fdiv")
