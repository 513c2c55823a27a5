import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.search.rungs import Entry, chosen, due, groups, ranked


def plans(*losses, costs=None, group=0, **marks):
    """Entries 0, 1, … that scored ``losses`` at rung 0; at equal costs, so that the smaller loss is the better plan."""
    return [Entry(i, ((loss, (costs or [1] * len(losses))[i]),), 0, group, **marks) for i, loss in enumerate(losses)]


def at(entry, rung, sent=None):
    """``entry`` after ``rung``, where it scored as before."""
    return Entry(entry.number, entry.points[:1] * (rung + 1), rung if sent is None else sent, entry.group, entry.control, entry.always)


def numbers(entries):
    return [e.number for e in entries]


def run(entries, last, reduction, final=True):
    """Send on whoever is due, with equal scores at every rung, until none is."""
    entries, moves = list(entries), []
    while found := due(entries, last, reduction, final):
        moves.append((found[0].number, found[1]))
        entries[found[0].number] = at(found[0], found[1])
    return entries, moves


def test_the_best_half_may_go_on_and_the_best_goes_first():
    assert due(plans(3, 1, 2, 4), 1, 2, final=False) == (plans(3, 1, 2, 4)[1], 1)
    assert run(plans(3, 1, 2, 4), 1, 2)[1] == [(1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("count", "reduction", "final", "going"), [(5, 2, False, 2), (5, 2, True, 3), (5, 3, False, 1), (1, 2, False, 0), (1, 2, True, 1)],
)
def test_the_share_is_rounded_up_once_no_plan_is_to_come(count, reduction, final, going):
    assert numbers(chosen(plans(*range(count)), 0, reduction, final)) == list(range(going))


def test_the_highest_rung_is_served_first():
    entries = plans(1, 2, 3, 4, 5, 6, 7, 8)
    entries[:2] = [at(e, 1) for e in entries[:2]]
    assert due(entries, 3, 2, final=False) == (entries[0], 2)
    entries[0] = at(entries[0], 2)
    assert due(entries, 3, 2, final=False) == (entries[2], 1)


def test_a_plan_that_went_on_still_counts_at_the_rungs_below():
    entries = plans(1, 2, 3, 4)
    entries[0] = at(entries[0], 1)
    assert run(entries, 1, 2)[1] == [(1, 1)]


@pytest.mark.parametrize("why", ["under way", "failed"])
def test_a_plan_that_is_under_way_or_failed_is_not_sent_again_and_keeps_its_place(why):
    entries = plans(1, 2, 3, 4)
    entries[0] = at(entries[0], 0, sent=1)
    assert run(entries, 1, 2)[1] == [(1, 1)]


def test_plans_compete_with_those_of_similar_cost_alone():
    entries = [*plans(1, 2, 3, 4, group=0), *(Entry(e.number + 4, ((e.points[0][0] + 10, 0.5),), 0, 1) for e in plans(1, 2, 3, 4))]
    assert sorted(run(entries, 1, 2)[1]) == [(0, 1), (1, 1), (4, 1), (5, 1)]
    assert [n for n, _ in run(entries, 1, 2)[1]] == [0, 4, 1, 5]


def test_the_best_control_of_each_group_goes_on_and_the_others_compete():
    entries = [*plans(1, 2, 3), Entry(3, ((8, 1),), 0, 0, control=True), Entry(4, ((7, 1),), 0, 0, control=True)]
    assert numbers(chosen(ranked(entries, 0), 0, 2, final=False)) == [0, 1, 4]
    assert run(entries, 3, 2)[0][4].rung == 3
    assert run(entries, 3, 2)[0][3].rung == 0


def test_a_control_that_costs_less_does_not_take_the_place_of_the_one_that_lost_least():
    cheap, good = Entry(0, ((3, 1),), 0, 0, control=True), Entry(1, ((2, 2),), 0, 0, control=True)
    assert chosen(ranked([cheap, good], 0), 0, 9, final=False) == [good]


def test_the_dense_model_always_goes_on():
    entries = [*plans(1, 2, 3), Entry(3, ((9, 9),), 0, 0, always=True)]
    assert run(entries, 3, 3)[0][3].rung == 3


def test_no_rung_above_the_last_and_nothing_to_do_without_plans():
    assert due([at(e, 2) for e in plans(1, 2)], 2, 2, final=True) is None
    assert due(plans(1, 2), 0, 2, final=True) is None
    assert due([], 3, 2, final=True) is None


def test_a_smaller_rank_goes_before_more_room_and_more_room_before_age():
    losses, costs = [4, 1, 2, 2.9, 3], [4, 4, 3, 2.1, 2]
    order = numbers(ranked(plans(*losses, costs=costs), 0))
    assert order == [1, 4, 2, 3, 0]


def even_noise(of, rung):
    assert rung == 0
    return 0.1 * (1 - np.eye(len(of)))


def test_noise_sends_no_plan_before_one_that_is_better_in_loss_and_cost():
    """Noise was once taken off the difference before dominance was asked for, so that all three were of one rank, and the plan worst in
    both, at its end, had endless room and went second. That a difference may be luck is no reason to prefer what also costs more."""
    crowded = plans(1.0, 1.05, 1.07, costs=[1, 1.1, 1.2])
    assert numbers(ranked(crowded, 0, even_noise)) == numbers(ranked(crowded, 0)) == [0, 1, 2]
    assert numbers(ranked(plans(1.0, 1.05, 2.0), 0, even_noise)) == [0, 1, 2]


def test_of_plans_that_noise_alone_tells_apart_the_cheaper_goes_first():
    entries = plans(1.0, 1.05, 1.3, costs=[1.2, 1.1, 1])
    assert numbers(ranked(entries, 0)) == [0, 2, 1]
    assert numbers(ranked(entries, 0, even_noise)) == [1, 2, 0]


def test_of_equal_losses_with_equal_room_the_cheaper_goes_first():
    two = [Entry(0, ((1.0, 3, 1),), 0), Entry(1, ((1.0, 2, 2),), 0)]
    assert numbers(ranked(two, 0)) == [1, 0]


POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(20, 24), st.booleans(), st.booleans()), min_size=1, max_size=12)


