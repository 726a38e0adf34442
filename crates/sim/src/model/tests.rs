//! Histories by hand, and what may be found after each.

use super::*;

const INITIAL: Value = Value::Initial;
const ZERO: Value = Value::Zero;

fn written(request: u64) -> Value {
    Value::Written(RequestId(request))
}

fn history() -> History {
    History::new(stamped_disk(8), false)
}

fn write(history: &mut History, sector: u64) -> RequestId {
    history.write(0, sector * SECTOR, SECTOR).0
}

/// Acknowledged before the next thing happens.
fn done(history: &mut History, request: RequestId) {
    history.ended(0, request, true);
}

fn flush(history: &mut History) {
    let flush = history.flush(0);
    done(history, flush);
}

fn allowed(history: &History, sector: u64) -> Vec<Value> {
    history.promise_at(0).allowed(sector)
}

#[test]
fn stamps_are_whole_or_none() {
    let bytes = stamp(7, 3);
    assert_eq!(stamp_of(&bytes), Some((7, 3)));
    for at in 0..bytes.len() {
        let mut spoiled = bytes;
        spoiled[at] ^= 1;
        assert_eq!(stamp_of(&spoiled), None, "{at}");
    }
    assert_eq!((stamp_of(&[]), stamp_of(&bytes[..511])), (None, None));
    let (_, data) = history().write(0, 1024, 1024);
    assert_eq!(data, [stamp(2, 1), stamp(3, 1)].concat());
}

#[test]
fn an_unflushed_write_is_there_or_not() {
    let mut history = history();
    assert_eq!(allowed(&history, 3), [INITIAL]);
    let first = write(&mut history, 3);
    assert_eq!(allowed(&history, 3), [INITIAL, written(1)], "sent");
    done(&mut history, first);
    assert_eq!(allowed(&history, 3), [INITIAL, written(1)], "acknowledged");
    let second = write(&mut history, 3);
    done(&mut history, second);
    assert_eq!(allowed(&history, 3), [INITIAL, written(1), written(2)]);
    assert_eq!(allowed(&history, 4), [INITIAL]);
}

#[test]
fn a_flush_promises_what_was_acknowledged_before_it_was_sent() {
    let mut history = history();
    let before = write(&mut history, 1);
    done(&mut history, before);
    let during = write(&mut history, 2);
    let flush = history.flush(0);
    done(&mut history, during);
    let after = write(&mut history, 3);
    done(&mut history, after);
    assert_eq!(allowed(&history, 1), [INITIAL, written(1)], "not acknowledged yet");
    done(&mut history, flush);
    assert_eq!(allowed(&history, 1), [written(1)]);
    assert_eq!(allowed(&history, 2), [INITIAL, written(2)]);
    assert_eq!(allowed(&history, 3), [INITIAL, written(4)]);
}

#[test]
fn of_writes_one_after_the_other_the_last_is_promised_of_concurrent_ones_either() {
    let mut one_by_one = history();
    for _ in 0..2 {
        let request = write(&mut one_by_one, 1);
        done(&mut one_by_one, request);
    }
    flush(&mut one_by_one);
    assert_eq!(allowed(&one_by_one, 1), [written(2)]);

    let mut together = history();
    let (a, b) = (write(&mut together, 1), write(&mut together, 1));
    done(&mut together, b);
    done(&mut together, a);
    flush(&mut together);
    assert_eq!(allowed(&together, 1), [written(1), written(2)]);
    let c = write(&mut together, 1);
    done(&mut together, c);
    flush(&mut together);
    assert_eq!(allowed(&together, 1), [written(4)]);
}

#[test]
fn a_discard_leaves_old_or_zero_and_write_zeroes_is_a_write() {
    let mut discarded = history();
    let request = discarded.discard(0, 0, SECTOR);
    done(&mut discarded, request);
    flush(&mut discarded);
    assert_eq!(allowed(&discarded, 0), [INITIAL, ZERO]);
    let request = write(&mut discarded, 0);
    assert_eq!(allowed(&discarded, 0), [INITIAL, ZERO, written(3)]);
    done(&mut discarded, request);
    flush(&mut discarded);
    assert_eq!(allowed(&discarded, 0), [written(3)]);

    let mut zeroed = history();
    let request = zeroed.write_zeroes(0, 0, SECTOR);
    done(&mut zeroed, request);
    assert_eq!(allowed(&zeroed, 0), [INITIAL, ZERO]);
    flush(&mut zeroed);
    assert_eq!(allowed(&zeroed, 0), [ZERO]);
}

