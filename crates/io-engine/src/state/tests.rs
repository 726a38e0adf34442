#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
use super::*;
use crate::sim::{SimDisk, SimOptions};

fn file_with(options: SimOptions) -> FileRef {
    FileRef::new(Entry::sim(SimDisk::new(options), 0))
}

fn file() -> FileRef {
    file_with(SimOptions::default())
}

fn buf(len: usize) -> Buf {
    let mut buf = AlignedBuf::new(len, 1);
    buf.as_mut_slice().fill(0xEE);
    Buf::Owned(buf)
}

/// Answers each call with what `answer` says, as long as it says something; returns the calls in short, and the op's result.
fn play(
    file: &FileRef,
    kind: OpKind,
    at: u64,
    buf: Buf,
    mut answer: impl FnMut(&SysOp) -> i32,
) -> (Vec<String>, Result<(), String>, Buf) {
    let mut state = OpState::new(Op { file: file.clone(), kind, at, buf });
    let mut calls = Vec::new();
    loop {
        match state.next() {
            Step::Done(result) => {
                let result =
                    result.map_err(|e| e.raw_os_error().map_or(e.to_string(), |n| n.to_string()));
                return (calls, result, state.into_buf());
            }
            Step::Run(op) => {
                calls.push(match op {
                    SysOp::Preadv { at, segs } => format!("read {at}+{}", segs.bytes()),
                    SysOp::Pwritev { at, segs, dsync } => {
                        format!("write{} {at}+{}", if dsync { " dsync" } else { "" }, segs.bytes())
                    }
                    SysOp::Fdatasync => "sync".to_owned(),
                    SysOp::Fallocate { mode, at, len } => format!("fallocate {mode:#x} {at}+{len}"),
                    SysOp::Ftruncate { len } => format!("truncate {len}"),
                });
                assert!(calls.len() < 5000, "the op never ends");
                state.complete(answer(&op));
            }
        }
    }
}

fn whole(op: &SysOp) -> i32 {
    match op {
        SysOp::Preadv { segs, .. } | SysOp::Pwritev { segs, .. } => segs.bytes() as i32,
        _ => 0,
    }
}

fn bytes(buf: &Buf) -> &[u8] {
    let Buf::Owned(buf) = buf else { panic!("an owned buffer") };
    buf.as_slice()
}

#[test]
fn short_transfers_go_on_where_they_stopped() {
    let mut counts = [100, -libc::EINTR, 3, -libc::EAGAIN, 409].into_iter();
    let (calls, result, _) =
        play(&file(), OpKind::Write { fua: true }, 8, buf(512), |_| counts.next().unwrap());
    let wanted = ["8+512", "108+412", "108+412", "111+409", "111+409"];
    assert_eq!(calls, wanted.map(|range| format!("write dsync {range}")));
    assert_eq!(result, Ok(()));
}

#[test]
fn the_end_of_the_file_is_zeroes_from_there_on() {
    let mut counts = [100, 0].into_iter();
    let (calls, result, buf) = play(&file(), OpKind::Read, 0, buf(512), |_| counts.next().unwrap());
    assert_eq!((calls.len(), result), (2, Ok(())));
    assert!(bytes(&buf)[..100].iter().all(|b| *b == 0xEE));
    assert!(bytes(&buf)[100..].iter().all(|b| *b == 0));
}

#[test]
fn a_direct_read_that_ends_off_the_grid_has_met_the_end() {
    let direct = file_with(SimOptions { align: 512, ..SimOptions::default() });
    let (calls, _, done) = play(&direct, OpKind::Read, 0, buf(4096), |_| 700);
    assert_eq!(calls, ["read 0+4096"]);
    assert!(bytes(&done)[700..].iter().all(|b| *b == 0));
    // On the grid it may as well be a short read.
    let mut counts = [1024, 3072].into_iter();
    let (calls, _, _) = play(&direct, OpKind::Read, 0, buf(4096), |_| counts.next().unwrap());
    assert_eq!(calls, ["read 0+4096", "read 1024+3072"]);
    // A write goes on at the last whole block.
    let mut counts = [1500, 3072].into_iter();
    let write = OpKind::Write { fua: false };
    let (calls, _, _) = play(&direct, write, 0, buf(4096), |_| counts.next().unwrap());
    assert_eq!(calls, ["write 0+4096", "write 1024+3072"]);
}

#[test]
fn a_write_that_goes_nowhere_and_a_retry_without_end_are_errors() {
    let write = OpKind::Write { fua: false };
    let (calls, result, _) = play(&file(), write, 0, buf(512), |_| 0);
    assert_eq!((calls.len(), result), (1, Err("write zero".to_owned())));
    for errno in [libc::EINTR, libc::EAGAIN] {
        let (calls, result, _) = play(&file(), OpKind::Flush, 0, Buf::None, |_| -errno);
        assert_eq!((calls.len(), result), (1001, Err(errno.to_string())));
    }
    for errno in [libc::EIO, libc::ENOSPC, libc::EBADF] {
        let (calls, result, _) = play(&file(), write, 0, buf(512), |_| -errno);
        assert_eq!((calls.len(), result), (1, Err(errno.to_string())));
    }
}

