//! FFSB's own output, from a run whose figures are given. The expected lines were checked against FFSB 6.0-RC1 itself: the same run
//! was printed by both, and differed in the version, the times, and two bare numbers that FFSB leaves behind for `bindfs`.

use ffsb::outcome::{GroupOutcome, Latency, OpOutcome, Outcome, Phases, SyscallOutcome};
use ffsb::profile::{Op, Profile, Syscall};

const PROFILE: &str = "\
time = 3
callout = true
[filesystem]
location = /a
num_files = 20
num_dirs = 2
min_filesize = 64k
max_filesize = 100000
[end]
[filesystem]
location = /b
init_size = 1m
size_weight 4k 3
size_weight 1m 1
agefs = 1
desired_util = 0.2
[threadgroup]
num_threads = 1
create_weight = 1
write_blocksize = 512
[end]
[end]
[threadgroup]
num_threads = 2
bindfs = /a
read_weight = 3
stat_weight = 1
read_size = 40k
read_blocksize = 4k
op_delay = 3
[stats]
enable_stats = 1
enable_range = 1
msec_range 0 0.01
msec_range 0.01 10000
[end]
[end]
[threadgroup]
num_threads = 1
create_weight = 1
read_weight = 1
read_size = 4k
read_blocksize = 4k
write_blocksize = 8k
[stats]
enable_stats = 1
[end]
[end]
";

fn done(op: Op, drawn: u64, transactions: u64, read: u64, written: u64) -> OpOutcome {
    OpOutcome { op, drawn, transactions, read_bytes: read, written_bytes: written }
}

fn outcome() -> Outcome {
    let call = SyscallOutcome {
        syscall: Syscall::Read,
        calls: 6840,
        min_ms: 0.0,
        mean_ms: 0.002173,
        max_ms: 0.128,
        ranges: vec![(0.0, 0.01, 6719), (0.01, 10000.0, 121)],
    };
    let open = SyscallOutcome { syscall: Syscall::Open, calls: 2, ..call.clone() };
    let unused = SyscallOutcome { syscall: Syscall::Close, calls: 0, ..call.clone() };
    Outcome {
        setup_seconds: 1.9,
        started_unix: 951_868_799,
        finished_unix: 1_801_379_289,
        seconds: 4.0,
        seed: 0,
        groups: vec![
            GroupOutcome {
                ops: vec![done(Op::Read, 3, 30, 122_880, 0), done(Op::Stat, 1, 1, 0, 0)],
                syscalls: vec![call.clone(), unused, open],
            },
            GroupOutcome {
                // Drawn, but nothing came of it: not a line.
                ops: vec![done(Op::Create, 9, 70, 0, 4_240_000_000), done(Op::Read, 1, 0, 4096, 0)],
                syscalls: vec![call],
            },
        ],
        latency: Latency::default(),
        cpu_user_seconds: 0.5,
        cpu_system_seconds: 1.0,
        phases: Phases {
            utilisation: vec![0.0549, 0.1],
            sync_before_seconds: 0.4,
            sync_after_seconds: 2.0,
        },
    }
}

fn printed(profile: &Profile, outcome: &Outcome) -> String {
    let mut out = Vec::new();
    ffsb::text::write(&mut out, profile, outcome).unwrap();
    String::from_utf8(out).unwrap()
}

/// `text` has these lines in a row.
#[track_caller]
fn has(text: &str, lines: &str) {
    assert!(text.contains(lines), "no\n{lines}\nin\n{text}");
}

#[test]
fn the_profile_is_shown_as_ffsb_shows_it() {
    let text = printed(&Profile::parse(PROFILE).unwrap().profile, &outcome());
    assert!(text.starts_with("FFSB version 6.0-ferroblk-"));
    has(
        &text,
        " started\n\nbenchmark time = 3\nThreadGroup 0\n================\n\t num_threads      = 2\n\t\n",
    );
    has(
        &text,
        "\t read_random      = off\n\t read_size        = 40960\t(40KB)\n\t read_blocksize   = 4096\t(4KB)\n\
         \t read_skip        = off\n\t read_skipsize    = 0\t(0B)\n\t\n\
         \t write_random     = off\n\t write_size       = 0\t(0B)\n\t fsync_file       = 0\n\
         \t write_blocksize  = 0\t(0B)\n\t wait time        = 3\n\t\n\t bound to fs 0\n\t\n\t op weights\n\
         \t                 read = 3 (75.00%)\n\t              readall = 0 (0.00%)\n",
    );
    has(&text, "\t         append_fsync = 0 (0.00%)\n\t\nThreadGroup 1\n");
    has(
        &text,
        "FileSystem /a\n==========\n\t num_dirs         = 2\n\t starting files   = 20\n\t\n\
         \t min file size    = 65536\t(64KB)\n\t max file size    = 100000\t(97.7KB)\n\
         \t directio         = off\n\t alignedio        = off\n\t bufferedio       = off\n\t\n\
         \t aging is off\n\t current utilization = 5.49%\n\t\nFileSystem /b\n",
    );
    has(
        &text,
        "\t Fileset weight:\n\t\t      1048576 (   1MB) -> 1 (25.00%)\n\t\t         4096 (   4KB) -> 3 (75.00%)\n",
    );
    has(
        &text,
        "\t aging is on\n\t current utilization = 10.00%\n\t desired utilization = 20.00%\n\t \n\
         \t Aging ThreadGroup for fs /b\n\t ================\n\t num_threads      = 1\n",
    );
    has(
        &text,
        "creating new fileset /a\ncreating new fileset /b\naging fs /b from 0.10 to 0.20\n\
         fs setup took 1 secs\nSyncing()...0 sec\nexecuting callout: \n true\n\
         Starting Actual Benchmark At: Tue Feb 29 23:59:59 2000\n\nSyncing()...2 sec\n\
         FFSB benchmark finished   at: Sun Jan 31 07:08:09 2027\n\nResults:\nBenchmark took 4.00 sec\n\n",
    );
}

