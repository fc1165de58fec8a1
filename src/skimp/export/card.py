"""The model card that stands beside an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import skimp
from skimp.export.target import Product, Target
from skimp.methods.registry import sections
from skimp.models.carve import KEEP
from skimp.models.hub import is_id

if TYPE_CHECKING:
    from skimp.export.verify import Verification

CARD = "README.md"
_DEMO = {"license": "apache-2.0", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_MAP = {KEEP: "█", "zero": "·", "constant": "c", "linear": "/"}
_LEGEND = {
    "█": "kept",
    "▓": "kept, narrower",
    "·": "left out",
    "c": "a constant in its place",
    "/": "a linear map in its place",
}


@dataclass(frozen=True)
class Row:
    """One line of the map: a sign for each layer of the dense model."""

    kind: str
    signs: str


def render(
    product: Product, target: Target, form: str, verification: Verification | None = None
) -> str:
    """The card as Markdown with YAML front matter."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("skimp.export", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    rows = map_of(product)
    used = {sign for row in rows for sign in row.signs}
    planned = product.anatomy
    return templates.get_template("card.md.jinja").render(
        front=yaml.safe_dump(_front(product, target), sort_keys=False, allow_unicode=True),
        name=product.name,
        source=product.source,
        version=skimp.__version__,
        target=target,
        form=form,
        rows=rows,
        layers=product.dense.dense_layers,
        legend={sign: words for sign, words in _LEGEND.items() if sign in used},
        changes=_changes(product),
        dense=product.dense.parameters,
        planned=planned.parameters,
        share=planned.parameters / product.dense.parameters,
        plan="plan.yaml" if target.name == "transformers" else "plan/plan.yaml",
        evidence=_yaml(dict(product.plan.evidence)) if product.plan.evidence else None,
        loading=target.loading(product, form).strip(),
        verification=verification,
    )


def map_of(product: Product) -> tuple[Row, Row]:
    """What became of each sublayer of the dense model."""
    here = {layer.source: layer for layer in product.anatomy.layers}
    rows = []
    for kind, before in (("attention", "attention"), ("ffn", "FF")):
        signs = ""
        for layer in product.dense.layers:
            now = here.get(layer.source)
            sublayer = None if now is None else getattr(now, kind)
            if sublayer is None:
                signs += _MAP["zero"]
            elif sublayer.state != KEEP:
                signs += _MAP[sublayer.state.partition(":")[0]]
            else:
                whole = getattr(layer, kind).flops_per_token
                signs += "▓" if sublayer.flops_per_token < whole else _MAP[KEEP]
        rows.append(Row(before, signs))
    return rows[0], rows[1]


def _front(product: Product, target: Target) -> dict[str, Any]:
    """The card's metadata: what is not known is left out, not guessed."""
    known = _known(product.source)
    found = {name: known[name] for name in ("license", "base_model", "language") if name in known}
    found["pipeline_tag"] = "text-generation"
    if target.name.startswith("transformers"):
        found["library_name"] = "transformers"
    found["tags"] = ["skimp", "pruned", target.name, product.dense.model_type]
    return found


def _known(source: str) -> dict[str, Any]:
    """Metadata of the dense model: of its own card if it is a folder, else its hub id."""
    if source == "demo":
        return _DEMO
    try:
        text = (Path(source).expanduser() / CARD).read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        found = None
    if isinstance(found, dict):
        return found
    return {"base_model": source} if is_id(source) and not Path(source).exists() else {}


def _changes(product: Product) -> list[str]:
    """The plan's sections in words."""
    found = []
    for name, section in sections(product.plan).items():
        settings = section.to_dict()
        told = ", ".join(f"{key}: {value}" for key, value in settings.items() if value not in ([],))
        found.append(f"`{name}`: {told}")
    return found


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100).rstrip()
