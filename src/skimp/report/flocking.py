"""Reading the `flocking` of an `eval` document: which neurons prompts need."""

import math

from skimp.report.facts import Flocking, LayerOverlap, NeuronMap
from skimp.report.reader import Reader

_PICTURES = 4
_ROWS = 256
_COLUMNS = 1024
_PROMPTS = 32
_NEURONS = 10**9


def read_flocking(node: Reader) -> Flocking | None:
    """What can be drawn of it; None if that is nothing."""
    if not node:
        if node.value is not None:
            node.is_mapping()
        return None
    sizes = (_whole(item, 1) for item in node.child("prompts").elements())
    overlap = node.child("overlap")
    found = Flocking(
        sizes=tuple(size for size in sizes if size is not None),
        map=_read_map(node.child("map")),
        mean=_read_shares(overlap, 0) if overlap else None,
        pairs=_read_pairs(overlap.child("pairs")),
        layers=_read_layers(overlap.child("layers")),
    )
    return found if found.map or found.pairs or found.layers else None


def _whole(node: Reader, least: int) -> int | None:
    value = node.value
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= _NEURONS:
        return value
    node.note(f"a whole number from {least} to {_NEURONS}")
    return None


def _read_map(node: Reader) -> NeuronMap | None:
    if not node:
        return None
    layer = node.child("layer").as_layer()
    neurons, every = _whole(node.child("neurons"), 1), _whole(node.child("every"), 1)
    top = node.number("top")
    pictures = [_read_picture(item) for item in node.child("prompts").elements()]
    drawn = tuple(picture for picture in pictures if picture)[:_PICTURES]
    if layer is None or neurons is None or every is None or not drawn:
        return None
    if top is None or not math.isfinite(top) or top <= 0:
        node.child("top").note("a number above 0")
        return None
    return NeuronMap(layer, neurons, every, top, drawn)


def _read_picture(node: Reader) -> tuple[bytes, ...]:
    """Rows of one width; none if any of them cannot be read."""
    rows: list[bytes] = []
    for item in node.elements():
        try:
            rows.append(bytes.fromhex(item.value))
        except (TypeError, ValueError):
            rows.append(b"")
    widths = {len(row) for row in rows}
    if len(rows) > _ROWS or len(widths) != 1 or not 0 < max(widths) <= _COLUMNS:
        node.note("a list of texts of one length, two hexadecimal digits a neuron")
        return ()
    return tuple(rows)


def _share(node: Reader) -> float | None:
    value = node.as_number()
    if value is None or 0 <= value <= 1:
        return value
    node.note("a share between 0 and 1")
    return None


def _read_shares(node: Reader, layer: int) -> LayerOverlap:
    names = ("chance", "prompts", "own", "other")
    return LayerOverlap(layer, **{name: _share(node.child(name)) for name in names})


def _read_layers(node: Reader) -> tuple[LayerOverlap, ...]:
    found: dict[int, LayerOverlap] = {}
    for item in node.elements():
        if item.is_mapping() and (layer := item.child("layer").as_layer()) is not None:
            found[layer] = _read_shares(item, layer)
    return tuple(found[layer] for layer in sorted(found))


def _read_pairs(node: Reader) -> tuple[tuple[float, ...], ...]:
    """A square of shares; nothing if one is missing."""
    if node.value is None:
        return ()
    rows = [[_share(item) for item in row.elements()] for row in node.elements()]
    whole = tuple(tuple(share for share in row if share is not None) for row in rows)
    if not 2 <= len(whole) <= _PROMPTS or any(len(row) != len(whole) for row in whole):
        node.note(f"a square of shares for 2 to {_PROMPTS} prompts")
        return ()
    return whole
