"""Numbers as a reader sees them: three significant digits, units, signs and gaps.

Every function takes a number that may be absent (None) or infinite and returns plain text. Absent
is always the same dash, so that a gap is seen as a gap and never as a zero.
"""

import math

GAP = "–"
MINUS = "\u2212"
_DECIMAL = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _infinite(value: float) -> str:
    return "∞" if value > 0 else f"{MINUS}∞"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without exponents where they are avoidable."""
    if value is None or math.isnan(value):
        return GAP
    if math.isinf(value):
        return _infinite(value)
    if value == 0:
        return "0"
    # Rounding first: 999.7 has three digits before the point, but four once it is rounded.
    rounded = f"{value:.{digits - 1}e}"
    mantissa, power = rounded.split("e")
    exponent = int(power)
    if exponent < -4 or exponent > 8:
        return _signed(f"{mantissa}e{exponent}")
    return _signed(f"{float(rounded):,.{max(0, digits - 1 - exponent)}f}")


def tick(value: float, step: float) -> str:
    """A label of an axis with as many decimals as its step needs."""
    if step <= 0 or not math.isfinite(step) or not 1e-5 < step < 1e7:
        return significant(value)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return "0" if value == 0 else _signed(f"{value:,.{decimals}f}")


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    if value is None or math.isnan(value):
        return GAP
    return _infinite(value) if math.isinf(value) else _signed(f"{round(value):,}")


def times(value: float | None) -> str:
    """A speedup, `1.12×`."""
    if value is None or math.isnan(value):
        return GAP
    if math.isinf(value):
        return _infinite(value) + "×"
    return _signed(f"{value:.2f}×") if abs(value) < 10 else f"{significant(value)}×"


def share(value: float | None) -> str:
    """A fraction as a percentage: 0.231 -> `23.1%`."""
    if value is None or math.isnan(value):
        return GAP
    percent = 100 * value
    if math.isinf(percent):
        return _infinite(value)
    return _signed(f"{percent:.1f}%" if abs(value) < 10 else f"{percent:,.0f}%")


def change(new: float | None, old: float | None) -> str:
    """Relative change from `old` to `new`, `−10.8%`; a gap where it is not defined."""
    if new is None or old is None or old == 0 or not math.isfinite(new) or not math.isfinite(old):
        return GAP
    percent = 100 * (new / old - 1)
    if math.isinf(percent):
        return GAP
    return "±0%" if abs(percent) < 0.05 else _signed(f"{percent:+,.1f}%")


def points(value: float | None) -> str:
    """A difference of two fractions in percentage points, with its sign: -0.008 -> `−0.8`."""
    if value is None or math.isnan(value):
        return GAP
    percent = 100 * value
    if math.isinf(percent):
        return _infinite(value)
    text = f"{percent:+,.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else _signed(text)


def percent_change(fraction: float | None) -> str:
    """A relative change given as a fraction, with its sign: 0.042 -> `+4.2%`."""
    text = points(fraction)
    return text if text == GAP or text.endswith("∞") else f"{text}%"


def plus(value: float | None) -> str:
    """A difference in the metric's own unit, three significant digits, with its sign."""
    text = significant(value)
    return f"+{text}" if value is not None and value > 0 else text


def size(value: float | None) -> str:
    """Bytes in decimal units: 269_500_000 -> `270 MB`."""
    if value is None or math.isnan(value):
        return GAP
    if math.isinf(value):
        return _infinite(value)
    for factor, unit in _DECIMAL:
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {unit}"
    return f"{significant(value)} B"


def flops(value: float | None) -> str:
    """Floating-point operations per second in decimal units."""
    text = size(value)
    return text if text == GAP else f"{text.removesuffix('B')}FLOP/s"


def seconds(value: float | None) -> str:
    """A duration in the unit that keeps it readable, from µs to hours."""
    if value is None or not math.isfinite(value):
        return GAP if value is None or math.isnan(value) else _infinite(value)
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms"), (600, 1, "s")):
        if abs(value) < limit:
            return f"{significant(value * factor)} {unit}"
    if value < 7200:
        return f"{significant(value / 60)} min"
    return f"{significant(value / 3600)} h"


def setting(value: int | float) -> str:
    """A setting such as a seed, as it would be typed; huge whole numbers shortened."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else f"about 2^{abs(value).bit_length() - 1}"
    return _signed(f"{value:.6g}") if math.isfinite(value) else str(value)
