//! The two reports.

use super::super::finding::Status;
use super::super::mount::Mounts;
use super::super::report::{self, Style};
use super::super::{Place, no_answer};
use super::tree::Made;
use serde_json::Value;
use std::path::Path;

const PLAIN: Style = Style { width: 72, colour: false, verbose: false };

/// A host with a problem, a warning and a note.
fn ailing() -> Made {
    let mut made = Made::fine();
    made.mounted("259:1 / / rw,noatime - ext4 /dev/nvme0n1p1 rw,nobarrier");
    made.queue("scheduler", "none [bfq]\n");
    made.queue("wbt_lat_usec", "2000\n");
    made
}

fn text(made: &Made, style: &Style) -> String {
    let places: [Place; 1] = [made.place()];
    report::text(&made.host(), &places, &made.findings(), style)
}

fn json(made: &Made) -> Value {
    let places = [made.place()];
    let mounts = Mounts::read(&made.host());
    let text = report::json(&made.host(), &mounts, &places, &made.findings());
    assert!(text.ends_with("}\n"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_worst_comes_first_in_its_group_and_all_is_counted_at_the_end() {
    let text = text(&ailing(), &PLAIN);
    let disk = text.split("\nBlock devices\n").nth(1).unwrap();
    let statuses: Vec<&str> = disk
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(statuses[..3], ["warning", "note", "ok"]);
    assert!(statuses[2..].iter().all(|status| *status == "ok"));
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("1 problem, 1 warning, 1 note, "), "{last}");
    assert!(
        text.starts_with("Host: Linux 6.12.0-generic, A CPU, 8 CPUs, 16 GiB of RAM\n"),
        "{text}"
    );
    assert!(text.contains("\nDisks at /images: nvme0n1p1 (partition) over nvme0n1\n"), "{text}");
}

#[test]
fn what_is_not_well_has_its_source_its_meaning_and_what_to_do() {
    let text = text(&ailing(), &Style { width: 4000, ..PLAIN });
    assert!(
        text.contains(
            "problem  fs-barrier    /: write barriers are off (nobarrier) (/proc/self/mountinfo)\n"
        ),
        "{text}"
    );
    assert!(text.contains("\n           no flush reaches the device"), "{text}");
    assert!(text.contains("\n           do: mount -o remount,barrier /"), "{text}");
    // Of the good things only the fact.
    assert!(text.contains("  ok       fs-sync       /: not mounted with sync\n"), "{text}");
    assert!(!text.contains("where the disk's cache mode says so"), "{text}");
    let all = super::output::text(&ailing(), &Style { width: 4000, verbose: true, ..PLAIN });
    assert!(all.contains("where the disk's cache mode says so"), "{all}");
}

#[test]
fn lines_keep_to_the_width() {
    for width in [40, 60, 100] {
        let text = text(&ailing(), &Style { width, ..PLAIN });
        for line in text.lines() {
            // Only what has no space to break it at may be longer: at most a name and a word stand on such a line.
            let words = line.split_whitespace().filter(|word| *word != "do:").count();
            assert!(line.chars().count() <= width || words <= 3, "{width}: {line}");
        }
    }
    let narrow = text(&ailing(), &Style { width: 40, ..PLAIN });
    let wide = text(&ailing(), &Style { width: 100, ..PLAIN });
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&narrow), words(&wide), "nothing is lost");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let made = ailing();
    let plain = text(&made, &PLAIN);
    assert!(!plain.contains('\x1b'));
    let coloured = text(&made, &Style { colour: true, ..PLAIN });
    assert!(coloured.contains("\x1b[1;31mproblem \x1b[0m"), "{coloured}");
    let mut bare = String::new();
    for (n, part) in coloured.split('\x1b').enumerate() {
        bare += if n == 0 { part } else { part.split_once('m').unwrap().1 };
    }
    assert_eq!(bare, plain);
}

#[test]
fn hostile_names_stay_on_their_line() {
    let mut made = ailing();
    made.spot.path = "/a\nb\x1b[2J".into();
    made.mounted("259:1 / /a\\012b rw,noatime - ext4 /dev/\\033[31mx rw");
    let text = text(&made, &PLAIN);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    assert!(text.contains(r"/a\nb\u{1b}[2J"), "{text}");
    let document = json(&made);
    assert_eq!(document["paths"][0]["path"], "/a\nb\x1b[2J");
}

#[test]
fn the_document_has_the_machine_the_paths_and_all_findings() {
    let made = ailing();
    let document = json(&made);
    assert_eq!(document["version"], 1);
    assert_eq!(document["machine"]["kernel"], "6.12.0-generic");
    assert_eq!(document["machine"]["cpus"], 8);
    assert_eq!(document["machine"]["memory_bytes"], 16u64 << 30);
    assert_eq!(document["machine"]["guest_of"], Value::Null);
    let path = &document["paths"][0];
    assert_eq!(
        (&path["path"], &path["kind"]),
        (&Value::from("/images"), &Value::from("directory"))
    );
    assert_eq!(path["mount"]["type"], "ext4");
    assert_eq!(
        (&path["layers"][0], &path["devices"][0]),
        (&Value::from("nvme0n1p1"), &Value::from("nvme0n1"))
    );
    let findings = document["findings"].as_array().unwrap();
    assert_eq!(findings.len(), made.findings().len());
    let barrier = findings.iter().find(|finding| finding["id"] == "fs-barrier").unwrap();
    assert_eq!(
        (&barrier["status"], &barrier["group"]),
        (&Value::from("problem"), &Value::from("file-system"))
    );
    assert!(barrier["do"].as_str().unwrap().contains("remount,barrier"));
    for status in Status::ALL {
        let count = findings.iter().filter(|finding| finding["status"] == status.as_str()).count();
        assert_eq!(document["summary"][status.as_str()], count);
    }
}

#[test]
fn a_file_system_that_does_not_answer_is_named() {
    let made = Made::fine();
    made.set(
        "/proc/self/mountinfo",
        "1 0 259:1 / / rw - xfs /dev/x rw\n2 1 0:70 / /net rw - nfs4 server:/disks rw\n3 1 0:71 / /network rw - ext4 /dev/y rw\n",
    );
    let mounts = Mounts::read(&made.host());
    assert_eq!(
        no_answer(&mounts, Path::new("/net/vm.raw")),
        "its file system (nfs4 from server:/disks on /net) does not answer within 10 seconds"
    );
}

#[test]
fn paths_on_one_disk_share_its_findings() {
    let made = ailing();
    let mounts = Mounts::read(&made.host());
    let mut other = made.place();
    other.spot.path = "/images/a.raw".into();
    let findings =
        super::super::examine(&made.host(), &mounts, &[made.place(), other], &made.probed);
    let of = |id: &str| findings.iter().filter(|finding| finding.id.as_str() == id).count();
    assert_eq!((of("disk-scheduler"), of("fs-type"), of("direct-io"), of("qemu")), (1, 1, 2, 1));
}
