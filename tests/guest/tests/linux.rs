//! A Linux guest partitions the disk, puts ext4 on it, works on it, trims it; on an image with a format it is killed under load as well, the server
//! first, and boots again. Then the host looks at the file.
#![allow(clippy::disallowed_methods, reason = "a test: files and processes are its work")]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use blk_client::server::{self, Server};
use guest_tests::{Drive, Guest, Running, Scratch, ServerKind, missing_for_guest, skip};

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

/// Third boot, killed under load: blocks are overwritten in place, and files are made that are durable when their line is printed.
const LOAD: &str = "
mount -t ext4 /dev/vda1 /mnt
fio --name=base --filename=/mnt/base --size=16m --rw=write --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=32 --verify=crc32c --do_verify=0 --output=/tmp/fill
sync
set +x
written() { awk '{ print $7 }' /sys/block/vda/stat; }
before=$(written)
fio --name=base --filename=/mnt/base --size=16m --rw=randwrite --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=0 --norandommap --fsync=32 \
    --time_based --runtime=600 --output=/tmp/load &
until [ $(written) -gt $((before + 1000)) ]; do usleep 10000; done
i=0
while :; do
    i=$((i + 1))
    dd if=/dev/urandom of=/tmp/new bs=4k count=48 2>/dev/null
    dd if=/tmp/new of=/mnt/new.$i bs=4k conv=fsync 2>/dev/null
    echo \"synced $i $(md5sum < /tmp/new)\"
done
";

/// Fourth boot: the journal is replayed; no block of the file that was overwritten is torn or lost; what was durable is there.
const AFTER: &str = "
mount -t ext4 /dev/vda1 /mnt
dmesg | grep 'vda1.*recovery complete'
fio --name=base --filename=/mnt/base --size=16m --rw=read --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=32 --verify=crc32c --verify_fatal=1 --output=/tmp/fio
diff -r /bin /mnt/tree/bin
set +x
for i in $(ls /mnt | sed -n 's/^new[.]//p'); do echo \"found $i $(md5sum < /mnt/new.$i)\"; done
umount /mnt
";

/// Files that are durable before the server is killed.
const SYNCED_FILES: usize = 20;

fn start(script: &str, socket: &Path, queues: usize) -> Running {
    let script = format!("QUEUES={queues}\nset -x\n{script}");
    let guest = Guest { programs: PROGRAMS, ..Guest::default() };
    guest.start(&script, &[Drive { socket: socket.to_owned(), queues }]).unwrap()
}

/// Runs the script to its end. Returns what the guest printed.
fn boot(script: &str, socket: &Path, queues: usize) -> String {
    let out = start(script, socket, queues).finish().unwrap();
    assert_eq!(out.status, Some(0), "the guest's console:\n{}", out.console);
    out.console
}

fn run_on_host(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}{why}", output.status);
}

/// The disk under test, and how its server is started.
struct Disk {
    scratch: Scratch,
    image: PathBuf,
    format: &'static str,
    socket: PathBuf,
    queues: usize,
}

impl Disk {
    fn new(format: &'static str, queues: usize) -> Disk {
        let scratch = Scratch::new().unwrap();
        let image = scratch.path(&format!("disk.{format}"));
        let size = DISK_BYTES.to_string();
        run_on_host("qemu-img", &["create", "-q", "-f", format, image.to_str().unwrap(), &size]);
        let socket = scratch.socket("disk");
        Disk { scratch, image, format, socket, queues }
    }

    fn serve(&self) -> Server {
        let cache = if self.scratch.has_direct_io() { "none" } else { "writeback" };
        ServerKind::from_env().start(&self.image, &self.socket, cache, self.queues).unwrap()
    }

    fn boot(&self, script: &str) -> String {
        boot(script, &self.socket, self.queues)
    }

    /// Bytes that the file takes.
    fn used(&self) -> u64 {
        std::fs::metadata(&self.image).unwrap().blocks() * 512
    }

    /// An image over a raw backing file, which holds nothing, with a name of its own.
    fn overlay(format: &'static str, queues: usize) -> Disk {
        let disk = Disk::new(format, queues);
        let base = disk.scratch.path("base.raw");
        std::fs::File::create(&base).unwrap().set_len(DISK_BYTES / 2).unwrap();
        let (over, under) = (disk.image.to_str().unwrap(), base.to_str().unwrap());
        let size = DISK_BYTES.to_string();
        let args = ["create", "-q", "-f", format, "-b", under, "-F", "raw", over, &size];
        run_on_host("qemu-img", &args);
        disk
    }

    /// Whether the image is marked as one that was not closed; `None` in a format whose order of writes needs no such mark.
    fn needs_check(&self) -> Option<bool> {
        if self.format != "qed" {
            return None;
        }
        let mut features = [0; 8];
        let file = std::fs::File::open(&self.image).unwrap();
        file.read_exact_at(&mut features, 16).unwrap();
        Some(u64::from_le_bytes(features) & 2 != 0)
    }

    /// What QEMU's checker says of the image: nothing is wrong. In QED, discarded clusters are leaks to it, as the format keeps no list of free ones.
    fn check(&self) {
        let args = ["check", "-f", self.format, "--output", "json", self.image.to_str().unwrap()];
        let output = Command::new("qemu-img").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let good: &[i32] = if self.format == "qed" { &[0, 3] } else { &[0] };
        assert!(good.contains(&output.status.code().unwrap()), "{}: {said}", output.status);
    }

