//! The cases and the targets set for them.

/// Where the file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// In /dev/shm: the page cache and nothing else.
    Memory,
    /// On the file system of the build directory.
    Disk,
}

/// What is on the disk, and in which formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The file of random bytes, served raw.
    File,
    /// The same bytes in an image of this format, with every cluster allocated.
    Filled(&'static str),
    /// Nothing: for each measurement a new image in this format, of so many bytes.
    Fresh(&'static str, u64),
    /// Nothing, in a qcow2 image of so many bytes with clusters of 16 KiB and tables for all of them.
    Mapped(u64),
}

impl Content {
    /// The format of the image, if it is not a raw file.
    pub fn format(self) -> Option<&'static str> {
        match self {
            Content::File => None,
            Content::Filled(format) | Content::Fresh(format, _) => Some(format),
            Content::Mapped(_) => Some("qcow2"),
        }
    }
}

/// How long is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Rounds of the length that was asked for.
    AsAsked,
    /// Rounds of so many seconds: a longer one would measure something else.
    Rounds(f64),
    /// Once, for so many seconds.
    Once(f64),
}

/// A number that a subject is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests per second.
    Iops,
    /// Megabytes (10^6) per second.
    MbPerS,
    /// Mean latency.
    LatencyUs,
    /// CPU time of the server process per request.
    ServerCpuUs,
    /// CPU time of the server process as a share of one CPU.
    ServerCpuPercent,
    /// New clusters (of a raw file: pages) per hundred writes.
    AllocatingPercent,
}

impl Metric {
    /// The key in `blk-client --json`.
    pub fn key(self) -> &'static str {
        match self {
            Metric::Iops => "iops",
            Metric::MbPerS => "mb_per_s",
            Metric::LatencyUs => "lat_mean_us",
            Metric::ServerCpuUs => "server_cpu_us_per_io",
            Metric::ServerCpuPercent => "server_cpu_percent",
            Metric::AllocatingPercent => "allocating_percent",
        }
    }

    /// The words in the table.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Iops => "IOPS",
            Metric::MbPerS => "MB/s",
            Metric::LatencyUs => "latency, us",
            Metric::ServerCpuUs => "server CPU per I/O, us",
            Metric::ServerCpuPercent => "server CPU, %",
            Metric::AllocatingPercent => "allocating, %",
        }
    }
}

/// What ferroblk's median must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At least so many times the peer's.
    PeerAtLeast(f64),
    /// At most so many times the peer's.
    PeerAtMost(f64),
    /// At least so many times fio's on the bare file.
    FioAtLeast(f64),
    /// At least so many times our own on a raw file.
    RawAtLeast(f64),
    /// Less than this.
    Below(f64),
    /// Shown, with no target set.
    Shown,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Where the file lies.
    pub media: Media,
    /// What is on it.
    pub content: Content,
    /// The cache mode of all servers.
    pub cache: &'static str,
    /// Arguments of `blk-client`.
    pub client: &'static [&'static str],
    /// Whether fio on the bare file is measured too.
    pub fio: bool,
    /// How long is measured.
    pub length: Length,
    /// Rows of the table.
    pub rows: &'static [(Metric, Target)],
}

use Length::{AsAsked, Once, Rounds};
use Metric::{AllocatingPercent, Iops, LatencyUs, MbPerS, ServerCpuPercent, ServerCpuUs};
use Target::{Below, FioAtLeast, PeerAtLeast, PeerAtMost, RawAtLeast, Shown};

/// Of QED, allocated already: against our raw and the peer's QED.
const QED_IN_PLACE: &[(Metric, Target)] =
    &[(Iops, RawAtLeast(0.97)), (Iops, PeerAtLeast(3.0)), (ServerCpuUs, Shown), (LatencyUs, Shown)];
/// Of QED that allocates as it is written.
const QED_ALLOCATING: &[(Metric, Target)] = &[
    (Iops, RawAtLeast(0.9)),
    (Iops, Shown),
    (ServerCpuUs, Shown),
    (LatencyUs, Shown),
    (AllocatingPercent, Shown),
];

/// Of qcow2, allocated already.
const QCOW2_IN_PLACE: &[(Metric, Target)] = &[
    (Iops, RawAtLeast(0.97)),
    (Iops, PeerAtLeast(3.0)),
    (ServerCpuUs, PeerAtMost(0.35)),
    (LatencyUs, Shown),
];
/// Of qcow2, that allocates as it is written, or whose tables do not fit in RAM.
const QCOW2_TWICE: &[(Metric, Target)] = &[
    (Iops, PeerAtLeast(2.0)),
    (ServerCpuUs, PeerAtMost(0.35)),
    (MbPerS, Shown),
    (LatencyUs, Shown),
];

