//! Profiles as text: those that were published, those that are wrong, those that are hostile, and our own.

use ffsb::profile::scenario::{Scale, Scenario};
use ffsb::profile::{FileSystem, Op, Parsed, Profile, ProfileError, Stats, Syscall, ThreadGroup};

/// Every profile in the history of FFSB's repository: (name, text).
fn published() -> Vec<(&'static str, &'static str)> {
    let parts = include_str!("published.txt").split("=== ").skip(1);
    let all: Vec<_> = parts.filter_map(|part| part.split_once('\n')).collect();
    assert_eq!(all.len(), 44);
    all
}

fn text_of(name: &str) -> &'static str {
    published().into_iter().find(|(other, _)| *other == name).map(|(_, text)| text).unwrap()
}

fn parsed(text: &str) -> Parsed {
    Profile::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(text: &str) -> ProfileError {
    Profile::parse(text).map_or_else(|error| error, |_| panic!("accepted:\n{text}"))
}

fn warned(parsed: &Parsed, line: usize, words: &str) -> bool {
    parsed.warnings.iter().any(|warning| warning.line == line && warning.what.contains(words))
}

#[test]
fn every_published_profile_is_read_and_comes_back_the_same() {
    // FFSB refuses these two as well: their names say what they were kept for.
    let broken = ["prof_test_broke", "prof_test_broke2"];
    for (name, text) in published() {
        if broken.contains(&name) {
            continue;
        }
        let profile = Profile::parse(text).unwrap_or_else(|why| panic!("{name}:{why}")).profile;
        assert_eq!(parsed(&profile.to_string()).profile, profile, "{name}");
    }
    assert_eq!(refused(text_of(broken[0])).to_string(), "1: there is no [threadgroup]");
    let why = "17: unknown key `rewriteafdafdsafsync_weight` in [threadgroup]";
    assert_eq!(refused(text_of(broken[1])).to_string(), why);
}

#[test]
fn the_mixed_workload_keeps_both_of_its_groups_whatever_it_says() {
    let parsed = parsed(text_of("profile_mixed_workload"));
    assert!(warned(&parsed, 2, "num_threadgroups says 1, but there are 2 sections"));
    let profile = parsed.profile;
    assert_eq!(profile.time, Some(30));
    assert_eq!(profile.filesystems.len(), 2);
    let fs = &profile.filesystems[0];
    assert_eq!(
        (fs.num_files, fs.num_dirs, fs.min_filesize, fs.max_filesize),
        (100, 100, 4096, 65536)
    );
    assert_eq!((fs.create_blocksize, fs.age_blocksize), (4096, 4096));
    let [first, second] = &profile.thread_groups[..] else { panic!("two groups") };
    assert_eq!(first.num_threads, 32);
    assert_eq!(first.weights, [(Op::Read, 4), (Op::Append, 1)]);
    assert!(!first.read_random);
    assert_eq!(second.weights, [(Op::Read, 5), (Op::Delete, 1)]);
    assert_eq!((second.read_size, second.read_blocksize), (Some(1024), 512));
    assert!(second.read_random);
    assert_eq!(second.bindfs, None);
}

#[test]
fn the_profile_with_everything_has_its_sizes_and_ranges() {
    let profile = parsed(text_of("examples-profile_everything")).profile;
    let fs = &profile.filesystems[0];
    assert_eq!((fs.size_weights.len(), fs.size_weights[0]), (10, (4096, 33)));
    assert_eq!(fs.size_weights[9], (32 << 20, 1));
    assert_eq!((fs.init_size, fs.num_files, fs.num_dirs), (Some(100 << 20), 0, 100));
    assert_eq!((fs.desired_util, &fs.ageing), (Some(0.005), &None));
    let group = &profile.thread_groups[0];
    assert_eq!(group.weights.iter().map(|(_, weight)| weight).sum::<u32>(), 8);
    assert!(group.stats.enabled && group.stats.ranges_enabled);
    assert_eq!((group.stats.ranges.len(), group.stats.ranges[14]), (15, (10.0, 10000.0)));
}

#[test]
fn names_of_ffsb_5_are_understood() {
    let stats = parsed(text_of("profile_stats"));
    assert!(warned(&stats, 26, "bucket is called msec_range"));
    let stats = &stats.profile.thread_groups[0].stats;
    assert_eq!(stats.ignore, [Syscall::Close, Syscall::Open]);
    // FFSB 5 had no switch for them.
    assert!(stats.ranges_enabled && stats.ranges.len() == 15);

    let meta = parsed(text_of("prof_meta_test"));
    assert!(warned(&meta, 18, "meta_weight is called metaop_weight"));
    assert_eq!(meta.profile.thread_groups[0].weights, [(Op::Metaop, 1)]);
}

#[test]
fn sections_of_ffsb_5_take_what_they_do_not_say_from_the_one_before() {
    let creates = parsed(text_of("profile_multiplefilesystem_creates"));
    let fs = &creates.profile.filesystems[1];
    assert_eq!((fs.location.as_str(), fs.num_dirs, fs.min_filesize), ("/mnt/tmp2", 10, 4096));
    assert!(warned(&creates, 12, "num_dirs, max_filesize, min_filesize"));

    let test = parsed(text_of("prof_test")).profile;
    let group = &test.thread_groups[1];
    assert_eq!((group.read_blocksize, group.write_size), (409_600, Some(409_600)));
    // Weights are each group's own.
    assert_eq!(group.weights, [(Op::Readall, 1)]);
    assert_eq!(test.callout.as_deref(), Some("sleep 0"));

    // Without the counts that FFSB 5 demands, it is a profile of FFSB 6, where a section stands for itself.
    let six = text_of("prof_test").replace("num_filesystems=1\nnum_threadgroups=2\n", "");
    assert_eq!(refused(&six).why, "read and readall need a read_blocksize");
}

#[test]
fn profiles_of_ffsb_4_have_iterations_and_skip() {
    let mail = parsed(text_of("prof_mailsrv"));
    assert_eq!(mail.warnings, []);
    let mail = mail.profile;
    assert_eq!(mail.time, None);
    let fs = &mail.filesystems[0];
    assert_eq!((fs.num_files, fs.num_dirs, fs.max_filesize), (100_000, 100, 65536));
    let group = &mail.thread_groups[0];
    assert_eq!((group.num_threads, group.iterations), (4, Some(20_000)));
    assert_eq!(group.weights, [(Op::Create, 2), (Op::Append, 2), (Op::Delete, 1)]);
    assert_eq!((group.write_size, group.write_blocksize), (Some(4096), 4096));

    let ran = &parsed(text_of("pro_ran")).profile.thread_groups[0];
    assert_eq!((ran.read_skip, ran.read_random), (Some(8192), false));
    assert_eq!(parsed(text_of("profile_mixed")).profile.thread_groups[1].num_threads, 8);

    let aged = text_of("prof_mailsrv").replace("utilization=0.000000", "utilization=0.25");
    let aged = parsed(&aged).profile;
    let ageing = aged.filesystems[0].ageing.as_ref().unwrap();
    assert_eq!((ageing.num_threads, ageing.write_size), (1, Some(4096)));
    assert_eq!(ageing.weights, [(Op::Create, 10), (Op::Delete, 1)]);
    assert_eq!(aged.filesystems[0].desired_util, Some(0.25));
    assert_eq!(parsed(&aged.to_string()).profile, aged);
}

/// A small profile that is right; the tests below spoil one line each.
const GOOD: &str = "\
time = 10
[filesystem]
    location = /mnt/a
    num_files = 10
    min_filesize = 64k
    max_filesize = 1m
[end]
[threadgroup]
    num_threads = 2
    read_weight = 1
    write_weight = 1
    read_size = 64k
    read_blocksize = 4k
    write_size = 64k
    write_blocksize = 4k
    [stats]
        enable_stats = 1
        msec_range 0 1.5
    [end]
[end]
";

#[test]
fn each_mistake_is_named_with_its_line() {
    assert_eq!(parsed(GOOD).warnings, []);
    let cases = [
        ("time = 10", "tome = 10", "1: unknown key `tome` in the global part"),
        ("time = 10", "time 10", "1: `time = VALUE` is needed"),
        ("time = 10", "time =", "1: time has no value"),
        ("time = 10", "time = -1", "1: time: `-1` is not a whole number from 0 to 4294967295"),
        ("time = 10", "time = 10s", "1: time: `10s` is not a whole number from 0 to 4294967295"),
        ("time = 10", "directio = 2", "1: directio: `2` is neither 0 nor 1"),
        (
            "time = 10",
            "num_files = 2",
            "1: `num_files` does not belong in the global part, but in [filesystem]",
        ),
        ("time = 10", "[end]", "1: [end] without a section that it could end"),
        ("time = 10", "[files]", "1: unknown section `[files]`"),
        (
            "time = 10",
            "[stats]",
            "1: [stats] cannot be in the global part; is an [end] missing before it?",
        ),
        (
            "time = 10",
            "[config0]",
            "1: [config] is of FFSB 4.0, whose profiles begin with `numconfigs`",
        ),
        ("time = 10", "callout = \"a", "1: callout: the quotation mark is not closed"),
        ("time = 10", "callout = \"a\" b", "1: callout: `b` behind the quotation mark"),
        ("location = /mnt/a", "reuse = 0", "2: this [filesystem] has no location"),
        (
            "num_files = 10",
            "num_files = 0",
            "8: `/mnt/a` has no files to read, and nothing creates any",
        ),
        ("num_files = 10", "clone = /mnt/b", "4: clone: no file system has the location `/mnt/b`"),
        ("num_files = 10", "clone = /mnt/a", "4: clone: the file system is its own clone"),
        (
            "num_files = 10",
            "num_files = 10\n agefs = 1",
            "5: agefs needs a [threadgroup] in the [filesystem]",
        ),
        (
            "num_files = 10",
            "num_files = 10\n max_files = 9",
            "5: max_files is less than num_files, 10",
        ),
        ("num_files = 10", "init_util = 20", "4: init_util: `20` is not a number from 0.0 to 1.0"),
        (
            "num_files = 10",
            "init_util = nan",
            "4: init_util: `nan` is not a number from 0.0 to 1.0",
        ),
        (
            "num_files = 10",
            "size_weight 4k",
            "4: size_weight: two values are needed: `size_weight A B`",
        ),
        (
            "num_files = 10",
            "size_weight 4k -1",
            "4: size_weight: `-1` is not a whole number from 0 to 4294967295",
        ),
        ("num_files = 10", "size_weight 4k 0", "4: size_weight: all of the weights are 0"),
        (
            "min_filesize = 64k",
            "min_filesize = 2m",
            "5: min_filesize is 2097152, more than max_filesize, 1048576",
        ),
        ("max_filesize = 1m", "", "5: min_filesize without a max_filesize"),
        (
            "max_filesize = 1m",
            "max_filesize = 1x",
            "6: max_filesize: `1x` is not a size such as 4096, 4k, 4KB, 16m or 1g",
        ),
        (
            "max_filesize = 1m",
            "max_filesize = 1.5m",
            "6: max_filesize: `1.5m` is not a size such as 4096, 4k, 4KB, 16m or 1g",
        ),
        (
            "max_filesize = 1m",
            "max_filesize = 8388608t",
            "6: max_filesize: `8388608t` is more than a file can have",
        ),
        (
            "[end]\n[threadgroup]",
            "[threadgroup]",
            "2: the [filesystem] that begins here has no [end]",
        ),
        ("    [end]\n[end]", "    [end]", "8: the [threadgroup] that begins here has no [end]"),
        (
            "num_threads = 2",
            "num_threads = 0",
            "9: num_threads: `0` is not a whole number from 1 to 4294967295",
        ),
        ("num_threads = 2", "num_threads = 99999", "9: num_threads must be from 1 to 65536"),
        ("num_threads = 2", "op_delay = 0", "8: this [threadgroup] has no num_threads"),
        (
            "num_threads = 2",
            "num_threads = 2\n bindfs = /mnt/b",
            "10: bindfs: no file system has the location `/mnt/b`",
        ),
        (
            "num_threads = 2",
            "num_threads = 2\n bindfs = 1",
            "10: bindfs: no file system has the location `1`",
        ),
        (
            "read_weight = 1",
            "read_weight = x",
            "10: read_weight: `x` is not a whole number from 0 to 4294967295",
        ),
        (
            "read_weight = 1\n    write_weight = 1",
            "",
            "8: this [threadgroup] has no operation with a weight above 0",
        ),
        (
            "read_weight = 1",
            "read_weight = 4294967295",
            "8: weights must be 1 or more, each operation once and in order, and together not more than 32 bits hold",
        ),
        (
            "read_weight = 1",
            "append_weight = 1\n stat_weight = 1\n[stats]\n[end]",
            "19: a second [stats] in one [threadgroup]",
        ),
        (
            "read_size = 64k",
            "read_size = 65537",
            "12: one read takes 65537 bytes, but a file in `/mnt/a` may have no more than 65536",
        ),
        ("read_size = 64k", "read_size = 0", "12: read_size: 0 bytes would be nothing to do"),
        (
            "read_size = 64k",
            "read_size = 1k\n read_random = 1",
            "12: read_size is less than read_blocksize: with read_random, nothing would be read",
        ),
        (
            "read_size = 64k",
            "read_size = 64k\n read_skip = 1",
            "13: read_skip needs a read_skipsize",
        ),
        (
            "read_size = 64k",
            "read_size = 36k\n read_skip=1\n read_skipsize=4k",
            "14: one read takes 69632 bytes, but a file in `/mnt/a` may have no more than 65536",
        ),
        (
            "read_size = 64k",
            "read_size = 4k\n read_skip=1\n read_skipsize=4k\n read_random=1",
            "13: read_random and read_skip exclude each other",
        ),
        ("read_blocksize = 4k", "", "8: read and readall need a read_blocksize"),
        (
            "read_blocksize = 4k",
            "read_blocksize = 0",
            "13: read_blocksize: `0` is not from 1 byte to 1 GiB",
        ),
        (
            "read_blocksize = 4k",
            "read_blocksize = 5g",
            "13: read_blocksize: `5g` is not from 1 byte to 1 GiB",
        ),
        (
            "write_size = 64k",
            "write_size = 128k",
            "14: one write takes 131072 bytes, but a file in `/mnt/a` may have no more than 65536",
        ),
        ("write_size = 64k", "append_weight = 1", "8: append needs a write_size"),
        (
            "write_blocksize = 4k",
            "",
            "8: write, writeall, create and append need a write_blocksize",
        ),
        (
            "enable_stats = 1",
            "ignore = fork",
            "17: ignore: `fork` is none of open, read, write, create, lseek, unlink, close, stat",
        ),
        ("msec_range 0 1.5", "msec_range 2 1", "18: msec_range: 2 is larger than 1"),
        (
            "msec_range 0 1.5",
            "msec_range 0 1e99",
            "18: msec_range: `1e99` is not a number from 0 to 4294967",
        ),
    ];
    for (good, bad, why) in cases {
        assert!(GOOD.contains(good), "{good}");
        assert_eq!(refused(&GOOD.replacen(good, bad, 1)).to_string(), why);
    }
    assert_eq!(refused(" \n# nothing\n").to_string(), "1: the profile is empty");
    assert_eq!(refused("time = 1").to_string(), "1: there is no [filesystem]");
}

#[test]
fn ageing_is_checked_like_a_thread_group_and_more() {
    let aged = |lines: &str, inner: &str| {
        let inner = format!(
            "agefs=1\n{lines}\n[threadgroup]\nnum_threads=1\n{inner}\n[end]\nnum_files = 10"
        );
        GOOD.replacen("num_files = 10", &inner, 1)
    };
    let right = parsed(&aged("desired_util=0.5", "create_weight=1\nwrite_blocksize=4k"));
    assert!(right.profile.filesystems[0].ageing.is_some());
    let cases = [
        (
            "",
            "create_weight=1\nwrite_blocksize=4k",
            "4: agefs needs a desired_util to say how full is full enough",
        ),
        (
            "desired_util=0.5",
            "stat_weight=1",
            "6: a [threadgroup] that ages can create, append and delete, but not stat",
        ),
        (
            "desired_util=0.5",
            "delete_weight=1",
            "6: a [threadgroup] that ages must create or append, or the file system never gets fuller",
        ),
        ("desired_util=0.5", "append_weight=1\nwrite_blocksize=4k", "6: append needs a write_size"),
    ];
    for (lines, inner, why) in cases {
        assert_eq!(refused(&aged(lines, inner)).to_string(), why);
    }
    let off = aged("", "stat_weight=1").replace("agefs=1", "agefs=0");
    assert_eq!(parsed(&off).profile.filesystems[0].ageing, None);
}

#[test]
fn skipping_reads_need_a_file_that_reaches_to_their_last_byte() {
    let text = text_of("profile_readskip");
    let group = &parsed(text).profile.thread_groups[0];
    assert_eq!((group.read_blocksize, group.read_skip), (4090, Some(4102)));
    let why = refused(&text.replace("811596", "811595")).why;
    assert_eq!(
        why,
        "one read takes 811596 bytes, but a file in `/tmp/blarg` may have no more than 811595"
    );
}

#[test]
fn what_loses_against_another_key_is_said() {
    let both = parsed(&GOOD.replacen("num_files = 10", "num_files = 10\ninit_size = 1g", 1));
    assert!(warned(&both, 5, "init_size is not used, as there is num_files"));
    assert_eq!(both.profile.filesystems[0].init_size, None);
    let twice = parsed(&GOOD.replacen("num_files = 10", "num_files = 10\nnum_files = 11", 1));
    assert!(warned(&twice, 5, "given in line 4 already"));
    assert_eq!(twice.profile.filesystems[0].num_files, 11);
    let fsync = parsed(&GOOD.replacen("num_threads = 2", "num_threads = 2\nfsync_file = 1", 1));
    assert!(warned(&fsync, 10, "`write` is read as `write_fsync`"));
    assert_eq!(fsync.profile.thread_groups[0].weights, [(Op::Read, 1), (Op::WriteFsync, 1)]);
    let no_time = parsed(&GOOD.replacen("time = 10", "", 1));
    assert!(warned(&no_time, 1, "only the files will be made"));
    assert_eq!(no_time.profile.time, Some(0));
    let odd =
        parsed(&GOOD.replacen("time = 10", "time = 10\ndirectio = 1", 1).replace("= 4k", "= 1000"));
    assert!(warned(&odd, 14, "read_blocksize is not a multiple of 512"));
}

#[test]
fn a_clone_has_what_its_base_has_and_its_own_on_top() {
    let clones = "[filesystem]\nlocation=/mnt/c\nclone=/mnt/b\n[end]\n\
                  [filesystem]\nlocation=/mnt/b\nclone=/mnt/a\nnum_files=3\n[end]\n";
    let profile = parsed(&format!("{clones}{GOOD}")).profile;
    let facts = |index: usize| {
        let fs = &profile.filesystems[index];
        (fs.location.as_str(), fs.num_files, fs.max_filesize)
    };
    assert_eq!(facts(0), ("/mnt/c", 3, 1 << 20));
    assert_eq!(facts(1), ("/mnt/b", 3, 1 << 20));
    assert_eq!(facts(2), ("/mnt/a", 10, 1 << 20));
    let circle = format!("{clones}{}", GOOD.replacen("num_files = 10", "clone = /mnt/c", 1));
    assert!(refused(&circle).why.contains("its own clone"));
    let same = GOOD.replacen("time = 10", "[filesystem]\nlocation=/mnt/a/\nclone=/mnt/a\n[end]", 1);
    assert!(refused(&same).why.contains("is the location of two file systems"));
}

#[test]
fn groups_are_bound_by_location_or_by_ffsb_5s_number() {
    let second = "[filesystem]\nlocation=/mnt/b\nclone=/mnt/a\n[end]\n[threadgroup]";
    for wanted in ["/mnt/b", "1"] {
        let bound = format!("num_threads = 2\nbindfs = {wanted}");
        let text = GOOD.replacen("[threadgroup]", second, 1).replacen("num_threads = 2", &bound, 1);
        assert_eq!(parsed(&text).profile.thread_groups[0].bindfs, Some(1));
    }
}

/// Numbers from a seed (xorshift).
struct Draw(u64);

impl Draw {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn small(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).unwrap()
    }

    fn chance(&mut self) -> bool {
        self.below(2) == 1
    }

    fn part(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1u64 << 53) as f64
    }

    /// Bytes of every magnitude, often in whole units.
    fn bytes(&mut self, max_bits: u64) -> u64 {
        let bits = 1 + self.below(max_bits);
        let bytes = 1 + self.below(1 << bits);
        if self.chance() { bytes >> (bits / 2) << (bits / 2) } else { bytes }.max(1)
    }

    fn block(&mut self) -> u32 {
        u32::try_from(self.bytes(29)).unwrap()
    }

    fn text(&mut self) -> String {
        let pieces = ["/mnt", "a", "#", " ", "\"", "\\", "\n", "=", "[", "é", "\t", "\r", "k"];
        (0..=self.index(6)).map(|_| pieces[self.index(pieces.len())]).collect()
    }

    fn weights(&mut self, from: &[Op]) -> Vec<(Op, u32)> {
        let mut weights = Vec::new();
        for op in from {
            if self.chance() {
                weights.push((*op, 1 + self.small(100)));
            }
        }
        if weights.is_empty() {
            weights.push((from[0], 1));
        }
        weights
    }

    fn stats(&mut self) -> Stats {
        let mut ranges = Vec::new();
        for _ in 0..self.index(4) {
            let low = self.part() * 100.0;
            ranges.push((low, low + self.part() * 4_000_000.0));
        }
        Stats {
            enabled: self.chance(),
            ranges_enabled: self.chance(),
            ignore: Syscall::ALL.into_iter().filter(|_| self.chance()).collect(),
            ranges,
        }
    }

    /// Reads and writes at most `smallest` bytes of a file.
    fn thread_group(&mut self, ops: &[Op], smallest: u64) -> ThreadGroup {
        let block = u32::try_from(1 + self.below(smallest.min(1 << 20))).unwrap();
        let size = u64::from(block) + self.below(smallest - u64::from(block) + 1);
        let random = self.chance();
        let skip = (!random && self.chance()).then(|| 1 + self.small(1000));
        ThreadGroup {
            num_threads: 1 + self.small(64),
            bindfs: None,
            weights: self.weights(ops),
            read_random: random,
            // A skip needs a larger file; one block has none.
            read_size: if skip.is_some() {
                Some(block.into())
            } else {
                self.chance().then_some(size)
            },
            read_blocksize: block,
            read_skip: skip,
            write_random: self.chance(),
            write_size: Some(size),
            write_blocksize: block,
            op_delay: self.small(3),
            iterations: self.chance().then(|| 1 + self.number() / 2),
            stats: self.stats(),
        }
    }

    fn file_system(&mut self, index: usize, smallest: u64) -> FileSystem {
        let ages = [Op::Create, Op::Append, Op::Delete, Op::CreateFsync];
        let grows = self.index(3);
        let mut fs = FileSystem {
            location: format!("{index}{}", self.text()),
            num_files: if grows == 0 { 1 + self.small(1000) } else { 0 },
            max_files: (grows == 0 && self.chance()).then(|| 1000 + self.small(1000)),
            num_dirs: self.small(10),
            reuse: false,
            min_filesize: smallest,
            max_filesize: smallest + self.bytes(40),
            size_weights: Vec::new(),
            create_blocksize: self.block(),
            age_blocksize: self.block(),
            init_util: (grows == 1).then(|| self.part()),
            init_size: (grows == 2).then(|| self.bytes(50)),
            desired_util: self.chance().then(|| self.part()),
            ageing: None,
        };
        if self.chance() {
            fs.size_weights =
                (0..4).map(|_| (smallest + self.bytes(30), 1 + self.small(9))).collect();
        }
        if fs.desired_util.is_some() && self.chance() {
            let mut group = self.thread_group(&ages, smallest);
            // One that only deletes never gets a file system full.
            if group.weights[0].0 != Op::Create {
                group.weights.insert(0, (Op::Create, 1));
            }
            fs.ageing = Some(Box::new(group));
        } else {
            fs.reuse = self.chance();
        }
        fs
    }

    fn profile(&mut self) -> Profile {
        let smallest = self.bytes(30);
        let filesystems: Vec<_> =
            (0..=self.index(3)).map(|index| self.file_system(index, smallest)).collect();
        let mut thread_groups = Vec::new();
        for _ in 0..=self.index(3) {
            let mut group = self.thread_group(&Op::ALL, smallest);
            group.bindfs = self.chance().then(|| self.index(filesystems.len()));
            thread_groups.push(group);
        }
        let unbounded = thread_groups.iter().any(|group| group.iterations.is_none());
        Profile {
            time: (unbounded || self.chance()).then(|| self.small(1000)),
            directio: self.chance(),
            alignio: self.chance(),
            callout: self.chance().then(|| self.text()),
            seed: self.chance().then(|| self.number()),
            verify: self.chance(),
            filesystems,
            thread_groups,
        }
    }
}

