//! A Linux guest partitions the disk, puts ext4 on it, works on it, trims it; then the host looks at the file.
#![allow(clippy::disallowed_methods, reason = "a test: files and processes are its work")]
#![allow(missing_docs)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use guest_tests::{Drive, Guest, Scratch, ServerKind, missing_for_guest, skip};

const DISK_BYTES: u64 = 1 << 30;
/// Where the partition starts: what sfdisk is told, and what the host tools are told.
const PARTITION_AT: u64 = 1 << 20;
const PROGRAMS: &[&str] = &["sfdisk", "mkfs.ext4", "fstrim", "fio"];

/// First boot: make everything, prove that it reads back from the disk.
const WORK: &str = "
test $(ls /sys/block/vda/mq | wc -l) = $QUEUES
test $(cat /sys/block/vda/size) = 2097152
printf 'label: gpt\\nstart=2048\\n' | sfdisk --quiet /dev/vda
mkfs.ext4 -q /dev/vda1
mount -t ext4 /dev/vda1 /mnt
mkdir /mnt/tree
cp -a /bin /modules /lib /mnt/tree/
sync
fio --name=verify --directory=/mnt --size=24m --rw=randwrite --bsrange=4k-64k --direct=1 \
    --ioengine=libaio --iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --numjobs=2 --output-format=terse --output=/tmp/fio
ls -l /mnt
umount /mnt
mount -t ext4 /dev/vda1 /mnt
for dir in bin modules lib; do diff -r /$dir /mnt/tree/$dir; done
dd if=/dev/urandom of=/mnt/ballast bs=1M count=64 2>/dev/null
umount /mnt
";

/// Second boot, a new client for the server: the data is still there, and what is deleted and trimmed goes.
const TRIM: &str = "
mount -t ext4 /dev/vda1 /mnt
for dir in bin modules lib; do diff -r /$dir /mnt/tree/$dir; done
rm /mnt/ballast /mnt/verify.*
sync
fstrim -v /mnt
umount /mnt
";

fn boot(script: &str, socket: &Path, queues: usize) {
    let script = format!("QUEUES={queues}\nset -x\n{script}");
    let guest = Guest { programs: PROGRAMS, ..Guest::default() };
    let out = guest.run(&script, &[Drive { socket: socket.to_owned(), queues }]).unwrap();
    assert_eq!(out.status, Some(0), "the guest's console:\n{}", out.console);
}

fn run_on_host(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

fn linux_guest(queues: usize) {
    if let Some(what) = missing_for_guest(&[PROGRAMS, &["e2fsck", "debugfs"]].concat()) {
        return skip(&what);
    }
    let scratch = Scratch::new().unwrap();
    let image = scratch.image("disk.raw", DISK_BYTES).unwrap();
    let socket = scratch.socket("disk");
    let cache = if scratch.has_direct_io() { "none" } else { "writeback" };
    let server = ServerKind::from_env().start(&image, &socket, cache, queues).unwrap();

    boot(WORK, &socket, queues);
    let used = || std::fs::metadata(&image).unwrap().blocks() * 512;
    let before = used();
    boot(TRIM, &socket, queues);
    let after = used();
    let freed = before.saturating_sub(after);
    assert!(freed > 100 << 20, "fstrim freed {freed} of {before} bytes, not the 112 MiB deleted");
    server.stop().unwrap();

    let partition = format!("{}?offset={PARTITION_AT}", image.display());
    run_on_host("e2fsck", &["-f", "-n", &partition]);
    let copy = scratch.path("busybox");
    let dump = format!("dump /tree/bin/busybox {}", copy.display());
    run_on_host("debugfs", &["-R", &dump, &partition]);
    assert!(std::fs::read(copy).unwrap() == std::fs::read("/bin/busybox").unwrap());
}

#[test]
fn linux_guest_with_one_queue() {
    linux_guest(1);
}

#[test]
fn linux_guest_with_two_queues() {
    linux_guest(2);
}
