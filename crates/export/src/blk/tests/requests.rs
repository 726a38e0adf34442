//! Single requests through the whole of the device, on simulated and real files.

use super::rig::{Rig, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES, range};
use block::{CacheMode, DetectZeroes, DiscardMode, OpenOptions};
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use io_engine::{EngineKind, HostFile, IoEngine, SysKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use virtio_blk::Features;

const BYTES: u64 = 1 << 20;
const OK: u8 = 0;
const IOERR: u8 = 1;

fn sim_rig(sim: SimOptions, options: &OpenOptions) -> (Rig, SimDisk) {
    let disk = SimDisk::new(SimOptions { len: BYTES, ..sim });
    let engine = IoEngine::sim(1, 32).unwrap();
    let rig = Rig::new(engine, BYTES, options, Features::empty(), |context| {
        context.with_engine(|engine| engine.open_sim(&disk)).unwrap()
    });
    (rig, disk)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
}

#[test]
fn written_data_is_read_back_and_lies_in_the_file() {
    let (mut rig, disk) = sim_rig(SimOptions::default(), &OpenOptions::default());
    let data = pattern(8192, 3);
    let answer = rig.request(T_OUT, 5, &data, 0);
    assert_eq!((answer.status, answer.written), (OK, 1));
    assert_eq!(rig.read(5, 8192), data);
    assert_eq!(disk.contents()[5 * 512..5 * 512 + 8192], data);
}

#[test]
fn the_serial_number_is_what_was_configured() {
    let (mut rig, _) = sim_rig(SimOptions::default(), &OpenOptions::default());
    let answer = rig.request(T_GET_ID, 0, &[], 20);
    assert_eq!((answer.status, answer.written), (OK, 21));
    assert_eq!(rig.data(answer.slot, 20), b"serial-of-this-disk\0");
}

#[test]
fn a_request_beyond_the_disk_fails_alone() {
    let (mut rig, disk) = sim_rig(SimOptions::default(), &OpenOptions::default());
    let last = BYTES / 512 - 1;
    assert_eq!(rig.request(T_OUT, last, &[1; 1024], 0).status, IOERR);
    assert_eq!(rig.request(T_IN, last + 1, &[], 512).status, IOERR);
    assert_eq!(rig.request(T_IN, u64::MAX, &[], 512).status, IOERR);
    assert_eq!(rig.request(T_OUT, last, &[1; 512], 0).status, OK);
    assert_eq!(disk.len(), BYTES);
}

#[test]
fn after_a_failed_flush_nothing_is_promised_any_more() {
    let (mut rig, disk) = sim_rig(SimOptions::default(), &OpenOptions::default());
    assert_eq!(rig.request(T_OUT, 0, &[1; 512], 0).status, OK);
    disk.fault(Fault {
        kind: Some(SysKind::Fdatasync),
        range: None,
        nth: 1,
        sticky: false,
        action: FaultAction::FlushLost(libc_eio()),
    });
    assert_eq!(rig.request(T_FLUSH, 0, &[], 0).status, IOERR);
    assert_eq!(rig.request(T_FLUSH, 0, &[], 0).status, IOERR, "the kernel would say yes now");
    assert_eq!(rig.request(T_OUT, 0, &[2; 512], 0).status, IOERR);
    assert_eq!(rig.request(T_WRITE_ZEROES, 0, &range(0, 1, false), 0).status, IOERR);
    assert_eq!(rig.read(0, 512), [1; 512], "reading goes on");
}

#[test]
fn a_full_host_fails_the_write_and_no_more() {
    let (mut rig, disk) = sim_rig(SimOptions::default(), &OpenOptions::default());
    disk.fault(Fault {
        kind: Some(SysKind::Pwritev),
        range: None,
        nth: 1,
        sticky: false,
        action: FaultAction::Errno(28),
    });
    assert_eq!(rig.request(T_OUT, 0, &[1; 512], 0).status, IOERR);
    assert_eq!(rig.request(T_OUT, 0, &[1; 512], 0).status, OK);
    assert_eq!(rig.request(T_FLUSH, 0, &[], 0).status, OK);
}

#[test]
fn discards_and_zeroes_take_several_ranges() {
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        let (mut rig, disk) = sim_rig(SimOptions::default(), &OpenOptions::default());
        assert_eq!(rig.request(T_OUT, 0, &[7; 65536], 0).status, OK);
        let ranges = [range(8, 8, kind == T_WRITE_ZEROES), range(64, 1, false)].concat();
        assert_eq!(rig.request(kind, 0, &ranges, 0).status, OK);
        let contents = disk.contents();
        let zero = |sector: usize| contents[sector * 512..][..512] == [0; 512];
        for sector in 0..128 {
            let inside = (8..16).contains(&sector) || sector == 64;
            assert_eq!(zero(sector), inside, "kind {kind}, sector {sector}");
        }
    }
}