#[test]
fn what_is_printed_is_read_back_the_same() {
    for seed in 1..=2000u64 {
        let profile = Draw(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed)).profile();
        profile.check().unwrap_or_else(|why| panic!("seed {seed}: {why}\n{profile}"));
        let text = profile.to_string();
        let again =
            Profile::parse(&text).unwrap_or_else(|why| panic!("seed {seed}: {why}\n{text}"));
        assert_eq!(again.profile, profile, "seed {seed}\n{text}");
    }
}

#[test]
fn no_edit_of_a_profile_makes_the_parser_panic() {
    let texts: Vec<&str> = published().into_iter().map(|(_, text)| text).collect();
    let mut draw = Draw(0x5EED);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..60 {
        for text in &texts {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=draw.index(1 + round / 20) {
                edit(&mut bytes, &mut draw);
            }
            match Profile::parse(&String::from_utf8_lossy(&bytes)) {
                Ok(parsed) => {
                    accepted += 1;
                    // What was accepted holds what a profile must hold, and can be written down.
                    parsed.profile.check().unwrap();
                    let again =
                        Profile::parse(&parsed.profile.to_string()).map(|again| again.profile);
                    assert_eq!(again.as_ref(), Ok(&parsed.profile));
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.line >= 1 && error.line <= 1 + bytes.len(), "{error}");
                    assert!(!error.why.contains('\n') && error.why.len() < 1000, "{error}");
                }
            }
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} {refused}");
}