@given(POINTS, st.integers(0, 999), st.integers(1, 4), st.integers(1, 3))
def test_no_plan_is_sent_on_before_one_that_dominates_it(rows, seed, reduction, last):
    drawn = np.triu(np.random.default_rng(seed).exponential(2.0, (len(rows), len(rows))), 1)
    errors = drawn + drawn.T
    entries = [Entry(i, ((loss, cost),), 0, 0, control, always) for i, (loss, cost, control, always) in enumerate(rows)]

    def noise(of, rung):
        return errors[np.ix_(of, of)]

    after = list(entries)
    while found := due(after, last, reduction, True, noise):
        after[found[0].number] = at(*found)
        for e in after:
            for better in (b for b in after if b.rung < e.rung and not (e.control or e.always)):
                loss, cost = np.subtract(better.points[0], e.points[0])
                assert loss > 0 or cost > 0 or loss == cost == 0


def test_a_plan_that_saves_next_to_nothing_for_what_it_loses_is_ranked_behind():
    entries = plans(0.975, 0.136, 1.557, 0.105, costs=[0.516, 0.528, 0.527, 0.528])  # EfficientNet-Lite0's controls near 53 %
    assert numbers(ranked(entries, 0)) == [3, 1, 0, 2]
    fair = plans(0.38, 0.29, 0.30, costs=[0.29, 0.30, 0.30])  # ViT-S's near 30 %
    assert numbers(ranked(fair, 0)) == [1, 0, 2]


def test_groups_are_of_the_nearest_budget_in_ratio():
    assert groups([[100.0], [71.0], [70.0], [30.0], [1.0]], [[100.0], [50.0], [25.0]]) == [0, 0, 1, 2, 2]
    assert groups([[100.0, 10.0], [60.0, 90.0]], [[100.0, 100.0], [10.0, 10.0]]) == [0, 0]


ROW = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 2), st.booleans())


@given(st.lists(ROW, min_size=1, max_size=14), st.integers(2, 4), st.integers(1, 3))
def test_at_the_end_every_group_has_a_plan_at_the_last_rung_and_rung_1_has_its_share(rows, reduction, last):
    entries = [Entry(i, ((loss, cost),), 0, group, control) for i, (loss, cost, group, control) in enumerate(rows)]
    after, moves = run(entries, last, reduction)
    assert len(moves) == len(set(moves)) == sum(e.rung for e in after)
    for group in {e.group for e in after}:
        counts = [sum(e.group == group and e.rung >= rung for e in after) for rung in range(last + 1)]
        assert counts[-1] >= 1
        assert counts == sorted(counts, reverse=True)
        assert counts[1] - -(-counts[0] // reduction) in (0, 1)  # later rungs fill while they are decided about: more may go on
        best = ranked([e for e in entries if e.group == group], 0)[0]
        assert after[best.number].rung == last
    assert run(after, last, reduction)[1] == []