#[test]
fn what_failed_may_be_there_until_something_replaces_it() {
    let mut history = history();
    let request = write(&mut history, 1);
    history.ended(0, request, false);
    flush(&mut history);
    assert_eq!(allowed(&history, 1), [INITIAL, written(1)]);
    let request = write(&mut history, 1);
    done(&mut history, request);
    let failed_flush = history.flush(0);
    history.ended(0, failed_flush, false);
    assert_eq!(allowed(&history, 1), [INITIAL, written(1), written(3)]);
    flush(&mut history);
    assert_eq!(allowed(&history, 1), [written(3)]);
}

#[test]
fn write_through_promises_each_write_with_its_answer() {
    let mut history = History::new(vec![0; 1024], true);
    let (a, b) = (write(&mut history, 0), write(&mut history, 1));
    assert_eq!(history.promises_by(0), 0);
    done(&mut history, b);
    assert_eq!(allowed(&history, 0), [INITIAL, written(1)]);
    assert_eq!(allowed(&history, 1), [written(2)]);
    done(&mut history, a);
    assert_eq!(allowed(&history, 0), [written(1)]);
    assert_eq!(history.promises_by(0), 2);
}

#[test]
fn a_cut_sees_what_had_happened_by_then() {
    let mut history = history();
    let (request, _) = history.write(4, 0, SECTOR);
    history.ended(6, request, true);
    let flush = history.flush(6);
    history.ended(9, flush, true);
    let at = |position: usize| history.promise_at(position).allowed(0);
    assert_eq!(at(3), [INITIAL]);
    assert_eq!([at(4), at(8)], [[INITIAL, written(1)], [INITIAL, written(1)]]);
    assert_eq!(at(9), [written(1)]);
    assert_eq!([3, 8, 9, 10].map(|position| history.promises_by(position)), [0, 0, 1, 1]);
}

/// Sector 1 flushed, 2 written and not flushed, 3 discarded; then one sector holds something else.
#[test]
fn each_wrong_content_has_its_name() {
    let mut history = history();
    let request = write(&mut history, 1);
    done(&mut history, request);
    let request = write(&mut history, 1);
    done(&mut history, request);
    flush(&mut history);
    let request = write(&mut history, 2);
    done(&mut history, request);
    history.discard(0, 3 * SECTOR, SECTOR);
    let promise = history.promise_at(0);

    let mut disk = stamped_disk(8);
    disk[512..1024].copy_from_slice(&stamp(1, 2));
    let judge = |disk: &[u8]| {
        promise.violations(|at, into| {
            into.copy_from_slice(&disk[usize::try_from(at).unwrap()..][..into.len()]);
            Ok(())
        })
    };
    assert_eq!(judge(&disk), Ok((Vec::new(), 0)));

    let mut torn = stamp(2, 4);
    torn[256..].fill(0);
    let cases: &[(&str, u64, [u8; 512], u32, Found)] = &[
        ("flushed write lost", 1, stamp(1, 0), 4, Found::Initial),
        ("older write", 1, stamp(1, 1), 4, Found::Stale(RequestId(1))),
        ("flushed write zeroed", 1, [0; 512], 4, Found::Zero),
        ("untouched sector zeroed", 5, [0; 512], 4, Found::Zero),
        ("untouched sector overwritten", 5, stamp(2, 4), 7, Found::Misplaced(RequestId(4), 2)),
        ("unflushed write zeroed", 2, [0; 512], 5, Found::Zero),
        ("unflushed write that nobody sent", 2, stamp(2, 9), 5, Found::Stale(RequestId(9))),
        ("backing content of another sector", 2, stamp(4, 0), 7, Found::Misplaced(RequestId(0), 4)),
        ("discarded sector with an older write", 3, stamp(3, 1), 6, Found::Stale(RequestId(1))),
        ("discarded sector with another's", 3, stamp(1, 2), 7, Found::Misplaced(RequestId(2), 1)),
        ("bytes of the host", 6, [0xee; 512], 7, Found::Filled(0xee)),
        ("a sector in halves", 2, torn, 7, Found::Unknown),
    ];
    for (name, sector, bytes, invariant, found) in cases {
        let mut disk = disk.clone();
        let at = usize::try_from(sector * SECTOR).unwrap();
        disk[at..at + 512].copy_from_slice(bytes);
        let (listed, count) = judge(&disk).unwrap();
        assert_eq!((listed.len(), count), (1, 1), "{name}: {listed:?}");
        assert_eq!((listed[0].sector, listed[0].invariant), (*sector, *invariant), "{name}");
        assert_eq!(listed[0].found, *found, "{name}");
    }
    let read = |_, into: &mut [u8]| {
        into.fill(0xee);
        Ok(())
    };
    let message = promise.judge(read).unwrap_err();
    assert!(
        message.starts_with("8 sectors are wrong: I7: sector 0 holds Filled(238)"),
        "{message}"
    );
    assert_eq!(promise.judge(|_, _| Err("EIO".to_owned())), Err("EIO".to_owned()));
}
