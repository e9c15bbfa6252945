"""The account: nothing lost, nothing twice, and each kind of mistake told from the others."""

from __future__ import annotations

from cloudsync.bench.ledger import Receipts, settle
from cloudsync.bench.payloads import Payload, PayloadReader
from cloudsync.bench.stages import Latencies

_reader = PayloadReader()


def payload(*rows: tuple[int, int], last: bool = False, commit: int = 100) -> Payload:
    events = ",".join(
        f'{{"type":"data.update","key":{{"id":"{key}"}},"version":{version},'
        f'"times":{{"commit":{commit},"feed":{commit + 1000},"route":{commit + 3000}}}}}'
        for key, version in rows
    )
    end = ',"last":true' if last else ""
    found = _reader.read(
        f'{{"type":"sync.batch","n":1,"sub":["s1"],"sent":1,"events":[{events}]{end}}}'.encode()
    )
    assert found is not None
    return found[2]


def client(*payloads: Payload | None) -> Receipts:
    receipts = Receipts()
    for each in payloads:
        if each is None:
            receipts.restart()
        else:
            receipts.note(each, 6100, 10_100)
    return receipts


SNAPSHOT = (None, payload((1000, 0), (1001, 5)), payload(last=True))


def test_all_is_well() -> None:
    clients = [client(*SNAPSHOT, payload((1000, 1)), payload((1001, 6), (1002, 1))) for _ in range(3)]
    account = settle(clients, {"1000": 1, "1001": 6, "1002": 1})
    assert account.deliveries == 9
    assert account.frames == 6
    assert account.snapshot_rows == 6
    assert (account.lost, account.repeated, account.reordered, account.skipped) == (0, 0, 0, 0)
    assert all(receipts.held == {"1000": 1, "1001": 6, "1002": 1} for receipts in clients)


def test_a_version_that_never_came_is_lost() -> None:
    account = settle([client(*SNAPSHOT, payload((1000, 1)))], {"1000": 3, "1001": 5, "1002": 1})
    assert account.lost == 3  # versions 2 and 3 of one row, and a row that was never seen
    assert account.incomplete == 1


def test_a_superseded_version_is_skipped_not_lost() -> None:
    account = settle([client(*SNAPSHOT, payload((1000, 1)), payload((1000, 4)))], {"1000": 4, "1001": 5})
    assert (account.lost, account.skipped) == (0, 2)


def test_twice_is_repeated_and_older_is_reordered() -> None:
    receipts = client(
        *SNAPSHOT, payload((1000, 1)), payload((1000, 3)), payload((1000, 3)), payload((1000, 2))
    )
    account = settle([receipts], {"1000": 3, "1001": 5})
    assert (account.lost, account.repeated, account.reordered) == (0, 1, 1)


def test_the_snapshot_and_then_the_same_again_is_repeated() -> None:
    account = settle([client(*SNAPSHOT, payload((1001, 5)))], {"1000": 0, "1001": 5})
    assert account.repeated == 1


def test_the_next_account_goes_on_where_the_last_one_ended() -> None:
    receipts = client(*SNAPSHOT, payload((1000, 1)))
    settle([receipts], {"1000": 1, "1001": 5})
    receipts.note(payload((1000, 2)), 1, 2)
    account = settle([receipts], {"1000": 2, "1001": 6})
    assert (account.deliveries, account.lost, account.repeated) == (1, 1, 0)


def test_a_row_deleted_before_a_new_snapshot_is_not_missed() -> None:
    receipts = client(*SNAPSHOT)
    settle([receipts], {"1000": 0, "1001": 5})
    for each in (None, payload((1000, 0)), payload(last=True)):
        if each is None:
            receipts.restart()
        else:
            receipts.note(each, 1, 2)
    account = settle([receipts], {"1000": 0, "1001": 6}, {"1001"})
    assert account.lost == 0


def test_a_row_deleted_while_connected_is_missed_if_no_delete_came() -> None:
    receipts = client(*SNAPSHOT)
    settle([receipts], {"1000": 0, "1001": 5})
    assert settle([receipts], {"1000": 0, "1001": 6}, {"1001"}).lost == 1


def test_latencies_by_stage_without_the_snapshot() -> None:
    one, two = client(*SNAPSHOT, payload((1000, 1))), client(*SNAPSHOT, payload((1000, 1)))
    latencies = Latencies(settle([one, two], {"1000": 1, "1001": 5}).latencies)
    assert latencies.count("end_to_end") == 2
    assert latencies.percentile_ms("detection", 50) == 1.0
    assert latencies.percentile_ms("processing", 95) == 2.0
    assert latencies.percentile_ms("delivery", 50) == 3.0
    assert latencies.percentile_ms("receipt", 50) == 4.0
    assert latencies.percentile_ms("end_to_end", 99) == 10.0


def test_sentinels_move_the_account_on_and_do_not_count() -> None:
    receipts = client(*SNAPSHOT, payload((3, 2)), payload((1000, 1)))
    assert receipts.sentinels == {3: 2}
    account = settle([receipts], {"3": 2, "1000": 1, "1001": 5})
    assert account.deliveries == 1
    assert account.lost == 0