/// So large that random writes seldom meet a cluster that has been written, in the time that is measured.
const FRESH_QED: Content = Content::Fresh("qed", 64 << 30);
const FRESH_QCOW2: Content = Content::Fresh("qcow2", 64 << 30);
/// Short, for the same reason; and every write takes memory, in some servers for its whole cluster.
const SHORT: Length = Rounds(0.5);

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "cached-randread-d32",
        what: "page cache, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: &[(Iops, PeerAtLeast(3.5)), (ServerCpuUs, PeerAtMost(0.22)), (LatencyUs, Shown)],
    },
    Case {
        name: "cached-randwrite-d32",
        what: "page cache, 4 KiB random writes, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: &[(Iops, PeerAtLeast(3.5)), (ServerCpuUs, PeerAtMost(0.22)), (LatencyUs, Shown)],
    },
    Case {
        name: "cached-poll-randread-d32",
        what: "page cache, 4 KiB random reads, depth 32, client polls",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--poll"],
        fio: false,
        length: AsAsked,
        rows: &[(Iops, PeerAtLeast(2.4)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "cached-randread-d1",
        what: "page cache, 4 KiB random reads, depth 1, client sleeps",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "1", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: &[(LatencyUs, PeerAtMost(0.2)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "cached-poll-randread-d1",
        what: "page cache, 4 KiB random reads, depth 1, client polls",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "1", "--poll"],
        fio: false,
        length: AsAsked,
        rows: &[(LatencyUs, Shown), (ServerCpuUs, Shown)],
    },
    Case {
        name: "direct-randread-d32",
        what: "O_DIRECT on the disk, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Disk,
        content: Content::File,
        cache: "none",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: true,
        length: AsAsked,
        rows: &[
            (Iops, FioAtLeast(0.97)),
            (Iops, Shown),
            (ServerCpuUs, PeerAtMost(0.6)),
            (LatencyUs, Shown),
        ],
    },
    Case {
        name: "cached-seqread-256k-d8",
        what: "page cache, 256 KiB sequential reads, depth 8, client sleeps",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "read", "--bs", "256k", "--depth", "8", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: &[(MbPerS, PeerAtLeast(1.1)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "idle",
        what: "a client is connected and does nothing for 10 s",
        media: Media::Memory,
        content: Content::File,
        cache: "writeback",
        client: &["--rw", "idle", "--interrupt"],
        fio: false,
        length: Once(10.0),
        rows: &[(ServerCpuPercent, Below(0.05))],
    },
    Case {
        name: "qed-randread-d32",
        what: "QED in the page cache, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::Filled("qed"),
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: QED_IN_PLACE,
    },
    Case {
        name: "qed-randwrite-d32",
        what: "QED in the page cache, all allocated, 4 KiB random writes, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::Filled("qed"),
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: QED_IN_PLACE,
    },
    Case {
        name: "qed-alloc-d1",
        what: "a new QED image in the page cache, 4 KiB random writes that allocate, depth 1, client sleeps",
        media: Media::Memory,
        content: FRESH_QED,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "1", "--interrupt", "--warmup-ms", "50"],
        fio: false,
        length: SHORT,
        rows: QED_ALLOCATING,
    },
    Case {
        name: "qed-alloc-d8",
        what: "a new QED image in the page cache, 4 KiB random writes that allocate, depth 8, client sleeps",
        media: Media::Memory,
        content: FRESH_QED,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "8", "--interrupt", "--warmup-ms", "50"],
        fio: false,
        length: SHORT,
        rows: QED_ALLOCATING,
    },
    Case {
        name: "qed-alloc-d16",
        what: "a new QED image in the page cache, 4 KiB random writes that allocate, depth 16, client sleeps",
        media: Media::Memory,
        content: FRESH_QED,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "16", "--interrupt", "--warmup-ms", "50"],
        fio: false,
        length: SHORT,
        rows: QED_ALLOCATING,
    },
    Case {
        name: "qcow2-randread-d32",
        what: "qcow2 in the page cache, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::Filled("qcow2"),
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: QCOW2_IN_PLACE,
    },
    Case {
        name: "qcow2-randwrite-d32",
        what: "qcow2 in the page cache, all allocated, 4 KiB random writes, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::Filled("qcow2"),
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: QCOW2_IN_PLACE,
    },
    Case {
        name: "qcow2-alloc-random",
        what: "a new qcow2 image in the page cache, 4 KiB random writes that allocate, depth 32, client sleeps",
        media: Media::Memory,
        content: FRESH_QCOW2,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "32", "--interrupt", "--warmup-ms", "50"],
        fio: false,
        length: SHORT,
        rows: QCOW2_TWICE,
    },
    Case {
        name: "qcow2-alloc-sequential",
        what: "a new qcow2 image in the page cache, 64 KiB sequential writes that allocate, depth 32, client sleeps",
        media: Media::Memory,
        content: FRESH_QCOW2,
        cache: "writeback",
        client: &[
            "--rw",
            "write",
            "--bs",
            "65536",
            "--depth",
            "32",
            "--interrupt",
            "--warmup-ms",
            "50",
        ],
        fio: false,
        length: SHORT,
        rows: QCOW2_TWICE,
    },
    Case {
        name: "qcow2-tables-beyond-ram",
        what: "qcow2 of 256 GiB with 128 MiB of L2 tables, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Memory,
        content: Content::Mapped(256 << 30),
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: false,
        length: AsAsked,
        rows: QCOW2_TWICE,
    },
];
