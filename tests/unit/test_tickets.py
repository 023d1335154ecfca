"""Tickets: what has been applied and what is left cover every batch once, whatever the order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.ps.protocol.tickets import TicketLedger, TicketSequence


def test_sequence_hands_out_the_gaps_first() -> None:
    sequence = TicketSequence(again=(3, 5), next_ticket=8)
    assert [sequence.ticket(number) for number in range(5)] == [3, 5, 8, 9, 10]
    assert [TicketSequence().ticket(number) for number in range(3)] == [0, 1, 2]


def test_ledger_worked_out_by_hand() -> None:
    ledger = TicketLedger()
    ledger.add([1, 4])
    assert ledger.low == 0 and ledger.above == [1, 4]
    assert ledger.remaining() == TicketSequence(again=(0, 2, 3), next_ticket=5)
    ledger.add([0])
    assert ledger.low == 2 and ledger.above == [4]
    ledger.add([3, 2])
    assert ledger.low == 5 and ledger.above == []
    assert ledger.remaining() == TicketSequence(again=(), next_ticket=5)


def test_a_ticket_is_applied_once() -> None:
    ledger = TicketLedger(low=4, above=[6])
    for ticket in (0, 3, 6):
        with pytest.raises(AssertionError, match=f"ticket {ticket} was applied twice"):
            ledger.add([ticket])


@given(applied=st.sets(st.integers(0, 60)), order=st.randoms(use_true_random=False), cut=st.integers(0, 60))
def test_applied_and_remaining_cover_each_ticket_once(applied: set[int], order: random.Random, cut: int) -> None:
    tickets = sorted(applied)
    order.shuffle(tickets)
    ledger = TicketLedger()
    ledger.add(tickets[:cut])
    # Through a checkpoint and back: the state is `low` and `above` alone.
    ledger = TicketLedger(ledger.low, ledger.above)
    ledger.add(tickets[cut:])
    remaining = ledger.remaining()
    drawn = [remaining.ticket(number) for number in range(70)]
    assert sorted(applied | set(drawn)) == list(range(max(drawn) + 1))
    assert not applied & set(drawn) and len(set(drawn)) == len(drawn)
    assert all(ticket in applied for ticket in range(ledger.low)) and ledger.low not in applied