    /// The disk as a raw file.
    fn as_raw(&self) -> PathBuf {
        if self.format == "raw" {
            return self.image.clone();
        }
        let raw = self.scratch.path("copy.raw");
        let (from, to) = (self.image.to_str().unwrap(), raw.to_str().unwrap());
        run_on_host("qemu-img", &["convert", "-f", self.format, "-O", "raw", from, to]);
        raw
    }
}

/// Partition, file system, work, a second boot, discards; after it the file must be smaller.
fn work_and_trim(disk: &Disk) {
    let server = disk.serve();
    disk.boot(WORK);
    let before = disk.used();
    disk.boot(TRIM);
    // What a format frees it may give back to the host a little later, but not after its end.
    server.stop().unwrap();
    let freed = before.saturating_sub(disk.used());
    assert!(freed > 100 << 20, "fstrim freed {freed} of {before} bytes, not the 112 MiB deleted");
}

fn check_file_system(disk: &Disk) {
    let partition = format!("{}?offset={PARTITION_AT}", disk.as_raw().display());
    run_on_host("e2fsck", &["-f", "-n", &partition]);
    let copy = disk.scratch.path("busybox");
    let dump = format!("dump /tree/bin/busybox {}", copy.display());
    run_on_host("debugfs", &["-R", &dump, &partition]);
    assert!(std::fs::read(copy).unwrap() == std::fs::read("/bin/busybox").unwrap());
}

/// The checksums of files by number, from lines like `synced 1 CHECKSUM  -`. A line that was cut off is none.
fn checksums(console: &str, word: &str) -> BTreeMap<u32, String> {
    let lines = console.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let number = words.next().filter(|w| *w == word).and(words.next())?;
        let sum = words.next().filter(|sum| sum.len() == 32)?;
        Some((number.parse().ok()?, sum.to_owned()))
    });
    lines.collect()
}

/// The server is killed while the guest writes and syncs, then the guest. All that the guest knew to be durable must be there when both are back.
fn kill_under_load(disk: &Disk) {
    let server = disk.serve();
    let mut guest = start(LOAD, &disk.socket, disk.queues);
    let mut synced = 0;
    guest
        .wait_for(|line| {
            synced += usize::from(line.starts_with("synced "));
            synced == SYNCED_FILES
        })
        .unwrap();
    server.kill();
    let durable = checksums(&guest.kill().unwrap(), "synced");
    assert!(durable.len() >= SYNCED_FILES);
    assert_ne!(
        disk.needs_check(),
        Some(false),
        "a server that was killed has not closed the image"
    );

    let server = disk.serve();
    assert_ne!(disk.needs_check(), Some(true), "a server that is ready has checked the image");
    let found = checksums(&disk.boot(AFTER), "found");
    for (number, sum) in durable {
        assert_eq!(found.get(&number), Some(&sum), "file {number}, which was durable");
    }
    server.stop().unwrap();
    assert_ne!(disk.needs_check(), Some(true), "a server that has ended has closed the image");
}

/// What a guest on an image of this format needs and this machine lacks.
fn missing() -> Option<String> {
    missing_for_guest(&[PROGRAMS, &["e2fsck", "debugfs", "qemu-img"]].concat())
}

fn raw_guest(queues: usize) {
    if let Some(what) = missing() {
        return skip(&what);
    }
    let disk = Disk::new("raw", queues);
    work_and_trim(&disk);
    check_file_system(&disk);
}

fn qed_guest(queues: usize, killed: bool) {
    if let Some(what) = missing() {
        return skip(&what);
    }
    let disk = Disk::new("qed", queues);
    work_and_trim(&disk);
    disk.check();
    if killed {
        kill_under_load(&disk);
        disk.check();
    }
    check_file_system(&disk);
}

/// On an overlay: work, a snapshot by us, more work, killed; then the snapshot is applied and is what it was.
fn qcow2_guest(queues: usize) {
    if let Some(what) = missing() {
        return skip(&what);
    }
    let disk = Disk::overlay("qcow2", queues);
    work_and_trim(&disk);
    disk.check();
    let image = disk.image.to_str().unwrap();
    let ferroblk = server::ferroblk_binary().unwrap();
    let ferroblk = ferroblk.to_str().unwrap();
    let snapshot = |how| {
        run_on_host(ferroblk, &["img", "snapshot", "--allow-backing", how, "before", image]);
    };
    snapshot("-c");
    let before = std::fs::read(disk.as_raw()).unwrap();
    kill_under_load(&disk);
    // A killed server leaves leaks at most, which go with the repair.
    let repair = ["img", "check", "-r", "leaks", image];
    run_on_host(ferroblk, &repair);
    disk.check();
    check_file_system(&disk);
    snapshot("-a");
    disk.check();
    assert!(std::fs::read(disk.as_raw()).unwrap() == before, "the snapshot is what it was");
    disk.serve().stop().unwrap();
    snapshot("-d");
    disk.check();
    check_file_system(&disk);
}

#[test]
fn linux_guest_on_a_qcow2_overlay_with_two_queues_snapshots_and_a_killed_server() {
    qcow2_guest(2);
}

#[test]
fn linux_guest_with_one_queue() {
    raw_guest(1);
}

#[test]
fn linux_guest_with_two_queues() {
    raw_guest(2);
}

#[test]
fn linux_guest_on_qed_with_one_queue() {
    qed_guest(1, false);
}

#[test]
fn linux_guest_on_qed_with_two_queues_and_a_killed_server() {
    qed_guest(2, true);
}
