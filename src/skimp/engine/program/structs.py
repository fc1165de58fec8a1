"""The structures of program.h and of the kernels' abi.h, as ctypes sees them."""

import ctypes
from ctypes import POINTER, Structure, c_double, c_int, c_int64, c_void_p
from typing import Any

from skimp.engine.program.listing import DIMS, MOST_JOBS

_INPUTS = 3


def _fields(pointers: str = "", numbers: str = "", reals: str = "", more: str = "") -> list:
    return [
        *((name, c_void_p) for name in pointers.split()),
        *((name, c_int64) for name in numbers.split()),
        *((name, c_double) for name in reals.split()),
        *((name, c_int64) for name in more.split()),
    ]


class Operand(Structure):
    """`operand`."""

    _fields_ = [("data", c_void_p), ("dtype", c_int64), ("stride", c_int64 * DIMS)]


class Map(Structure):
    """`map_args`."""

    _fields_ = [
        ("op", c_int64),
        ("dims", c_int64),
        ("shape", c_int64 * DIMS),
        ("inputs", c_int64),
        ("out", Operand),
        ("input", Operand * _INPUTS),
        ("scalar", c_double * 2),
    ]


class Reduce(Structure):
    """`reduce_args`."""

    _fields_ = [
        ("dims", c_int64),
        ("shape", c_int64 * DIMS),
        ("out", Operand),
        ("input", Operand),
        ("scale", c_double),
    ]


class LayerNorm(Structure):
    """`layer_norm_args`."""

    _fields_ = _fields("x weight bias out", "m k dtype", "eps")


class Gather(Structure):
    """`gather_args`."""

    _fields_ = _fields("table index out", "m height stride bytes")


class Job(Structure):
    """`linear_job`."""

    _fields_ = _fields("weight bias out", "count stride height")


class Linear(Structure):
    """`linear_args`."""

    _fields_ = [*_fields("x rows", "m k dtype threads jobs"), ("job", Job * MOST_JOBS)]


class Neurons(Structure):
    """`neurons_args`."""

    _fields_ = [
        *_fields("h weight rows out", "m r n stride height dtype threads"),
        ("order", c_void_p),
    ]


class Store(Structure):
    """`store_args`."""

    _fields_ = _fields(
        "cache fresh index", "b h s q bytes cache_b cache_h cache_s fresh_b fresh_h fresh_q"
    )


class Attend(Structure):
    """`attend_args`."""

    _fields_ = _fields(
        "q k v valid sinks out",
        "b hq hk q_count s d dv q_b q_h q_q k_b k_h k_s v_b v_h v_s valid_b valid_q",
        "scale softcap",
        "dtype threads oldest",
    )


class Slot(Structure):
    """`slot_args`."""

    _fields_ = [
        ("slot", c_int64),
        ("stored_keys", Store),
        ("stored_values", Store),
        ("attended", Attend),
    ]


class Operation(Structure):
    """`operation`."""

    _fields_ = [("kind", c_int64), ("args", c_void_p), ("layer", c_int64), ("width", c_int64)]


class SlotPlace(Structure):
    """`slot`."""

    _fields_ = _fields("keys values", "size")


class NeuronsUsed(Structure):
    """`neurons_used`."""

    _fields_ = _fields("rows mask fill order", "count")


class Mask(Structure):
    """`mask_args`."""

    _fields_ = _fields("h", "m dtype")


class Context(Structure):
    """`context`."""

    _fields_ = [
        ("slots", POINTER(SlotPlace)),
        ("used", POINTER(NeuronsUsed)),
        ("pads", c_void_p),
        ("valid", c_void_p),
        ("at", c_int64),
        ("queries", c_int64),
        ("threads", c_int64),
        ("sized", c_int64),
    ]


LINEAR, NEURONS, MAP, REDUCE, LAYER_NORM, GATHER, SLOT, STORE, MASK = range(9)


def run_function(handle: ctypes.CDLL) -> Any:
    """`skimp_program_run(operations, first, last, context)` of a loaded library."""
    run = handle.skimp_program_run
    run.argtypes = [POINTER(Operation), c_int64, c_int64, POINTER(Context)]
    run.restype = c_int
    return run
