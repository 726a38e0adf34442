//! The cases and the targets set for them.

/// Where the file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// In /dev/shm: the page cache and nothing else.
    Memory,
    /// On the file system of the build directory.
    Disk,
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
    /// The cache mode of both servers.
    pub cache: &'static str,
    /// Arguments of `blk-client`.
    pub client: &'static [&'static str],
    /// Whether fio on the bare file is measured too.
    pub fio: bool,
    /// One measurement of this length instead of rounds.
    pub seconds: Option<f64>,
    /// Rows of the table.
    pub rows: &'static [(Metric, Target)],
}

use Metric::{Iops, LatencyUs, MbPerS, ServerCpuPercent, ServerCpuUs};
use Target::{Below, FioAtLeast, PeerAtLeast, PeerAtMost, Shown};

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "cached-randread-d32",
        what: "page cache, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: false,
        seconds: None,
        rows: &[(Iops, PeerAtLeast(3.5)), (ServerCpuUs, PeerAtMost(0.22)), (LatencyUs, Shown)],
    },
    Case {
        name: "cached-randwrite-d32",
        what: "page cache, 4 KiB random writes, depth 32, client sleeps",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "randwrite", "--depth", "32", "--interrupt"],
        fio: false,
        seconds: None,
        rows: &[(Iops, PeerAtLeast(3.5)), (ServerCpuUs, PeerAtMost(0.22)), (LatencyUs, Shown)],
    },
    Case {
        name: "cached-poll-randread-d32",
        what: "page cache, 4 KiB random reads, depth 32, client polls",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "32", "--poll"],
        fio: false,
        seconds: None,
        rows: &[(Iops, PeerAtLeast(2.4)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "cached-randread-d1",
        what: "page cache, 4 KiB random reads, depth 1, client sleeps",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "1", "--interrupt"],
        fio: false,
        seconds: None,
        rows: &[(LatencyUs, PeerAtMost(0.2)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "cached-poll-randread-d1",
        what: "page cache, 4 KiB random reads, depth 1, client polls",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "randread", "--depth", "1", "--poll"],
        fio: false,
        seconds: None,
        rows: &[(LatencyUs, Shown), (ServerCpuUs, Shown)],
    },
    Case {
        name: "direct-randread-d32",
        what: "O_DIRECT on the disk, 4 KiB random reads, depth 32, client sleeps",
        media: Media::Disk,
        cache: "none",
        client: &["--rw", "randread", "--depth", "32", "--interrupt"],
        fio: true,
        seconds: None,
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
        cache: "writeback",
        client: &["--rw", "read", "--bs", "256k", "--depth", "8", "--interrupt"],
        fio: false,
        seconds: None,
        rows: &[(MbPerS, PeerAtLeast(1.1)), (ServerCpuUs, Shown)],
    },
    Case {
        name: "idle",
        what: "a client is connected and does nothing for 10 s",
        media: Media::Memory,
        cache: "writeback",
        client: &["--rw", "idle", "--interrupt"],
        fio: false,
        seconds: Some(10.0),
        rows: &[(ServerCpuPercent, Below(0.05))],
    },
];
