//! What is copied, against a plain copy of the bytes.

use crate::sandbox::Sandbox;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// A generator of numbers that are always the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

/// A disk with data, written zeroes and holes, in pieces of any length.
fn random_disk(numbers: &mut Numbers, files: &Sandbox, name: &str) -> Vec<u8> {
    let bytes = (1 + numbers.next(12 << 11)) * 512;
    let mut disk = vec![0; bytes as usize];
    let file = File::create(files.path(name)).unwrap();
    file.set_len(bytes).unwrap();
    for _ in 0..numbers.next(40) {
        let at = numbers.next(bytes);
        let most = [16, 600, 5000, 100_000, 3 << 20][numbers.next(5) as usize];
        let len = numbers.next(most).min(bytes - at);
        let fill = numbers.next(4) as u8;
        let piece = &mut disk[at as usize..(at + len) as usize];
        piece.fill(fill);
        file.write_all_at(piece, at).unwrap();
    }
    disk
}

#[test]
fn random_disks_arrive_as_they_are() {
    let mut numbers = Numbers(5);
    for round in 0..40 {
        let files = Sandbox::new();
        let disk = random_disk(&mut numbers, &files, "a.raw");
        let cluster = ["4k", "64k", "2M"][numbers.next(3) as usize];
        let sparse = ["0", "512", "4k", "12k", "1M"][numbers.next(5) as usize];
        let order = ["", "-W", "-m 1", "-m 16", "-m 3 -W"][numbers.next(5) as usize];
        let cache = ["", "-t none -T none", "-t writethrough"][numbers.next(3) as usize];
        let to_qed = format!(
            "convert {order} {cache} -S {sparse} -O qed -o cluster_size={cluster} a.raw b.qed"
        );
        files.ours_does(&to_qed);
        assert_eq!(files.ours_does("compare a.raw b.qed"), "Images are identical.\n");
        let checked = files.ours_does("check b.qed");
        assert!(checked.contains("No errors"), "{round} {to_qed}: {checked}");
        // Over what was there before.
        let before = random_disk(&mut numbers, &files, "c.raw");
        let to_raw = format!("convert {order} {cache} -S {sparse} b.qed c.raw");
        files.ours_does(&to_raw);
        assert!(fs::read(files.path("c.raw")).unwrap() == disk, "{round} {to_qed}, {to_raw}");
        // Into what was there before, which keeps what the disk does not reach.
        fs::write(files.path("d.raw"), &before).unwrap();
        if before.len() >= disk.len() {
            files.ours_does(&format!("convert -n {order} {cache} -S {sparse} b.qed d.raw"));
            let expected = [&disk[..], &before[disk.len()..]].concat();
            assert!(fs::read(files.path("d.raw")).unwrap() == expected, "{round} -n {to_raw}");
        }
    }
}

#[test]
fn a_chain_is_flattened_or_kept() {
    let mut numbers = Numbers(11);
    for round in 0..10 {
        let files = Sandbox::new();
        let mut base = random_disk(&mut numbers, &files, "base.raw");
        let mut over = random_disk(&mut numbers, &files, "over.raw");
        // What the overlay has: whole clusters of the one disk on the other.
        files.ours_does("convert -O qed -o cluster_size=4k over.raw full.qed");
        let bytes = over.len();
        files.ours_does(&format!(
            "create -f qed -o cluster_size=4k -b base.raw -F raw over.qed {bytes}"
        ));
        // Only what is not zero is written: where it is zero, the disk below shows, as far as it reaches.
        files.ours_does("convert -n -O qed --target-is-zero over.raw over.qed");
        base.resize(bytes.max(base.len()), 0);
        for (n, block) in over.chunks_mut(4096).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                block.copy_from_slice(&base[n * 4096..n * 4096 + block.len()]);
            }
        }
        files.ours_does("convert -O raw over.qed flat.raw");
        assert!(fs::read(files.path("flat.raw")).unwrap() == over, "{round}: flattened");
        files.ours_does("convert -O qed -o cluster_size=4k -B base.raw -F raw over.qed again.qed");
        files.ours_does("convert -O raw again.qed flat2.raw");
        assert!(fs::read(files.path("flat2.raw")).unwrap() == over, "{round}: on the same base");
        assert!(files.ours_does("check again.qed").contains("No errors"), "{round}");
    }
}

/// A file's blocks, and not its length.
fn space(files: &Sandbox, name: &str) -> u64 {
    fs::metadata(files.path(name)).unwrap().blocks() * 512
}

#[test]
fn holes_and_zeroes_take_no_space() {
    let files = Sandbox::new();
    let data = vec![7; 64 << 10];
    // Data and written zeroes in a large disk.
    files.raw(
        "a.raw",
        64 << 30,
        &[(1 << 30, &data), (40 << 30, &vec![0; 1 << 20]), (63 << 30, &data)],
    );
    files.ours_does("convert -O qed a.raw b.qed");
    files.ours_does("convert -O raw b.qed c.raw");
    assert_eq!(files.ours_does("compare a.raw c.raw"), "Images are identical.\n");
    assert!(space(&files, "b.qed") <= 2 << 20, "{}", space(&files, "b.qed"));
    assert!(space(&files, "c.raw") <= 256 << 10, "{}", space(&files, "c.raw"));
    // All of it is written if that is wanted.
    files.raw("small.raw", 3 << 20, &[]);
    files.ours_does("convert -S 0 small.raw d.raw");
    assert!(space(&files, "d.raw") >= 3 << 20);
}

/// Without out-of-order writes, what follows on the disk follows in the file.
#[test]
fn an_image_is_filled_in_order() {
    let files = Sandbox::new();
    let mut numbers = Numbers(3);
    let disk: Vec<u8> = (0..24 << 20).map(|_| numbers.next(255) as u8 + 1).collect();
    fs::write(files.path("a.raw"), disk).unwrap();
    files.ours_does("convert -m 16 -O qed a.raw b.qed");
    let mapped = files.ours_does("map b.qed");
    let lines: Vec<_> = mapped.lines().skip(1).collect();
    assert_eq!(lines.len(), 1, "{mapped}");
}

#[test]
fn a_source_that_cannot_be_read_ends_it_and_leaves_nothing_behind() {
    let files = Sandbox::new();
    files.raw("a.raw", 40 << 20, &[]);
    files.ours_does("convert -S 0 -O qed a.raw a.qed");
    let l2_at = files.peek("a.qed", files.peek("a.qed", 40));
    files.poke("a.qed", l2_at + 8 * 300, &u64::MAX.to_le_bytes());
    for args in
        ["convert a.qed new.raw", "convert -m 1 -O qed a.qed new.qed", "convert -W a.qed new.raw"]
    {
        let ended = files.ours(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args}: {ended:?}");
        assert!(ended.stderr.contains("0x12c0000"), "{args}: {ended:?}");
        assert_eq!(files.names(), ["a.qed", "a.raw"], "{args}");
    }
    let ended = files.ours("compare a.raw a.qed");
    assert_eq!(ended.code, 3, "{ended:?}");
    // A difference before it is found all the same.
    files.poke("a.raw", 1000, b"x");
    let ended = files.ours("compare a.raw a.qed");
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "Content mismatch at offset 512!\n"));
}
