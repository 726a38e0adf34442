//! Images that QEMU makes, their parts by name, and what QEMU says of them.

use crate::Result;
use crate::qcow2::check::{
    CheckReport, Fix, Level, Outcome, Plan, check, mend_dirty, plan, repair,
};
use crate::qcow2::header::Header;
use crate::qed::tests::check::{LOGGED, with_host};
use crate::qemu_tool::{self, TempFile};
use io_engine::sim::SimDisk;
use std::process::Command;

pub const COPIED: u64 = 1 << 63;
pub const COMPRESSED: u64 = 1 << 62;

pub fn disk_of(bytes: &[u8]) -> SimDisk {
    SimDisk::with_contents(LOGGED, bytes)
}

pub fn check_of(disk: &SimDisk) -> Result<CheckReport> {
    with_host(disk, |host| async move { check(&host, |_, _| ()).await })
}

pub fn plan_of(disk: &SimDisk, level: Level) -> Result<Plan> {
    with_host(disk, move |host| async move { plan(&host, level).await })
}

pub fn repair_of(disk: &SimDisk, level: Level) -> Result<(Outcome, Vec<Fix>)> {
    with_host(disk, move |host| async move {
        let mut fixes = Vec::new();
        let outcome = repair(&host, level, |fix| fixes.push(*fix)).await?;
        assert_eq!(outcome.fixes, fixes.len() as u64);
        Ok((outcome, fixes))
    })
}

pub fn mend_of(disk: &SimDisk) -> Result<()> {
    with_host(disk, move |host| async move { mend_dirty(&host).await })
}

/// How an image is made.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub name: &'static str,
    /// `-o` of `qemu-img create`.
    pub options: &'static str,
    pub size: &'static str,
    /// Commands of `qemu-io`; a `!` before one makes it arguments of `qemu-img` with the image at the end.
    pub steps: &'static [&'static str],
}

/// Some writes that leave clusters in an order which is not that of the disk.
const WRITES: &[&str] = &[
    "write -P 1 0 20k",
    "write -P 2 600k 3k",
    "write -P 3 300k 40k",
    "write -z 308k 8k",
    "write -P 4 100k 9000",
    "discard 104k 4k",
];
const COMPRESSED_TOO: &[&str] = &[
    "write -P 1 0 20k",
    "write -c -P 9 64k 64k",
    "write -c -P 7 128k 64k",
    "write -c -P 8 192k 64k",
    "write -P 3 300k 40k",
];
const SNAPSHOTS: &[&str] = &[
    "write -P 1 0 64k",
    "write -P 2 600k 3k",
    "!snapshot -c one",
    "write -P 5 8k 10k",
    "write -P 5 900k 10k",
    "!snapshot -c two",
    "write -P 6 0 4k",
    "discard 600k 4k",
];
const BITMAPS: &[&str] = &[
    "write -P 1 0 64k",
    "!bitmap --add -g 512 IMAGE first",
    "!bitmap --add -g 4096 IMAGE second",
    "write -P 2 100k 300k",
    "write -P 3 600k 30k",
];

pub const RECIPES: &[Recipe] = &[
    Recipe { name: "empty", options: "cluster_size=4096", size: "1M", steps: &[] },
    Recipe { name: "no disk", options: "", size: "0", steps: &[] },
    Recipe { name: "4 KiB", options: "cluster_size=4096", size: "1M", steps: WRITES },
    Recipe { name: "512 bytes", options: "cluster_size=512", size: "1M", steps: WRITES },
    Recipe { name: "64 KiB", options: "", size: "1M", steps: WRITES },
    Recipe { name: "2 MiB", options: "cluster_size=2M", size: "4M", steps: WRITES },
    Recipe { name: "v2", options: "cluster_size=4096,compat=0.10", size: "1M", steps: WRITES },
    Recipe {
        name: "1 bit",
        options: "cluster_size=4096,refcount_bits=1",
        size: "1M",
        steps: WRITES,
    },
    Recipe {
        name: "2 bits",
        options: "cluster_size=512,refcount_bits=2",
        size: "1M",
        steps: WRITES,
    },
    Recipe {
        name: "8 bits",
        options: "cluster_size=512,refcount_bits=8",
        size: "1M",
        steps: SNAPSHOTS,
    },
    Recipe {
        name: "64 bits",
        options: "cluster_size=512,refcount_bits=64",
        size: "1M",
        steps: SNAPSHOTS,
    },
    Recipe {
        name: "lazy",
        options: "cluster_size=4096,lazy_refcounts=on",
        size: "1M",
        steps: WRITES,
    },
    Recipe {
        name: "subclusters",
        options: "cluster_size=16384,extended_l2=on",
        size: "1M",
        steps: WRITES,
    },
    Recipe {
        name: "subclusters, compressed",
        options: "cluster_size=64k,extended_l2=on",
        size: "1M",
        steps: COMPRESSED_TOO,
    },
    Recipe { name: "compressed", options: "cluster_size=64k", size: "1M", steps: COMPRESSED_TOO },
    Recipe {
        name: "zstd",
        options: "cluster_size=64k,compression_type=zstd",
        size: "1M",
        steps: COMPRESSED_TOO,
    },
    Recipe { name: "snapshots", options: "cluster_size=4096", size: "1M", steps: SNAPSHOTS },
    Recipe {
        name: "snapshots, v2",
        options: "cluster_size=4096,compat=0.10",
        size: "1M",
        steps: SNAPSHOTS,
    },
    Recipe {
        name: "snapshots, subclusters",
        options: "cluster_size=16384,extended_l2=on",
        size: "1M",
        steps: SNAPSHOTS,
    },
    Recipe { name: "bitmaps", options: "cluster_size=4096", size: "1M", steps: BITMAPS },
    Recipe {
        name: "preallocated",
        options: "cluster_size=4096,preallocation=metadata",
        size: "3M",
        steps: WRITES,
    },
];

