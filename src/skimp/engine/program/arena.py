"""Where passing tensors stand while a step runs: one buffer, its parts used again and again."""

_ALIGN = 64  # a cache line


class Arena:
    """Gives out parts of a buffer; a small one stays in the processor's first caches."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (offset, bytes), by offset, never adjoining

    def take(self, count: int) -> int:
        """The offset of `count` bytes that no one else holds."""
        count = _whole(count)
        for index, (offset, room) in enumerate(self._free):
            if room >= count:
                rest = [(offset + count, room - count)] if room > count else []
                self._free[index : index + 1] = rest
                return offset
        offset = self.size
        self.size += count
        return offset

    def give(self, offset: int, count: int) -> None:
        """Take back what `take` gave."""
        parts: list[tuple[int, int]] = []
        for start, room in sorted([*self._free, (offset, _whole(count))]):
            if parts and sum(parts[-1]) == start:
                parts[-1] = (parts[-1][0], parts[-1][1] + room)
            else:
                parts.append((start, room))
        self._free = parts


def _whole(count: int) -> int:
    return max(1, -(-count // _ALIGN)) * _ALIGN
