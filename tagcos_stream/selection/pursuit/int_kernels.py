"""Loops over rows rounded to whole numbers, compiled by Numba; int8_rows.py cuts them up and runs the pieces on threads.

n rows of a cluster, D feature dimension, W: D rounded up to a multiple of LANES, T probes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

LANES = 16  # numbers that a vector instruction multiplies at once: 16 bits each in 256
TALL, WIDE = 4, 4  # rows and probes that a tile multiplies: 16 vectors of sums, and what they need, fill 32 registers
GROUP = 16  # probes that are multiplied with all rows before the next ones: at D = 8192 they stay in a core's own cache
FAINT = np.float32(1e-15)  # a row whose largest number is below this is not rounded but given up: squares of it would vanish
SURE = np.float32(5.5)  # sqrt(60 / 2): see `encode`


@njit(nogil=True, cache=True)
def _largest(row: np.ndarray) -> np.float32:
    """The largest size of a number."""
    largest = np.float32(0)
    for d in range(row.size):
        largest = max(largest, abs(row[d]))
    return largest


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def encode(block: np.ndarray, dither: np.ndarray, most: float, codes: np.ndarray, scale: np.ndarray, error: np.ndarray) -> None:
    """Write each row as `scale` times bytes, and what that may be wrong by: |<a, r> - scale <codes, r>| <= error |r|.

    Numbers are rounded up or down by chance, to themselves on average: `dither` is uniform in [-1/2, 1/2), drawn once for all
    rows. So an error is a sum of independent parts, one a dimension, each within an interval of scale |r_d|, and exceeds
    sqrt(60 / 2) scale |r| with a probability below exp(-60) (Hoeffding 1963, theorem 2), whatever the row, and whatever the
    vector r that does not depend on the dither. Where the length of all that was left out is less, it is the bound.

    Parameters
    ----------
    block
        (r, D) float32, finite.
    dither
        (D,) float32.
    most
        Largest size of a code before it is rounded.
    codes
        (r, W) int8, out; the last W - D are not touched.
    scale, error
        (r,) float32, out.
    """
    dim = block.shape[1]
    root = np.float32(np.sqrt(dim))
    for i in range(block.shape[0]):
        row = block[i]
        code = codes[i, :dim]
        largest = _largest(row)
        step = np.float32(largest / np.float32(most)) if largest >= FAINT else np.float32(0)
        inverse = np.float32(1) / step if step > 0 else np.float32(0)
        square = np.float32(0)
        for d in range(dim):
            whole = np.rint(row[d] * inverse + dither[d])
            code[d] = np.int32(whole)
            left = row[d] - step * whole
            square += left * left
        scale[i] = step
        if step > 0:  # the last term: float32 rounding, with room to spare
            error[i] = min(np.sqrt(square) * np.float32(1.001), SURE * step) + np.float32(2.0**-22) * largest * root
        else:
            code[:] = 0
            error[i] = largest * root


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def encode_finely(block: np.ndarray, most: float, codes: np.ndarray, step: np.ndarray, miss: np.ndarray) -> None:
    """Write each row as `step` times whole numbers of 16 bits and of a length up to `most`; `miss` bounds what that leaves out.

    Parameters
    ----------
    block
        (r, D) float32.
    most
        Largest length of the codes of a row.
    codes
        (r, W) int16, out; the last W - D are not touched.
    step, miss
        (r,) float32, out.
    """
    dim = block.shape[1]
    root = np.float32(np.sqrt(dim))
    for t in range(block.shape[0]):
        row = block[t]
        code = codes[t, :dim]
        largest = _largest(row)
        square = np.float32(0)
        for d in range(dim):
            square += row[d] * row[d]
        size = max(largest / np.float32(32766), np.sqrt(square) / np.float32(most))
        size = np.float32(size * 1.001) if largest >= FAINT else np.float32(0)
        inverse = np.float32(1) / size if size > 0 else np.float32(0)
        for d in range(dim):
            code[d] = np.int32(np.rint(row[d] * inverse))
        step[t] = size
        miss[t] = root * (np.float32(0.501) * size + np.float32(2.0**-22) * largest) if size > 0 else largest * root


def _tile(codes: np.ndarray, probes: np.ndarray, out: np.ndarray, i: int, c: int) -> None:
    """out[c : c + WIDE, i : i + TALL] = inner products of TALL rows with WIDE probes, exact in 32 bits."""
    out[c : c + WIDE, i : i + TALL] = probes[c : c + WIDE].astype(np.int32) @ codes[i : i + TALL].astype(np.int32).T


@intrinsic
def _tile_of_vectors(typing_context: Any, codes: Any, probes: Any, out: Any, i: Any, c: Any) -> Any:
    """`_tile` in vectors of LANES numbers.

    Written in LLVM's own terms because the compiler does not find it in a loop: products of neighbouring numbers, 16 bits each,
    summed in pairs to 32 bits, are one instruction (pmaddwd; with the sum that they go to, vpdpwssd), twice the work of a
    float32 one. It is plain vector arithmetic: any machine computes the same, more slowly where it has no such instruction.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, size = ir.IntType(32), ir.IntType(64)
        bits = signature.args[0].dtype.bitwidth
        wide, half = ir.VectorType(word, LANES), ir.VectorType(word, LANES // 2)
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
        ]

        def at(pointer: Any, offset: Any, kind: Any) -> Any:
            bytes_of = builder.bitcast(pointer, ir.IntType(8).as_pointer())
            return builder.bitcast(builder.gep(bytes_of, [offset]), kind.as_pointer())

        def declared(name: str, result: Any, parameters: list[Any]) -> Any:
            return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, parameters), name)

        def line(array: Any, first: Any, number: int) -> Any:
            offset = builder.mul(builder.add(first, size(number)), builder.extract_value(array.strides, 0))
            return at(array.data, offset, ir.IntType(8))

        def load(pointer: Any, offset: Any, width: int) -> Any:
            numbers = builder.load(at(pointer, offset, ir.VectorType(ir.IntType(width), LANES)))
            numbers.align = width // 8
            return builder.sext(numbers, wide)

        rows = [line(arrays[0], arguments[3], r) for r in range(TALL)]
        columns = [line(arrays[1], arguments[4], q) for q in range(WIDE)]
        places = [(r, q) for r in range(TALL) for q in range(WIDE)]
        even, odd = (ir.Constant(half, [2 * lane + shift for lane in range(LANES // 2)]) for shift in (0, 1))
        before, loop, after = builder.block, builder.append_basic_block("numbers"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        d = builder.phi(size)
        d.add_incoming(size(0), before)
        sums = {place: builder.phi(half) for place in places}
        # the next rows are on their way while these are multiplied: a cache line a turn
        ahead = at(line(arrays[0], arguments[3], TALL), builder.mul(d, size(TALL * bits // 8)), ir.IntType(8))
        prefetch = declared("llvm.prefetch.p0", ir.VoidType(), [ahead.type, word, word, word])
        builder.call(prefetch, [ahead, word(0), word(2), word(1)])
        right = [load(column, builder.mul(d, size(2)), 16) for column in columns]
        for r in range(TALL):
            left = load(rows[r], builder.mul(d, size(bits // 8)), bits)
            for q in range(WIDE):
                products = builder.mul(left, right[q])
                pairs = builder.add(
                    builder.shuffle_vector(products, products, even), builder.shuffle_vector(products, products, odd)
                )
                sums[r, q].add_incoming(ir.Constant(half, [0] * (LANES // 2)), before)
                sums[r, q].add_incoming(builder.add(sums[r, q], pairs), loop)
        following = builder.add(d, size(LANES))
        d.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, builder.extract_value(arrays[0].shape, 1)), loop, after)
        builder.position_at_end(after)
        add = declared(f"llvm.vector.reduce.add.v{LANES // 2}i32", word, [half])
        for r, q in places:
            offset = builder.mul(builder.add(arguments[3], size(r)), size(4))
            total = builder.call(add, [sums[r, q].incomings[1][0]])
            builder.store(total, at(line(arrays[2], arguments[4], q), offset, word))
        return context.get_dummy_value()

    return types.void(codes, probes, out, types.intp, types.intp), generate


@overload(_tile)
def _compile_tile(codes: Any, probes: Any, out: Any, i: Any, c: Any) -> Any:
    of_vectors: Any = _tile_of_vectors  # its first parameter is the compiler's

    def tile(codes: Any, probes: Any, out: Any, i: Any, c: Any) -> None:
        of_vectors(codes, probes, out, i, c)

    return tile


@njit(nogil=True, cache=True)
def multiply(codes: np.ndarray, probes: np.ndarray, out: np.ndarray) -> None:
    """Compute inner products of whole numbers: out[c, i] = <probe_c, codes_i>, exact where no sum leaves 32 bits.

    Parameters
    ----------
    codes
        (r, W) int8 or int16, r >= TALL.
    probes
        (T, W) int16, T >= WIDE.
    out
        (T, r) int32.
    """
    for first in range(0, probes.shape[0], GROUP):
        for tall in range(0, codes.shape[0], TALL):
            i = min(tall, codes.shape[0] - TALL)  # the last tiles overlap the ones before them, and compute the same numbers
            for wide in range(first, min(first + GROUP, probes.shape[0]), WIDE):
                _tile(codes, probes, out, i, min(wide, probes.shape[0] - WIDE))


@njit(nogil=True, cache=True)
def reaching(
    products: np.ndarray,
    first: int,
    scale: np.ndarray,
    error: np.ndarray,
    norm: np.ndarray,
    step: np.ndarray,
    length: np.ndarray,
    miss: np.ndarray,
    bound: np.ndarray,
    found: np.ndarray,
) -> int:
    """Find the rows that may reach a probe's bound: (probe, row) into found (m, 2) int64, as many as there is room for.

    With <a, r> <= scale <c, r> + error |r| and r = step p + f, <a, r> is at most scale step <c, p> + error |r| + |scale c| |f|.
    What is not a number reaches every bound.

    Parameters
    ----------
    products
        (T, N) int32, <c, p>.
    first
        The first of the n columns that are read.
    scale, error, norm
        (n,) float32, the last |scale c|.
    step, length, miss, bound
        (T,) float32; length |r|, miss |f|.
    found
        (m, 2) int64, out.

    Returns
    -------
    int
        How many there are, perhaps more than found has room for.
    """
    many = 0
    for t in range(bound.size):
        factor, reach, left, least = step[t], length[t], miss[t], bound[t]
        for begin in range(0, scale.size, 256):
            line = products[t, first + begin : first + min(begin + 256, scale.size)]
            s, e, a = scale[begin : begin + 256], error[begin : begin + 256], norm[begin : begin + 256]
            here = 0
            for i in range(line.size):
                here += not (s[i] * factor * np.float32(line[i]) + e[i] * reach + a[i] * left < least)
            if here == 0:
                continue
            for i in range(line.size):
                if not (s[i] * factor * np.float32(line[i]) + e[i] * reach + a[i] * left < least):
                    if many < found.shape[0]:
                        found[many, 0] = t
                        found[many, 1] = begin + i
                    many += 1
    return many
