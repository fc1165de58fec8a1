"""Products of one input become one call; nothing else moves."""

import torch
from torch import nn

from skimp.engine.program import siblings
from skimp.engine.program.capture import Call, storage_key
from skimp.engine.program.listing import ARENA, WEIGHT, Operand, Operation

mm, silu = torch.ops.aten.mm.default, torch.ops.aten.silu.default
X, OTHER = torch.ones(1, 4), torch.ones(1, 4)
WEIGHTS = [nn.Parameter(torch.ones(4, 4)) for _ in range(3)]
GIVEN = {storage_key(weight) for weight in WEIGHTS}


def product(x: torch.Tensor, weight: torch.Tensor) -> Call:
    return Call(mm, (x, weight.t()), {}, torch.empty(1, 4))


def test_products_of_one_input_come_together() -> None:
    first, second = product(X, WEIGHTS[0]), product(X, WEIGHTS[1])
    other = product(OTHER, WEIGHTS[2])
    between = Call(silu, (first.result,), {}, torch.empty(1, 4))
    calls = siblings.together([first, between, other, second], GIVEN)
    assert calls == [first, second, between, other]


def test_a_view_of_the_same_numbers_is_the_same_input() -> None:
    first, second = product(X, WEIGHTS[0]), product(X.view(4).view(1, 4), WEIGHTS[1])
    between = Call(silu, (first.result,), {}, torch.empty(1, 4))
    assert siblings.together([first, between, second], GIVEN)[1] is second


def test_a_product_with_a_computed_matrix_stays() -> None:
    first = product(X, WEIGHTS[0])
    made = Call(silu, (WEIGHTS[1],), {}, torch.empty(4, 4))
    second = product(X, made.result)
    assert siblings.together([first, made, second], GIVEN) == [first, made, second]


def operation(x: int, out: int) -> Operation:
    place = Operand(ARENA, "", x, 0, (1, 4), (4, 1))
    result = Operand(ARENA, "", out, 0, (1, 4), (4, 1))
    return Operation("linear", (place, result, Operand(WEIGHT, "w", 0, 0, (4, 4), (4, 1)), None))


def test_neighbours_become_one_call_of_at_most_four_jobs() -> None:
    made = siblings.merged([operation(0, 64 * n) for n in range(1, 6)] + [operation(9, 640)])
    assert [len(found.operands) // 3 for found in made] == [4, 1, 1]
    outs = [made[0].operands[1 + 3 * job] for job in range(4)]
    assert [out.offset for out in outs if out is not None] == [64, 128, 192, 256]