/// Changes, removes, doubles or moves some bytes.
fn edit(bytes: &mut Vec<u8>, draw: &mut Draw) {
    let special = b"\n=#[]\"\\ 019-.kmgt\0\xff";
    if bytes.is_empty() {
        return;
    }
    let at = draw.index(bytes.len());
    let end = (at + draw.index(20)).min(bytes.len());
    match draw.below(5) {
        0 => bytes[at] = special[draw.index(special.len())],
        1 => bytes.insert(at, special[draw.index(special.len())]),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let piece = bytes[at..end].to_vec();
            let to = draw.index(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => bytes[at] = bytes[at].wrapping_add(1),
    }
}

#[test]
fn large_texts_cost_little() {
    let long = |line: &str| line.repeat((1 << 20) / line.len());
    for (text, why) in [
        (long("[filesystem]\nlocation=a\n[end]\n"), "more than 256 sections"),
        (long("[filesystem]\n"), "cannot be in [filesystem]"),
        (format!("[filesystem]\n{}", "size_weight 1 1\n".repeat(5000)), "more than 4096 times"),
        ("\n".repeat((1 << 20) + 1), "at most 1 MiB"),
        (
            format!("time = {}", "9".repeat(1 << 19)),
            "`9999999999999999999999999999999999999999...`",
        ),
    ] {
        let error = refused(&text);
        assert!(error.why.contains(why), "{}", error.why);
    }
    let mut clones = String::new();
    for index in 0..256 {
        clones += &format!("[filesystem]\nlocation=/{index}\nclone=/{}\n[end]\n", index + 1);
    }
    assert!(refused(&clones).why.contains("no file system has the location `/256`"));
}

#[test]
fn scenarios_are_what_the_talk_had() {
    let profile = |name: &str| {
        let scenario = Scenario::by_name(name).unwrap();
        assert_eq!(scenario.name(), name);
        scenario.profile(8, "/mnt/test", 300, Scale::FULL)
    };
    let facts = |name: &str| {
        let profile = profile(name);
        let (fs, group) = (&profile.filesystems[0], &profile.thread_groups[0]);
        let blocks = (group.read_blocksize, group.write_blocksize);
        (group.weights.clone(), blocks, (group.read_random, group.write_random), fs.num_files)
    };
    let k = 1 << 10;
    let create = vec![(Op::Create, 1)];
    assert_eq!(facts("large-file-create-256k"), (create.clone(), (0, 256 * k), (false, false), 0));
    assert_eq!(facts("large-file-create-8k"), (create, (0, 8 * k), (false, false), 0));
    let all = vec![(Op::Readall, 1)];
    assert_eq!(facts("sequential-read-256k"), (all.clone(), (256 * k, 0), (false, false), 16));
    assert_eq!(facts("sequential-read-8k"), (all, (8 * k, 0), (false, false), 16));
    assert_eq!(facts("random-read-8k"), (vec![(Op::Read, 1)], (8 * k, 0), (true, false), 16));
    assert_eq!(facts("random-write-8k"), (vec![(Op::Write, 1)], (0, 8 * k), (false, true), 16));

    let mixed = &profile("mixed-8k").thread_groups[0];
    let blocks = |size: Option<u64>, block: u32| size.unwrap() / u64::from(block);
    let reads = 7 * blocks(mixed.read_size, mixed.read_blocksize);
    let writes = 3 * blocks(mixed.write_size, mixed.write_blocksize);
    assert_eq!(
        (mixed.weights.as_slice(), reads * 3),
        (&[(Op::Read, 7), (Op::Write, 3)][..], writes * 7)
    );

    let mail = profile("mail-server-8k");
    let fs = &mail.filesystems[0];
    assert_eq!((fs.num_files, fs.num_dirs), (100_000, 100));
    assert_eq!(
        (fs.size_weights.first(), fs.size_weights.last()),
        (Some(&(1024, 1)), Some(&(1 << 20, 1)))
    );
    assert_eq!(profile("sequential-read-8k").filesystems[0].max_filesize, 1 << 30);
    assert_eq!(Scenario::by_name("random-read-4k"), None);
}

#[test]
fn scenarios_pass_the_checks_at_every_scale_and_come_back_from_text() {
    for scenario in Scenario::ALL {
        for divisor in [1, 3, 64, 1000, u32::MAX] {
            let scale = Scale::new(divisor).unwrap();
            let mut profile = scenario.profile(16, "/mnt/t #1", 5, scale);
            profile.directio = true;
            profile.check().unwrap();
            let again = parsed(&profile.to_string());
            assert_eq!(again.profile, profile);
            assert_eq!(again.warnings, []);
            let fs = &profile.filesystems[0];
            let least = if scenario == Scenario::MailServer8k { 250 << 10 } else { 16 * (4 << 20) };
            assert!(scenario.room(16, scale) >= least, "{scenario:?} {divisor}");
            assert!(fs.size_weights.iter().all(|(size, _)| size % 512 == 0));
        }
    }
    assert_eq!(Scale::new(0), None);
    let note = |scenario: Scenario, divisor| scenario.scale_note(Scale::new(divisor).unwrap());
    assert_eq!(note(Scenario::RandomRead8k, 1), "16 files of 1g: full size");
    assert_eq!(note(Scenario::RandomRead8k, 64), "16 files of 16m, scaled down from 1g by 64");
    assert_eq!(
        note(Scenario::LargeFileCreate8k, 1000),
        "up to 16 files of 4m, scaled down from 1g by 1000, the smallest there is"
    );
    assert_eq!(
        note(Scenario::MailServer8k, 100),
        "1000 files of 1k to 1m in 4 directories, scaled down from 100000 by 100"
    );
    assert_eq!(Scenario::RandomRead8k.room(8, Scale::FULL), 24 << 30);
}