#[test]
fn a_file_without_dsync_is_asked_once_and_synced_instead() {
    let file = file();
    let answer = |op: &SysOp| match op {
        SysOp::Pwritev { dsync: true, .. } => -libc::EOPNOTSUPP,
        op => whole(op),
    };
    let fua = OpKind::Write { fua: true };
    let (calls, result, _) = play(&file, fua, 0, buf(512), answer);
    assert_eq!(
        (calls, result),
        (["write dsync 0+512", "write 0+512", "sync"].map(str::to_owned).to_vec(), Ok(()))
    );
    let (calls, result, _) = play(&file, fua, 0, buf(512), answer);
    assert_eq!((calls, result), (["write 0+512", "sync"].map(str::to_owned).to_vec(), Ok(())));
    // The sync's error is the write's.
    let (_, result, _) = play(&file, fua, 0, buf(512), |op| match op {
        SysOp::Fdatasync => -libc::EIO,
        op => whole(op),
    });
    assert_eq!(result, Err(libc::EIO.to_string()));
}

const ZERO_UNMAP: OpKind = OpKind::WriteZeroes { len: 3 << 20, unmap: true };
const ZERO_KEEP: OpKind = OpKind::WriteZeroes { len: 3 << 20, unmap: false };
const DISCARD: OpKind = OpKind::Discard { len: 3 << 20 };

/// Calls of `kind` on `file` when each `fallocate` of a mode in `refused` fails with `errno`.
fn calls_when(file: &FileRef, kind: OpKind, refused: &[i32], errno: i32) -> Vec<String> {
    let (calls, result, _) = play(file, kind, 0, Buf::None, |op| match op {
        SysOp::Fallocate { mode, .. } if refused.contains(mode) => -errno,
        op => whole(op),
    });
    assert_eq!(result, Ok(()));
    let short = |call: &String| call.replace(" 0+3145728", "").replace("fallocate ", "");
    calls.iter().map(short).collect()
}

#[test]
fn zeroing_takes_the_cheapest_way_that_the_file_knows() {
    let device = || file_with(SimOptions { is_block_device: true, ..SimOptions::default() });
    let written = ["write 0+1048576", "write 1048576+1048576", "write 2097152+1048576"];
    let with = |first: &[&'static str]| [first, &written].concat();
    let (punch, zero, allocate, discard) = (0x3, 0x11, 0x1, 0x7);
    for (file, kind, refused, wanted) in [
        (file(), ZERO_UNMAP, vec![], vec!["0x3"]),
        (file(), ZERO_UNMAP, vec![punch], vec!["0x3", "0x11"]),
        (file(), ZERO_UNMAP, vec![punch, zero], with(&["0x3", "0x11"])),
        (file(), ZERO_KEEP, vec![], vec!["0x11"]),
        (file(), ZERO_KEEP, vec![zero], vec!["0x11", "0x3", "0x1"]),
        (file(), ZERO_KEEP, vec![zero, allocate], with(&["0x11", "0x3", "0x1"])),
        (file(), ZERO_KEEP, vec![zero, punch], with(&["0x11", "0x3"])),
        (device(), ZERO_KEEP, vec![zero], with(&["0x11"])),
        (file(), DISCARD, vec![], vec!["0x3"]),
        (file(), DISCARD, vec![punch], vec!["0x3"]),
        (device(), DISCARD, vec![], vec!["0x7"]),
        (device(), DISCARD, vec![discard], vec!["0x7", "0x3"]),
        (device(), DISCARD, vec![discard, punch], vec!["0x7", "0x3"]),
    ] {
        let calls = calls_when(&file, kind, &refused, libc::EOPNOTSUPP);
        assert_eq!(calls, wanted, "{kind:?} without {refused:x?}");
        // What was refused once is not tried again; an allocation is not wanted on top of written zeroes either.
        let again = calls_when(&file, kind, &refused, libc::EOPNOTSUPP);
        let refused: Vec<String> = refused.iter().map(|mode| format!("{mode:#x}")).collect();
        let left: Vec<&str> =
            wanted.iter().copied().filter(|call| !refused.contains(&(*call).to_owned())).collect();
        assert_eq!(again, left, "{kind:?} again");
    }
}

#[test]
fn einval_is_fallen_back_from_and_forgotten_and_other_errors_are_told() {
    let file = file();
    assert_eq!(calls_when(&file, ZERO_UNMAP, &[0x3], libc::EINVAL), ["0x3", "0x11"]);
    assert_eq!(calls_when(&file, ZERO_UNMAP, &[], 0), ["0x3"]);
    for kind in [ZERO_UNMAP, ZERO_KEEP, DISCARD] {
        let (calls, result, _) = play(&file, kind, 0, Buf::None, |_| -libc::ENOSPC);
        assert_eq!((calls.len(), result), (1, Err(libc::ENOSPC.to_string())));
    }
}

#[test]
fn zeroes_are_written_on_after_a_short_write() {
    let file = file();
    for lacks in [&file.entry().lacks.punch, &file.entry().lacks.zero_range] {
        lacks.set(true);
    }
    let kind = OpKind::WriteZeroes { len: 1 << 20, unmap: true };
    let mut counts = [1000, (1 << 20) - 1000].into_iter();
    let (calls, result, _) = play(&file, kind, 0, Buf::None, |_| counts.next().unwrap());
    assert_eq!(calls, ["write 0+1048576", "write 1000+1047576"]);
    assert_eq!(result, Ok(()));
}
