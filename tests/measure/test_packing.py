"""A packed row must hold every sequence, each seeing exactly itself."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from skimp.measure.packing import Layout, Row, Scored, attention, batches, chain_rows, packed_rows

# Few distinct tokens, so that sequences share prefixes of every length.
tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


@st.composite
def sequences(draw) -> list[Scored]:
    whole = draw(st.lists(tokens, min_size=1, max_size=12))
    counts = [draw(st.integers(1, len(sequence))) for sequence in whole]
    return [
        Scored(number, sequence, tuple(range(count)))
        for number, (sequence, count) in enumerate(zip(whole, counts, strict=True))
    ]


def _line(row: Row, entry: int) -> list[int]:
    """The entries from the root down to `entry`."""
    line = []
    while entry >= 0:
        line.append(entry)
        entry = row.parents[entry]
    return line[::-1]


@given(sequences(), st.integers(1, 20))
def test_every_sequence_is_a_path_and_sees_only_that_path(sequences, row_tokens) -> None:
    rows = packed_rows(sequences, row_tokens)
    assert sorted(s.index for row in rows for s, _ in row.wanted) == [s.index for s in sequences]
    for row in rows:
        seen = row.ancestors()
        for sequence, entries in row.wanted:
            line = _line(row, entries[-1])
            assert tuple(row.tokens[entry] for entry in line) == sequence.tokens
            assert entries == line[-len(sequence.targets) :]
            assert [row.depths[entry] for entry in line] == list(range(len(line)))
            assert seen[line[-1]].nonzero().flatten().tolist() == line


@given(sequences())
def test_a_wide_row_holds_each_distinct_prefix_once(sequences) -> None:
    (row,) = packed_rows(sequences, 1000)
    prefixes = {s.tokens[:size] for s in sequences for size in range(1, len(s.tokens) + 1)}
    assert len(row) == len(prefixes)
    assert row.is_chain == (max(len(s.tokens) for s in sequences) == len(prefixes))


@given(sequences())
def test_plain_rows_never_branch(sequences) -> None:
    rows = chain_rows(sequences)
    assert all(row.is_chain for row in rows)
    assert sum(len(row.wanted) for row in rows) == len(sequences)


def test_choices_of_a_long_item_stay_together_and_unrelated_items_do_not() -> None:
    stem = tuple(range(100, 400))
    choices = [Scored(i, (*stem, i, i, i), (1, 2)) for i in range(4)]
    other = Scored(4, tuple(range(500, 800)), (1,))
    rows = packed_rows([*choices, other], row_tokens=128)
    assert sorted(len(row) for row in rows) == [300, 300 + 4 * 3]


@given(sequences(), st.integers(1, 30), st.integers(1, 10))
def test_batches_hold_all_rows_within_both_budgets(sequences, budget, scored) -> None:
    rows = packed_rows(sequences, 4)
    found = list(batches(rows, budget, scored))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in found for row in batch)
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= budget
        assert len(batch) == 1 or sum(row.scored for row in batch) <= scored
    widths = [len(batch[0]) for batch in found]
    assert widths == sorted(widths, reverse=True)


@given(sequences())
def test_a_layout_points_at_what_predicts_each_target(sequences) -> None:
    rows = packed_rows(sequences, 6)
    layout = Layout.of(rows)
    width = layout.tokens.shape[1]
    assert len(layout.position.unique()) == len(layout.position)
    start = 0
    for sequence in layout.owner:
        stop = start + len(sequence.targets)
        assert layout.target[start:stop].tolist() == list(sequence.targets)
        places = layout.position[layout.slot[start:stop]]
        found = layout.tokens[places // width, places % width]
        assert tuple(found.tolist()) == sequence.tokens[-len(sequence.targets) :]
        assert layout.real[places // width, places % width].all()
        start = stop


def test_windows_count_positions_not_places_in_the_row() -> None:
    pair = [Scored(0, (1, 2, 3, 4), (0,)), Scored(1, (1, 2, 7, 8), (0,))]
    (row,) = packed_rows(pair, 100)
    assert row.tokens == [1, 2, 3, 4, 7, 8]
    seen = attention([row], width=7, window=3)[0, 0]
    assert seen[5].tolist() == [False, True, False, False, True, True, False]
    assert seen[6].nonzero().flatten().tolist() == [6]  # padding sees itself: no empty softmax
    assert torch.equal(seen[:6, :6], seen[:6, :6].tril())
