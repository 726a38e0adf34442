//! Content that no kernel writes, or only one from the future: something is said of it, and nobody falls over it.

use super::super::finding::Status;
use super::super::spot::{Kind, Trials};
use super::tree::{Made, NVME};

const GARBAGE: &[&[u8]] = &[
    b"",
    b"\n\n\n",
    b"-1\n",
    b"-9223372036854775808\n",
    b"9223372036854775807\n",
    b"18446744073709551616\n",
    b"\xff\xfe\x00\x01",
    b"[] [",
    b"[\xc3\xa9]",
    b": : : - - -",
    b"a b c d e f g - h i j\n0:: ::\ncpu \ncpu  1 2 3 4 5 6 7 8 9\nflags:\nCpus_allowed_list: 0-9999999999999999999\n",
    b"cpu  18446744073709551615 18446744073709551615 1 1 1 1 1 18446744073709551615\nMemAvailable: 18446744073709551615 kB\nMemTotal: 18446744073709551615\n",
    b"18446744073709551615 1\n",
    b"1 0\n",
];

#[test]
fn no_file_of_the_host_can_make_it_panic() {
    let made = Made::fine();
    for path in made.files() {
        let good = std::fs::read(made.root().join(&path[1..])).unwrap();
        for garbage in GARBAGE {
            made.set(&path, garbage);
            assert!(!made.findings().is_empty(), "{path}");
        }
        made.set(&path, "x".repeat(100_000));
        assert!(!made.findings().is_empty(), "{path}");
        // A directory where a file should be.
        made.remove(&path);
        std::fs::create_dir(made.root().join(&path[1..])).unwrap();
        assert!(!made.findings().is_empty(), "{path}");
        made.remove(&path);
        assert!(!made.findings().is_empty(), "{path}");
        made.set(&path, good);
    }
    assert!(made.findings().iter().all(|finding| finding.status == Status::Ok));
}

#[test]
fn of_a_host_without_proc_and_sys_nothing_is_called_good_that_was_read() {
    let mut made = Made::fine();
    made.remove("/proc");
    made.remove("/sys");
    made.spot.trials = Trials { left_out: "not allowed".to_owned(), ..Trials::default() };
    let findings = made.findings();
    for id in [
        "fs-type",
        "aio-max-nr",
        "cpu-count",
        "cpu-steal",
        "dirty-limits",
        "kernel-version",
        "device-stack",
        "direct-io",
        "punch-hole",
    ] {
        let finding = findings.iter().find(|finding| finding.id.as_str() == id).unwrap();
        assert_eq!(finding.status, Status::Unknown, "{finding:?}");
        assert!(finding.means.starts_with("could not be found out: "), "{finding:?}");
    }
}

#[test]
fn a_pipe_in_place_of_a_file_is_not_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let made = Made::fine();
    let path = format!("{NVME}/queue/nr_requests");
    made.remove(&path);
    mknodat(CWD, made.root().join(&path[1..]), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let findings = made.findings();
    let depth = findings.iter().find(|finding| finding.id.as_str() == "disk-queue-depth").unwrap();
    assert_eq!(depth.status, Status::Unknown);
}

#[test]
fn of_a_device_no_file_system_is_judged() {
    let mut made = Made::fine();
    made.spot.kind = Kind::Device;
    made.spot.path = "/dev/nvme0n1".into();
    made.spot.device = "259:0".to_owned();
    let findings = made.findings();
    assert!(findings.iter().all(|finding| !finding.id.as_str().starts_with("fs-")));
    assert!(findings.iter().all(|finding| finding.id.as_str() != "punch-hole"));
    assert!(findings.iter().any(|finding| finding.id.as_str() == "direct-io"));
}