#[test]
fn zeroes_are_detected_if_asked_for() {
    for (detect, fallocates) in
        [(DetectZeroes::Off, 0), (DetectZeroes::On, 1), (DetectZeroes::Unmap, 1)]
    {
        let options = OpenOptions { detect_zeroes: detect, ..OpenOptions::default() };
        let (mut rig, disk) = sim_rig(SimOptions::default(), &options);
        assert_eq!(rig.request(T_OUT, 8, &[7; 8192], 0).status, OK);
        assert_eq!(rig.request(T_OUT, 8, &[0; 4096], 0).status, OK);
        assert_eq!(disk.count(SysKind::Fallocate), fallocates, "{detect}");
        assert_eq!(rig.read(8, 8192), [[0; 4096], [7; 4096]].concat());
        let mut nearly = [0; 4096];
        nearly[4095] = 1;
        assert_eq!(rig.request(T_OUT, 8, &nearly, 0).status, OK);
        assert_eq!(disk.count(SysKind::Fallocate), fallocates, "one byte is not zero");
        assert_eq!(rig.read(8, 4096), nearly);
    }
}

#[test]
fn an_ignored_discard_changes_nothing() {
    let options = OpenOptions { discard: DiscardMode::Ignore, ..OpenOptions::default() };
    let (mut rig, disk) = sim_rig(SimOptions::default(), &options);
    assert_eq!(rig.request(T_OUT, 0, &[7; 4096], 0).status, OK);
    assert_eq!(rig.request(T_WRITE_ZEROES, 0, &range(0, 8, true), 0).status, OK);
    assert_eq!(disk.contents()[..4096], [0; 4096], "zeroes are zeroes whatever discard does");
}

/// A host with 4 KiB blocks under a guest with 512-byte sectors.
#[test]
fn a_sector_within_a_larger_host_block_leaves_its_neighbours_alone() {
    let sim = SimOptions { align: 4096, ..SimOptions::default() };
    let (mut rig, disk) = sim_rig(sim, &OpenOptions::default());
    let mut model = pattern(32768, 9);
    assert_eq!(rig.request(T_OUT, 0, &model, 0).status, OK);
    let sectors: Vec<u64> = (1..16).collect();
    let mut answered = 0;
    // All at once, several to a block: each reads, changes and writes back the same 4 KiB.
    for sector in &sectors {
        let data = pattern(512, *sector as u8);
        model[*sector as usize * 512..][..512].copy_from_slice(&data);
        rig.submit(T_OUT, *sector, &data, 0).unwrap();
    }
    while answered < sectors.len() {
        for answer in rig.turn() {
            assert_eq!(answer.status, OK);
            answered += 1;
        }
    }
    assert_eq!(rig.request(T_WRITE_ZEROES, 0, &range(17, 25, true), 0).status, OK);
    model[17 * 512..42 * 512].fill(0);
    assert_eq!(rig.request(T_DISCARD, 0, &range(50, 3, false), 0).status, OK);
    assert_eq!(rig.read(0, 32768), model);
    assert_eq!(disk.contents()[..32768], model);
    assert_eq!(rig.read(3, 1024), model[3 * 512..5 * 512]);
}

#[test]
fn unaligned_guest_memory_bounces_on_a_direct_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
    let mut open = std::fs::OpenOptions::new();
    let Ok(file) = open.read(true).write(true).custom_flags(0o40000).open(&path) else {
        return println!("SKIPPED: this file system has no O_DIRECT");
    };
    for kind in [EngineKind::IoUring, EngineKind::Native, EngineKind::Threads] {
        let host = HostFile::new(file.try_clone().unwrap(), true).unwrap();
        let engine = IoEngine::new(kind, 16).unwrap();
        let options = OpenOptions::default();
        let mut rig = Rig::new(engine, BYTES, &options, Features::empty(), |context| {
            context.open(host).unwrap()
        });
        for skew in [0, 1, 7, 512] {
            rig.skew = skew;
            let data = pattern(65536, skew as u8);
            assert_eq!(rig.request(T_OUT, 3, &data, 0).status, OK, "{kind} skew {skew}");
            rig.skew = 5;
            assert_eq!(rig.read(3, 65536), data, "{kind} skew {skew}");
            let mut on_disk = vec![0; 65536];
            std::fs::File::open(&path).unwrap().read_exact_at(&mut on_disk, 3 * 512).unwrap();
            assert_eq!(on_disk, data);
        }
    }
}

#[test]
fn a_file_shorter_than_its_disk_reads_as_zeroes_at_the_end() {
    let disk = SimDisk::with_contents(SimOptions { len: 700, ..SimOptions::default() }, &[9; 700]);
    let engine = IoEngine::sim(1, 32).unwrap();
    let options = OpenOptions { cache: CacheMode::Writeback, ..OpenOptions::default() };
    let mut rig = Rig::new(engine, 1024, &options, Features::empty(), |context| {
        context.with_engine(|engine| engine.open_sim(&disk)).unwrap()
    });
    let mut expected = vec![9; 700];
    expected.resize(1024, 0);
    assert_eq!(rig.read(0, 1024), expected);
}

fn libc_eio() -> i32 {
    5
}
