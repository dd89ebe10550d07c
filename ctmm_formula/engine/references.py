"""Named tuples in compiled code, by their address: a type of numba.

By itself numba gives a function every number of every array in a tuple, two hundred for one
likelihood, and counts references to all of them wherever a tuple is named: most of what there is
to compile.  Here the caller's tuple stays where it is, and a function gets its address, from which
members are loaded one by one.  It must not outlive the call; tuples made in compiled code are
numba's own until they are given to a function.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from typing import Any

from llvmlite import ir
from numba import typeof, types
from numba._dispatcher import compute_fingerprint
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_cast,
    lower_getattr_generic,
    models,
    register_model,
    unbox,
)

_ADDRESS, _OFFSET = ir.IntType(8).as_pointer(), ir.IntType(64)


class Reference(types.Type):
    """Numba's name of the address of a named tuple of a kind."""

    def __init__(self, kind: types.NamedTuple) -> None:
        self.kind = kind
        digest = blake2b(str(kind).encode(), digest_size=6).hexdigest()
        super().__init__(name=f"{kind.instance_class.__name__}.{digest}")

    @property
    def key(self) -> types.NamedTuple:
        """What makes two of them one type."""
        return self.kind


def referred(kind: types.Type) -> types.Type:
    """As what a function gets values of a kind."""
    return Reference(kind) if isinstance(kind, types.NamedTuple) else kind


_KINDS: dict[bytes, types.Type] = {}  # by what numba knows a value's type


def held(value: Any) -> Any:
    """A named tuple that many calls get, with its type: numba looks at every member in each call.

    Numba asks it for its type as it is no named tuple in its eyes.
    """
    seen = compute_fingerprint(value)
    if seen not in _KINDS:
        _KINDS[seen] = referred(typeof(value))
    own = tuple.__new__(_with_type(value.__class__), value)
    own._numba_type_ = _KINDS[seen]
    return own


@cache
def _with_type(kind: Any) -> Any:
    """What has no "_asdict", by which numba tells named tuples; others made of it are plain."""

    def reduced(own: Any) -> Any:
        return held, (kind._make(own),)

    members = {"_asdict": property(), "_make": kind._make, "__reduce__": reduced}
    return type(kind.__name__, (kind,), members)


def _member(kind: types.NamedTuple, name: str) -> tuple[int, types.Type]:
    at = kind.fields.index(name)
    return at, kind.types[at]


@register_model(Reference)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _ADDRESS)


def _address_of(builder, value):
    return builder.bitcast(cgutils.alloca_once_value(builder, value), _ADDRESS)


@lower_cast(types.NamedTuple, Reference)
def _refer(context, builder, given, wanted, value):
    return _address_of(builder, value)


@unbox(Reference)
def _unbox(reference, value, c):
    own = c.unbox(reference.kind, value)

    def given_back():  # an address has no references to arrays that numba would see
        if own.cleanup is not None:
            own.cleanup()
        c.context.nrt.decref(c.builder, reference.kind, own.value)

    place = _address_of(c.builder, own.value)
    return NativeValue(place, is_error=own.is_error, cleanup=given_back)


@infer_getattr
class _Members(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference, name):
        if name in reference.kind.fields:
            return referred(_member(reference.kind, name)[1])
        return None


_OFFSETS: dict[types.NamedTuple, list[int]] = {}  # of members, in bytes


def _offset(context, kind, at):
    if kind not in _OFFSETS:
        place, _OFFSETS[kind] = 0, []
        for member in context.get_value_type(kind).elements:
            size = member.get_abi_alignment(context.target_data)
            place = -(-place // size) * size
            _OFFSETS[kind].append(place)
            place += member.get_abi_size(context.target_data)
    return _OFFSETS[kind][at]


@lower_getattr_generic(Reference)
def _get(context, builder, reference, value, name):
    at, kind = _member(reference.kind, name)
    offset = ir.Constant(_OFFSET, _offset(context, reference.kind, at))
    place = builder.gep(value, [offset], inbounds=True)
    if isinstance(kind, types.NamedTuple):
        return place
    typed = builder.bitcast(place, context.get_value_type(kind).as_pointer())
    return impl_ret_borrowed(context, builder, kind, builder.load(typed))
