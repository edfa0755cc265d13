"""Every row is multiplied once with its own adapter's weights, whatever the rule finds cheapest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.cpu_lora.form import WIDTHS, form_of
from service.engine.cpu_lora.plan import MANY_ROWS, plan

SPANS = ((0, 576), (576, 768), (768, 960))
RANKS = st.tuples(*[st.sampled_from([0, 1, 4, 16, 64, 100, 320])] * len(SPANS))
SLOTS = 16


@st.composite
def steps(draw: st.DrawFn) -> tuple[dict[int, list[int]], dict[int, tuple[int, ...]]]:
    """Rows by slot in any order, some of them nobody's, and each slot's ranks."""
    groups = draw(st.dictionaries(st.integers(0, SLOTS - 1), st.integers(1, 2 * MANY_ROWS), max_size=8))
    owners = [slot for slot, count in groups.items() for _ in range(count)] + [-1] * draw(st.integers(0, 20))
    order = draw(st.permutations(range(len(owners)))) if len(owners) < 64 else range(len(owners))
    rows: dict[int, list[int]] = {}
    for row, at in enumerate(order):
        if owners[at] >= 0:
            rows.setdefault(owners[at], []).append(row)
    return rows, {slot: draw(RANKS) for slot in groups}


@given(steps())
def test_a_row_is_covered_once_and_by_its_own_slot(
    step: tuple[dict[int, list[int]], dict[int, tuple[int, ...]]],
) -> None:
    rows, ranks = step
    forms = {slot: form for slot, each in ranks.items() if (form := form_of(SPANS, each))}
    chosen = plan(rows, forms, 576)
    covered: dict[int, list[int]] = {slot: list(rows[slot]) for slot in chosen.alone}
    for batch in chosen.batches:
        assert len(batch.rows) == batch.slots
        assert batch.first + batch.slots <= SLOTS
        for slot, mine in enumerate(batch.rows, batch.first):
            assert len(mine) <= batch.depth < MANY_ROWS
            if mine:
                assert slot not in covered
                assert forms[slot] == batch.form
                covered[slot] = list(mine)
    assert covered == {slot: rows[slot] for slot in rows if slot in forms}


@given(RANKS)
def test_a_form_has_room_for_every_rank(ranks: tuple[int, ...]) -> None:
    form = form_of(SPANS, ranks)
    if not any(ranks):
        assert form is None
        return
    assert form is not None
    assert form.width in WIDTHS
    assert form.width * len(form.spans) >= sum(ranks)
    assert len(form.spans) == 1 or form.width >= max(ranks)


def test_neighbours_share_a_product_and_strangers_do_not() -> None:
    """Four adapters side by side are one batch; two at the ends of many slots are one each."""
    form = form_of(SPANS, (16, 16, 16))
    assert form is not None
    together = plan({slot: [slot] for slot in range(4)}, dict.fromkeys(range(4), form), 576)
    assert [(batch.first, batch.slots) for batch in together.batches] == [(0, 4)]
    apart = plan({0: [0], 15: [1]}, {0: form, 15: form}, 576)
    assert [(batch.first, batch.slots) for batch in apart.batches] == [(0, 1), (15, 1)]


def test_one_prompt_being_read_does_not_deepen_the_others() -> None:
    """An adapter with many rows goes by itself, so that the others' products stay shallow."""
    form = form_of(SPANS, (16, 16, 16))
    assert form is not None
    rows = {0: [0], 1: list(range(1, 501)), 2: [501]}
    chosen = plan(rows, dict.fromkeys(rows, form), 576)
    assert chosen.alone == (1,)
    assert max(batch.depth for batch in chosen.batches) == 1