#[test]
fn results_are_shown_as_ffsb_shows_them() {
    let text = printed(&Profile::parse(PROFILE).unwrap().profile, &outcome());
    let head = "             Op Name   Transactions\t Trans/sec\t% Trans\t    % Op Weight\t   Throughput\n\
                \x20            =======   ============\t =========\t=======\t    ===========\t   ==========\n";
    let first = format!(
        "ThreadGroup 0\n===============\n{head}\
         \x20               read :           30\t      7.50\t96.774%\t\t75.000%\t     30KB/sec\n\
         \x20               stat :            1\t      0.25\t 3.226%\t\t25.000%\t           NA\n\
         -\n7.75 Transactions per Second\n\n\
         Throughput Results\n===================\nRead Throughput: 30KB/sec\n\n\
         System Call Latency statistics in millisecs\n=====\n\
         \t\tMin\t\tAvg\t\tMax\t\tTotal Calls\n\
         \t\t========\t========\t========\t============\n\
         [   open]\t0.000000\t0.002173\t0.128000\t           2\n\
         \t\t msec_range[0]\t0.010000 - 10000.000000 :      121\n\
         \t\t msec_range[1]\t0.000000 - 0.010000 :     6719\n\n\
         [   read]\t0.000000\t0.002173\t0.128000\t        6840\n\
         \t\t msec_range[0]\t0.010000 - 10000.000000 :      121\n\
         \t\t msec_range[1]\t0.000000 - 0.010000 :     6719\n\n\n"
    );
    let second = format!(
        "ThreadGroup 1\n===============\n{head}\
         \x20             create :           70\t     17.50\t100.000%\t\t90.000%\t  1.01e+03MB/sec\n\
         -\n17.50 Transactions per Second\n\n\
         Throughput Results\n===================\nRead Throughput: 1KB/sec\nWrite Throughput: 1.01e+03MB/sec\n\n\
         System Call Latency statistics in millisecs\n=====\n\
         \t\tMin\t\tAvg\t\tMax\t\tTotal Calls\n\
         \t\t========\t========\t========\t============\n\
         [   read]\t0.000000\t0.002173\t0.128000\t        6840\n   -\n\n"
    );
    let totals = format!(
        "Total Results\n===============\n{head}\
         \x20               read :           30\t      7.50\t29.703%\t\t28.571%\t     31KB/sec\n\
         \x20             create :           70\t     17.50\t69.307%\t\t64.286%\t  1.01e+03MB/sec\n\
         \x20               stat :            1\t      0.25\t 0.990%\t\t 7.143%\t           NA\n\
         -\n25.25 Transactions per Second\n\n\
         Throughput Results\n===================\nRead Throughput: 31KB/sec\nWrite Throughput: 1.01e+03MB/sec\n\
         \n\n12.5% User   Time\n25.0% System Time\n37.5% CPU Utilization\n"
    );
    has(&text, &first);
    has(&text, &(first + &second + &totals));
    assert!(text.ends_with(&totals));
}

#[test]
fn one_group_is_the_total() {
    let mut profile = Profile::parse(PROFILE).unwrap().profile;
    let mut outcome = outcome();
    profile.thread_groups.truncate(1);
    outcome.groups.truncate(1);
    let text = printed(&profile, &outcome);
    assert_eq!(text.matches("Total Results\n").count(), 1);
    assert_eq!(text.matches("ThreadGroup 0\n").count(), 1);
}

#[test]
fn without_a_time_only_the_set_up_is_shown() {
    let mut profile = Profile::parse(PROFILE).unwrap().profile;
    profile.time = Some(0);
    let text = printed(&profile, &outcome());
    has(&text, " started\n\nOnly creating the fileset, not running benchmark.\nThreadGroup 0\n");
    assert!(text.ends_with("fs setup took 1 secs\nSetup complete, exiting\n"));
}
