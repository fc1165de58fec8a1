"""The model card that stands beside an exported model."""

from skimp.export.target import Product, Target

CARD = "README.md"


def render(product: Product, target: Target, form: str) -> str:
    """The card as Markdown with YAML front matter."""
    return f"# {product.name}\n\n{target.loading(product, form)}\n"
