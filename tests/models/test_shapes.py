"""The table of named shapes against the published parameter counts, and the source's syntax."""

import pytest

from skimp.errors import LoadError
from skimp.models import random_weights, shapes
from skimp.models.quiet import quiet

# Published counts, tied weights counted once; written down apart from the table on purpose.
OFFICIAL = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-1.1b": 1_100_048_384,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-2b": 2_614_341_888,
    "opt-1.3b": 1_315_758_080,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_every_shape_has_an_official_count() -> None:
    assert set(OFFICIAL) == set(shapes.SHAPES)


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    with quiet():
        counted = random_weights.count(shapes.config(name))
    assert counted == OFFICIAL[name] == shapes.SHAPES[name].parameters


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_cut_shortens_the_layer_types_too(name: str) -> None:
    with quiet():
        config = shapes.config(name, layers=3)
    assert config.num_hidden_layers == 3
    assert len(getattr(config, "layer_types", None) or range(3)) == 3
    assert config.eos_token_id is None


def test_gemma_keeps_its_alternation() -> None:
    with quiet():
        whole, cut = shapes.config("gemma-2-2b"), shapes.config("gemma-2-2b", layers=5)
    assert cut.layer_types == whole.layer_types[:5]
    assert len(set(cut.layer_types)) == 2


def test_parsing() -> None:
    assert shapes.parse("random:llama-2-7b", seed=4) == shapes.RandomSource("llama-2-7b", 32, 4)
    cut = shapes.parse("random:llama-2-7b,layers=3,seed=9", seed=4)
    assert cut == shapes.RandomSource("llama-2-7b", 3, 9)


@pytest.mark.parametrize("source", ["random:", "random:llama-9", "random:LLAMA-2-7B"])
def test_unknown_shapes_list_the_known(source: str) -> None:
    with pytest.raises(LoadError) as caught:
        shapes.parse(source)
    for name in OFFICIAL:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["layers", "layers=", "layers=two", "depth=2", "layers=-1", "seed=1.5", ""]
)
def test_malformed_settings_are_named(setting: str) -> None:
    with pytest.raises(LoadError, match="not understood") as caught:
        shapes.parse(f"random:llama-2-7b,{setting}")
    assert repr(setting) in str(caught.value)


@pytest.mark.parametrize("layers", [0, 33])
def test_impossible_cuts_say_what_is_possible(layers: int) -> None:
    with pytest.raises(LoadError, match="1 to 32"):
        shapes.parse(f"random:llama-2-7b,layers={layers}")


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(LoadError, match="layers is given twice"):
        shapes.parse("random:llama-2-7b,layers=2,layers=3")
