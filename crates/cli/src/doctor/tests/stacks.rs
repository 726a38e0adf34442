//! The way from a path to its devices.

use super::super::spot::Kind;
use super::super::stack::Stack;
use super::tree::{Made, NVME};

fn names(made: &Made) -> (Vec<String>, Vec<String>) {
    let Stack { layers, lowest, .. } = made.place().stack;
    let names = |devices: Vec<super::super::Device>| devices.into_iter().map(|d| d.name).collect();
    (names(layers), names(lowest))
}

fn expect(made: &Made, layers: &[&str], lowest: &[&str]) {
    let (found_layers, found_lowest) = names(made);
    assert_eq!(
        (&found_layers[..], &found_lowest[..]),
        (
            &layers.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()[..],
            &lowest.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()[..]
        )
    );
}

#[test]
fn a_partition_stands_on_its_disk() {
    expect(&Made::fine(), &["nvme0n1p1"], &["nvme0n1"]);
}

#[test]
fn dm_crypt_over_raid_over_two_disks_is_looked_through() {
    let mut made = Made::fine();
    let second = "/sys/devices/pci0000:00/0000:00:03.0/nvme/nvme1/nvme1n1";
    made.disk(second, "259:2");
    made.set(&format!("{second}/queue/scheduler"), "none [bfq]\n");
    let raid = made.over("md0", "9:0", &[&format!("{NVME}/nvme0n1p1"), second]);
    made.set(&format!("{raid}/md/level"), "raid1\n");
    let crypt = made.over("dm-0", "252:0", &[&raid]);
    made.set(&format!("{crypt}/dm/uuid"), "CRYPT-LUKS2-1-vault\n");
    made.set(&format!("{crypt}/dm/name"), "vault\n");
    made.mounted("252:0 / / rw,noatime - xfs /dev/mapper/vault rw");
    expect(&made, &["dm-0", "md0", "nvme0n1p1"], &["nvme1n1", "nvme0n1"]);
    let shown = made.place().stack.shown();
    assert_eq!(
        shown,
        "dm-0 (encrypted vault) over md0 (raid1) over nvme0n1p1 (partition) over nvme1n1, nvme0n1"
    );
    // The settings of both disks are looked at, each under its own name.
    let scheduler =
        made.findings().into_iter().filter(|finding| finding.id.as_str() == "disk-scheduler");
    let seen: Vec<_> =
        scheduler.map(|finding| (finding.subject.unwrap(), finding.status.as_str())).collect();
    assert_eq!(seen, [("nvme1n1".to_owned(), "warning"), ("nvme0n1".to_owned(), "ok")]);
}

#[test]
fn a_loop_device_stands_on_the_disk_of_its_file() {
    let mut made = Made::fine();
    let dir = made.over("loop3", "7:3", &[]);
    made.set(&format!("{dir}/loop/backing_file"), "/images/a.raw\n");
    made.spot.kind = Kind::Device;
    made.spot.device = "7:3".to_owned();
    expect(&made, &["loop3", "nvme0n1p1"], &["nvme0n1"]);
}

#[test]
fn file_systems_without_a_number_are_found_by_their_device() {
    let mut made = Made::fine();
    made.mounted("0:40 /sub / rw,noatime - btrfs /dev/nvme0n1p1 rw,subvol=/sub");
    expect(&made, &["nvme0n1p1"], &["nvme0n1"]);
    let dir = made.over("dm-7", "252:7", &[NVME]);
    made.set(&format!("{dir}/dm/name"), "vg-images\n");
    made.set(&format!("{dir}/dm/uuid"), "LVM-abc\n");
    made.mounted("0:40 / / rw,noatime - btrfs /dev/mapper/vg-images rw");
    expect(&made, &["dm-7"], &["nvme0n1"]);
}

#[test]
fn an_overlay_stands_on_the_disk_of_its_upper_layer() {
    let mut made = Made::fine();
    made.set(
        "/proc/self/mountinfo",
        "1 0 0:60 / / rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/data/upper,workdir=/data/work\n\
         2 1 259:1 / /data rw - ext4 /dev/nvme0n1p1 rw\n",
    );
    made.spot.device = "0:60".to_owned();
    expect(&made, &["nvme0n1p1"], &["nvme0n1"]);
    // One that stands on itself has no disk.
    made.set("/proc/self/mountinfo", "1 0 0:60 / / rw - overlay overlay rw,upperdir=/up\n");
    expect(&made, &[], &[]);
}

#[test]
fn a_circle_of_devices_is_gone_through_once() {
    let mut made = Made::fine();
    let first = made.over("dm-0", "252:0", &[]);
    let second = made.over("dm-1", "252:1", &[&first]);
    made.link(&format!("{first}/slaves/dm-1"), &second);
    made.set(&format!("{first}/dm/name"), "a\n");
    made.set(&format!("{second}/dm/name"), "b\n");
    made.mounted("252:0 / / rw,noatime - xfs /dev/mapper/a rw");
    expect(&made, &["dm-0", "dm-1"], &[]);
    assert!(!made.findings().is_empty());
}

#[test]
fn a_name_with_a_slash_is_one() {
    let mut made = Made::fine();
    made.disk("/sys/devices/x/block/cciss!c0d0", "104:0");
    made.mounted("104:0 / / rw,noatime - xfs /dev/cciss/c0d0 rw");
    expect(&made, &[], &["cciss/c0d0"]);
    let findings = made.findings();
    let depth = findings.iter().find(|finding| finding.id.as_str() == "disk-queue-depth").unwrap();
    assert_eq!(depth.source, "/sys/block/cciss!c0d0/queue/nr_requests");
}

#[test]
fn of_mounts_at_one_point_it_is_the_one_that_the_kernel_names_or_the_last() {
    let mut made = Made::fine();
    let hidden = "1 0 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n5 1 0:77 / / rw - tmpfs tmpfs rw\n";
    made.set("/proc/self/mountinfo", hidden);
    let of = |made: &Made| {
        let mounts = super::super::mount::Mounts::read(&made.host());
        mounts.holding(made.spot.mount_id, "/images").unwrap().kind.clone()
    };
    assert_eq!(of(&made), "ext4");
    made.spot.mount_id = None;
    assert_eq!(of(&made), "tmpfs");
}

#[test]
fn the_tightest_limit_of_all_groups_counts() {
    let made = Made::fine();
    made.set("/sys/fs/cgroup/system.slice/vm.service/cpu.max", "400000 100000\n");
    made.set("/sys/fs/cgroup/system.slice/cpu.max", "75000 50000\n");
    let findings = made.findings();
    let limit = findings.iter().find(|finding| finding.id.as_str() == "cgroup-cpu").unwrap();
    assert_eq!(limit.what, "at most 1.50 CPUs' worth of time");
    assert_eq!(limit.source, "/sys/fs/cgroup/system.slice/cpu.max");
}
