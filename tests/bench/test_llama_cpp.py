"""What the llama.cpp bench times."""

from bench.llama_cpp import plans
from tests.export.gguf_kit import model

import skimp
from skimp.models.anatomy import Anatomy


def test_plans_leave_out_what_their_names_say() -> None:
    dense = model(num_hidden_layers=6, intermediate_size=256)
    anatomy = Anatomy.of(dense)
    found = {}
    for name, plan in plans(anatomy):
        with skimp.apply(dense, plan):
            found[name] = Anatomy.of(dense)
    states = [layer.attention.state for layer in found["33% of attention"].layers]
    assert states.count("zero") == 2
    assert found["half of the neurons"].ffn_size == 128
