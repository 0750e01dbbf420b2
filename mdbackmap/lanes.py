"""Eight numbers at once: a type for compiled kernels that is one vector of the processor.

A kernel that works out eight molecules side by side keeps their coordinates in the last axis of an
array, `LANES` long, and computes with all of them as with one number: ``at`` reads, ``put`` writes,
``+ - * /``, ``root``, ``least``, ``most``, ``where_less`` and ``exponential`` work lane by
lane. Left to itself the
compiler finds such vectors in simple loops only. Of use in functions compiled by
`mdbackmap.compiled` alone; numbers are single precision, and single numbers stand for eight equal
ones. Nobody checks that places are within their array: a wrong one ends the process.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 8
"""Numbers worked out at once: 256 bits."""


class Eight(types.Type):
    """The type of eight numbers, for the compiler."""

    def __init__(self) -> None:
        super().__init__(name="Eight")


EIGHT = Eight()
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@register_model(Eight)
class _EightModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _spread(context, builder, kind, value):
    """The value itself, or a vector full of a single number."""
    if isinstance(kind, Eight):
        return value
    one = context.cast(builder, value, kind, types.float32)
    empty = ir.Constant(_VECTOR, ir.Undefined)
    whole = builder.insert_element(empty, one, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(whole, empty, mask)


def _usable(*kinds) -> bool:
    numbers = all(isinstance(k, (Eight, types.Float, types.Integer)) for k in kinds)
    return numbers and any(isinstance(k, Eight) for k in kinds)


def _lane_by_lane(build: Callable, count: int) -> Callable:
    """Return a function of so many values for compiled code, from what builds it."""

    def codegen(context, builder, signature, args):
        pairs = zip(signature.args, args, strict=True)
        return build(builder, *(_spread(context, builder, kind, value) for kind, value in pairs))

    if count == 1:

        @intrinsic
        def unary(typingctx, a):
            return (EIGHT(a), codegen) if _usable(a) else None

        return unary
    if count == 2:

        @intrinsic
        def binary(typingctx, a, b):
            return (EIGHT(a, b), codegen) if _usable(a, b) else None

        return binary

    @intrinsic
    def quaternary(typingctx, a, b, c, d):
        return (EIGHT(a, b, c, d), codegen) if _usable(a, b, c, d) else None

    return quaternary


def _of_llvm(name: str) -> Callable:
    kind = ir.FunctionType(_VECTOR, [_VECTOR])

    def build(builder, value):
        function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{LANES}f32")
        return builder.call(function, [value])

    return build


def _less(builder, a, b, yes, no):
    return builder.select(builder.fcmp_ordered("<", a, b), yes, no)


root = _lane_by_lane(_of_llvm("llvm.sqrt"), 1)
"""Square roots."""
size = _lane_by_lane(_of_llvm("llvm.fabs"), 1)
"""Absolute values."""
least = _lane_by_lane(lambda builder, a, b: _less(builder, a, b, a, b), 2)
"""The smaller of two values."""
most = _lane_by_lane(lambda builder, a, b: _less(builder, a, b, b, a), 2)
"""The larger of two values."""
where_less = _lane_by_lane(_less, 4)
"""``c`` where ``a`` is less than ``b``, else ``d``."""

_WHOLE = ir.VectorType(ir.IntType(32), LANES)
_TERMS = [math.log(2.0) ** k / math.factorial(k) for k in range(8)]


def _exponential(builder, value):
    """2^i times 2^f, of which the first is put into the exponent's bits."""
    power = builder.fmul(value, ir.Constant(_VECTOR, [1 / math.log(2.0)] * LANES))
    whole = builder.fptosi(power, _WHOLE)
    rest = builder.fsub(power, builder.sitofp(whole, _VECTOR))
    total = ir.Constant(_VECTOR, [_TERMS[-1]] * LANES)
    for term in _TERMS[-2::-1]:
        more = builder.fmul(total, rest, flags=("contract",))
        total = builder.fadd(more, ir.Constant(_VECTOR, [term] * LANES), flags=("contract",))
    bits = builder.shl(
        builder.add(whole, ir.Constant(_WHOLE, [127] * LANES)), ir.Constant(_WHOLE, [23] * LANES)
    )
    return builder.fmul(total, builder.bitcast(bits, _VECTOR))


exponential = _lane_by_lane(_exponential, 1)
"""Exponentials, to 2e-6 of their value, of numbers from -80 to 80."""


def _operator(function: Callable, name: str) -> None:
    """Have an operator work for eight numbers."""
    build = _lane_by_lane(
        lambda builder, a, b: getattr(builder, name)(a, b, flags=("contract",)), 2
    )

    @overload(function)
    def chosen(a, b):
        if _usable(a, b):
            return lambda a, b: build(a, b)
        return None


for _function, _name in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):  # fmt: skip
    _operator(_function, _name)


@overload(operator.neg)
def _negative(a):
    return (lambda a: 0.0 - a) if isinstance(a, Eight) else None


def _pointer(context, builder, kind, array, kinds, places):
    """Where the eight numbers at two places of an array of shape (n, m, `LANES`) begin."""
    array = context.make_array(kind)(context, builder, array)
    rows = [
        context.cast(builder, place, of, types.intp)
        for of, place in zip(kinds, places, strict=True)
    ]
    rows.append(ir.Constant(rows[0].type, 0))
    pointer = cgutils.get_item_pointer(context, builder, kind, array, rows)
    return builder.bitcast(pointer, _VECTOR.as_pointer())


@intrinsic
def at(typingctx, array, i, k):
    """Read the eight numbers ``array[i, k]``."""

    def codegen(context, builder, signature, args):
        kind, *kinds = signature.args
        pointer = _pointer(context, builder, kind, args[0], kinds, args[1:])
        return builder.load(pointer, align=4)

    return EIGHT(array, i, k), codegen


@intrinsic
def put(typingctx, array, i, k, value):
    """Write eight numbers to ``array[i, k]``."""

    def codegen(context, builder, signature, args):
        kind, *kinds, _ = signature.args
        pointer = _pointer(context, builder, kind, args[0], kinds, args[1:3])
        value = _spread(context, builder, signature.args[3], args[3])
        builder.store(value, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, i, k, value), codegen
