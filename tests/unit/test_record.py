"""The record of a push survives its trip through the window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport.record_codec import decode_record, encode_record, record_bytes

counts = st.integers(0, 2**53)
records = st.builds(
    PushRecord,
    version=counts,
    num_tokens=counts,
    loss_sum=st.floats(allow_nan=False),
    num_source_tokens=counts,
    compute_seconds=st.floats(0, 1e6),
    tickets=st.lists(counts, max_size=12).map(tuple),
)


@given(record=records, room=st.integers(0, 5))
def test_round_trip(record: PushRecord, room: int) -> None:
    max_tickets = len(record.tickets) + room
    words = encode_record(record, max_tickets)
    assert words.numel() * 8 == record_bytes(max_tickets)
    assert decode_record(words) == record


def test_space_is_whole_cache_lines() -> None:
    # 8 fixed words of 8 bytes fill one line of 64 bytes; tickets 1 to 8 need a second one.
    assert [record_bytes(number) for number in (0, 1, 8, 9)] == [64, 128, 128, 192]


def test_a_push_of_too_many_batches_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"covers 3 batches, .* room for 2: set LinkOptions.max_tickets=3"):
        encode_record(PushRecord(1, 5, 1.0, 5, 0.1, (1, 2, 3)), 2)
