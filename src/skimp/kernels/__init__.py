"""Small native kernels for decoding on CPUs, each beside a twin in plain torch.

Decoding a token reads every weight once, so its least time is bytes over memory bandwidth. These
kernels read each weight row and each cache entry once, at that bandwidth, from one core. They are
plain C behind ctypes, compiled at first use with the C compiler that is there; one shared object
holds a variant for each instruction set, picked when it is loaded. Until it is compiled, where
there is no compiler, on other devices, and for inputs of more than 16 rows, the twin computes the
same numbers.

`SKIMP_NATIVE=0` turns the native library off, `SKIMP_ISA` takes a lower instruction set.

On GPUs only chosen rows of a weight have kernels, in Triton (`triton_rows.py`); `SKIMP_TRITON=0`
turns those off.
"""

from skimp.kernels.library import available, being_made, isa, set_threads, threads, why_not
from skimp.kernels.ops import attend, linear, linear_many, neurons, rms_norm, store

__all__ = [
    "attend",
    "available",
    "being_made",
    "isa",
    "linear",
    "linear_many",
    "neurons",
    "rms_norm",
    "set_threads",
    "store",
    "threads",
    "why_not",
]
