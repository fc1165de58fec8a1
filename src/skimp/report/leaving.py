"""Reading the `exits` of an `eval` document: where tokens leave the model early."""

from skimp.report.facts import (
    DecidedToken,
    DepthAgreement,
    DepthShares,
    FreeAnswers,
    Leaving,
)
from skimp.report.reader import MAX_LAYERS, Reader, clean

TEXT = "text"
_TOKENS = 512
_GROUPS = 24


def read_leaving(node: Reader) -> Leaving | None:
    """What can be drawn of it; None if that is nothing."""
    if not node:
        if node.value is not None:
            node.is_mapping()
        return None
    layers = node.child("layers").as_number()
    if layers is None or not 1 <= layers <= MAX_LAYERS or layers != int(layers):
        node.child("layers").note(f"a whole number from 1 to {MAX_LAYERS}")
        return None
    text, count = node.child("text"), int(layers)
    groups = [_read_shares(name, one, count) for name, one in node.child("tasks").items()]
    if text:
        groups.append(_read_shares(f"held-out {TEXT}", text, count))
    found = Leaving(
        layers=count,
        groups=tuple(group for group in groups if group is not None)[:_GROUPS],
        agreement=_read_agreement(text, count),
        sample=_read_sample(text.child("sample"), count),
        free=_read_free(node.child("free")),
        text_agreement=share(text.child("agreement")),
    )
    return found if found.groups or found.agreement or found.sample or found.free else None


def share(node: Reader) -> float | None:
    """A number from 0 to 1."""
    value = node.as_number()
    if value is None or 0 <= value <= 1:
        return value
    node.note("a share between 0 and 1")
    return None


def _depth(text: object, layers: int) -> int | None:
    """A number of layers that were run, from 0."""
    try:
        value = int(str(text))
    except ValueError:
        return None
    return value if 0 <= value <= layers else None


def _by_depth(node: Reader, layers: int) -> dict[int, float]:
    found = {}
    for name, item in node.items():
        depth, value = _depth(name, layers), share(item)
        if depth is None:
            node.note(f"shares by numbers of layers from 0 to {layers}")
        elif value is not None:
            found[depth] = value
    return dict(sorted(found.items()))


def _read_shares(name: str, node: Reader, layers: int) -> DepthShares | None:
    if not node.is_mapping():
        return None
    depths = _by_depth(node.child("depths"), layers)
    if not depths:
        return None
    left_out, exits = (share(node.child(key)) for key in ("left_out", "exits"))
    return DepthShares(clean(name), left_out, exits, tuple(depths.items()))


def _read_agreement(text: Reader, layers: int) -> tuple[DepthAgreement, ...]:
    left = _by_depth(text.child("agreement_by_depth"), layers)
    found = {}
    for item in text.child("lens").elements():
        if not item.is_mapping():
            continue
        depth = _depth(item.child("depth").value, layers)
        if depth is None:
            item.child("depth").note(f"a number of layers from 0 to {layers}")
            continue
        plain, translated = share(item.child("plain")), share(item.child("translated"))
        if plain is not None or translated is not None:
            found[depth] = DepthAgreement(depth, plain, translated, left.get(depth))
    return tuple(found[depth] for depth in sorted(found))


def _read_sample(node: Reader, layers: int) -> tuple[DecidedToken, ...]:
    if not node:
        return ()
    names = ("tokens", "depths", "agree")
    rows = [[item.value for item in node.child(name).elements()] for name in names]
    sizes = {len(row) for row in rows}
    texts, depths, agree = rows
    good = (
        len(sizes) == 1
        and len(texts) <= _TOKENS
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(depth, int) and _depth(depth, layers) is not None for depth in depths)
        and all(isinstance(each, bool) for each in agree)
    )
    if not good:
        node.note(f"up to {_TOKENS} tokens with a depth and an agreement for each")
        return ()
    triples = zip(texts, depths, agree, strict=True)
    return tuple(DecidedToken(clean(text), int(depth), same) for text, depth, same in triples)


def _read_free(node: Reader) -> FreeAnswers | None:
    if not node:
        return None
    shares = {name: share(node.child(name)) for name in ("until_first", "same", "left_out")}
    if shares["until_first"] is None:
        return None
    return FreeAnswers(prompts=node.number("prompts"), new=node.number("new"), **shares)