impl Recipe {
    pub fn of(name: &str) -> Recipe {
        *RECIPES.iter().find(|recipe| recipe.name == name).unwrap()
    }

    pub fn make(&self) -> Vec<u8> {
        let file = TempFile::new("qcow2");
        let path = file.path().to_str().unwrap();
        let options = if self.options.is_empty() { "compat=1.1" } else { self.options };
        let out = qemu_tool::run(&["create", "-q", "-f", "qcow2", "-o", options, path, self.size]);
        assert!(out.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&out.stderr));
        for step in self.steps {
            let out = match step.strip_prefix('!') {
                Some(words) if words.contains("IMAGE") => {
                    let words: Vec<&str> = words
                        .split(' ')
                        .map(|word| if word == "IMAGE" { path } else { word })
                        .collect();
                    qemu_tool::run(&words)
                }
                Some(words) => {
                    qemu_tool::run(&[&words.split(' ').collect::<Vec<_>>()[..], &[path]].concat())
                }
                None => io(path, step),
            };
            let why = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{}: {step}: {why}", self.name);
        }
        file.bytes()
    }
}

fn io(path: &str, command: &str) -> std::process::Output {
    Command::new("qemu-io")
        .args(["-f", "qcow2", "-d", "unmap", "-c", command, path])
        .output()
        .unwrap()
}

/// What `qemu-img check` says; all zero and a code of 1 where it does not open the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    pub code: i32,
    pub failed: u64,
    pub errors: u64,
    pub leaks: u64,
    pub total: u64,
    pub allocated: u64,
    pub fragmented: u64,
    pub compressed: u64,
    pub end: u64,
}

pub fn qemu(bytes: &[u8]) -> Verdict {
    let file = TempFile::with("qcow2", bytes);
    qemu_at(file.path().to_str().unwrap())
}

pub fn qemu_at(path: &str) -> Verdict {
    qemu_check(&["-f", "qcow2", path])
}

pub fn qemu_check(args: &[&str]) -> Verdict {
    let out = qemu_tool::run(&[&["check", "--output=json"], args].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let number = |name: &str| {
        let line = text.lines().find(|line| line.contains(&format!("\"{name}\":")));
        let digits = line.and_then(|line| line.split(':').nth(1));
        digits.map_or(0, |digits| digits.trim().trim_end_matches(',').parse().unwrap())
    };
    Verdict {
        code: out.status.code().unwrap_or(-1),
        failed: number("check-errors"),
        errors: number("corruptions"),
        leaks: number("leaks"),
        total: number("total-clusters"),
        allocated: number("allocated-clusters"),
        fragmented: number("fragmented-clusters"),
        compressed: number("compressed-clusters"),
        end: number("image-end-offset"),
    }
}

/// The same of a check of ours.
pub fn verdict(report: &CheckReport) -> Verdict {
    Verdict {
        code: match (report.errors(), report.leaked_clusters) {
            (0, 0) => 0,
            (0, _) => 3,
            _ => 2,
        },
        failed: 0,
        errors: report.errors(),
        leaks: report.leaked_clusters,
        total: report.total_clusters,
        allocated: report.allocated_clusters,
        fragmented: report.fragmented_clusters,
        compressed: report.compressed_clusters,
        end: report.image_end,
    }
}

pub fn word(bytes: &[u8], at: u64) -> u64 {
    let rest = bytes.get(at as usize..).unwrap_or_default();
    rest.first_chunk().map_or(0, |raw| u64::from_be_bytes(*raw))
}

pub fn set(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

pub fn header(bytes: &[u8]) -> Header {
    Header::parse(&bytes[..bytes.len().min(2 << 20)], bytes.len() as u64).unwrap()
}

/// Where the entries are that refer to something.
#[derive(Clone, Debug)]
pub struct Parts {
    pub header: Header,
    /// Of the active L1 table; of the L2 tables that it refers to; those of them that are compressed; of the refcount table.
    pub l1: Vec<u64>,
    pub data: Vec<u64>,
    pub compressed: Vec<u64>,
    pub blocks: Vec<u64>,
}

pub const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;

impl Parts {
    pub fn of(bytes: &[u8]) -> Parts {
        let header = header(bytes);
        let used = |at: u64, len: u64, step: usize| {
            (at..at + len).step_by(step).filter(|at| word(bytes, *at) & OFFSET != 0).collect()
        };
        let l1: Vec<u64> = used(header.l1_table, u64::from(header.l1_entries) * 8, 8);
        let step = header.l2_entry_bytes() as usize;
        let all: Vec<u64> = l1
            .iter()
            .flat_map(|at| -> Vec<u64> {
                used(word(bytes, *at) & OFFSET, header.cluster_bytes(), step)
            })
            .collect();
        let (compressed, data) = all.into_iter().partition(|at| word(bytes, *at) & COMPRESSED != 0);
        let blocks = used(header.refcount_table, header.refcount_table_bytes(), 8);
        Parts { header, l1, data, compressed, blocks }
    }
}
