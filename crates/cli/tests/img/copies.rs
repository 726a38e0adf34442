//! Options of `convert` that say how it copies, and signals, beside QEMU's tool.

use crate::rows::{Row, SAME, run};
use crate::sandbox::{Sandbox, assert_one_line, has_qemu};
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn images() -> Sandbox {
    let files = Sandbox::new();
    files.raw("a.raw", 10 * MIB, &[(MIB, &[1; 100_000]), (5 * MIB, &[2; 200_000])]);
    files.raw("zero.raw", 10 * MIB, &[]);
    files.qemu_does("convert -O qcow2 -f raw a.raw a.qcow2");
    files
}

#[test]
fn how_it_copies() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("convert -r 100M -f raw a.raw new.raw", SAME),
        ("convert --rate 1G -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert -r 0 -f raw a.raw new.raw", SAME),
        ("convert -r x -f raw a.raw new.raw", SAME),
        ("convert -C -f raw a.raw new.raw", SAME),
        ("convert -C -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert -C -S 4k -f raw a.raw new.raw", SAME),
        ("convert -C -c -O qcow2 -f raw a.raw new.qcow2", SAME),
        ("convert -C --salvage -f raw a.raw new.raw", SAME),
        ("convert --salvage -f raw a.raw new.raw", SAME),
        ("convert --salvage -c -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert -W -f raw -O qcow2 a.raw new.qcow2", SAME),
        ("convert -W -m 16 -f raw a.raw new.raw", SAME),
        ("convert -W -m 1 -c -O qcow2 -f raw a.raw new.qcow2", SAME),
        ("convert -m 17 -f raw a.raw new.raw", SAME),
        ("convert -m 0 -f raw a.raw new.raw", SAME),
        ("convert -m x -f raw a.raw new.raw", SAME),
        ("convert -n --target-is-zero -f raw a.raw zero.raw", SAME),
        ("convert --target-is-zero -f raw a.raw new.raw", SAME),
        ("convert --source-image-opts driver=raw,file.filename=a.raw new.raw", SAME),
    ];
    run(&images(), rows);
}

/// 64 MiB of data, 16 MiB of written zeroes, a hole; and what a conversion of it takes of the file system, in MiB.
const SHARED: &str = "
    used() { echo $(( $(stat -f -c '(%b - %f) * %S' .) / 1048576 )); }
    takes() { sync; before=$(used); \"$IMG\" convert $1; sync; echo \"$(( $(used) - before ))\"; }
    head -c 67108864 /dev/urandom > a.raw
    head -c 16777216 /dev/zero >> a.raw
    truncate -s 100M a.raw
";

#[test]
fn a_file_system_that_can_share_blocks_is_let_to() {
    let files = Sandbox::new();
    let script = [
        SHARED,
        "takes '-O qcow2 -f raw a.raw a.qcow2'
        takes '-O qed a.qcow2 a.qed'
        takes '-O raw a.qed b.raw'
        takes '-C -f raw a.raw c.raw'
        takes '-S 0 -f raw a.raw d.raw'
        takes '--reflink never -f raw a.raw e.raw'
        takes '-O qcow2 -o preallocation=falloc -f raw a.raw f.qcow2'
        stat -c %b e.raw b.raw
        cp --reflink=never a.raw whole
        head -c 67108864 /dev/zero | dd of=a.raw conv=notrunc status=none
        for f in b.raw c.raw d.raw e.raw; do cmp whole $f; done
        for f in a.qcow2 a.qed f.qcow2; do \"$IMG\" compare -q -F raw $f whole; \"$IMG\" check -q $f; done",
    ]
    .concat();
    let Some(ended) = files.on_xfs(&script) else { return };
    assert_eq!(ended.code, 0, "{ended:?}");
    let numbers: Vec<u64> = ended.stdout.lines().map(|line| line.parse().unwrap()).collect();
    let [qcow2, qed, raw, offloaded, written, copied, reserved, sparse, of_shared] = numbers[..]
    else {
        panic!("{ended:?}")
    };
    for shared in [qcow2, qed, raw, offloaded] {
        assert!(shared <= 4, "shared with the source: {numbers:?}");
    }
    assert!((96..110).contains(&written), "-S 0 shares nothing: {numbers:?}");
    assert!((60..70).contains(&copied), "nor does --reflink never: {numbers:?}");
    assert!((96..110).contains(&reserved), "nor a file that is to have its own: {numbers:?}");
    // The zeroes are a hole in both.
    assert!(sparse.abs_diff(of_shared) < 2048 && sparse < 140_000, "{numbers:?}");
}

/// Where the host copies, and shares nothing, the result is the same.
#[test]
fn the_host_is_asked_to_copy() {
    let files = Sandbox::new();
    files.raw("a.raw", 10 * MIB + 512, &[(MIB, &[1; 100_000]), (5 * MIB, &[2; 3_000_000])]);
    files.ours_does("convert -O qcow2 -f raw a.raw a.qcow2");
    files.ours_does("convert -c -O qcow2 -f raw a.raw packed.qcow2");
    let whole = fs::read(files.path("a.raw")).unwrap();
    for source in ["-f raw a.raw", "a.qcow2", "packed.qcow2"] {
        for (options, target) in [("", "new.raw"), ("-W -m 16", "new.qcow2"), ("", "new.qed")] {
            let format = target.split('.').next_back().unwrap();
            files.ours_does(&format!("convert -C {options} -O {format} {source} {target}"));
            files.ours_does(&format!("convert -f {format} {target} back.raw"));
            assert!(fs::read(files.path("back.raw")).unwrap() == whole, "{source} {target}");
            fs::remove_file(files.path(target)).unwrap();
        }
    }
}

/// A compressed cluster that is no stream any more cannot be read; all else can.
#[test]
fn what_can_be_read_is_saved() {
    if !has_qemu() {
        return;
    }
    let files = Sandbox::new();
    let text: Vec<u8> = (0u32..200_000).map(|n| (n / 300 % 256) as u8 | 1).collect();
    // The first piece leaves its data in the buffer that the bad one is read to.
    let full = text.repeat(6);
    files.raw("a.raw", 4 * MIB, &[(0, &full[..MIB as usize]), (MIB, &text), (3 * MIB, &text)]);
    files.qemu_does("convert -c -O qcow2 -f raw a.raw bad.qcow2");
    let at = |l1: &[u8], n: usize| u64::from_be_bytes(l1[n..n + 8].try_into().unwrap());
    let image = fs::read(files.path("bad.qcow2")).unwrap();
    let l2 = at(&image, at(&image, 40) as usize) & 0xff_ffff_ffff_fe00;
    let stream = at(&image, l2 as usize + 8 * 17) & ((1 << 54) - 1);
    files.poke("bad.qcow2", stream, &[0xff; 64]);

    let refused = files.ours("convert bad.qcow2 -O raw none.raw");
    assert_eq!(refused.code, 1);
    assert_one_line(&refused.stderr, "qemu-img", "without --salvage");
    assert!(!files.path("none.raw").exists());
    let ended = files.ours("convert -m 1 --salvage bad.qcow2 -O raw ours.raw");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 65536 / 512, "a warning for each sector");
    assert!(ended.stderr.starts_with("qemu-img: warning: "), "{ended:?}");
    assert_eq!(files.qemu("convert --salvage bad.qcow2 -O raw theirs.raw").code, 0);
    let [ours, theirs, whole] =
        ["ours.raw", "theirs.raw", "a.raw"].map(|name| fs::read(files.path(name)).unwrap());
    assert!(ours == theirs);
    let lost = MIB as usize + 65536..MIB as usize + 131_072;
    assert!(ours[lost.clone()].iter().all(|byte| *byte == 0));
    assert!(ours[..lost.start] == whole[..lost.start] && ours[lost.end..] == whole[lost.end..]);
}

/// A copy that takes as long as it is let: what follows does not depend on how long that is.
fn slow_copy(files: &Sandbox, target: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferroblk"));
    let args = "img convert -r 1k -S 0 -f raw -O qcow2 a.raw";
    command.args(args.split(' ')).args(target.split(' ')).current_dir(files.dir());
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).stdin(Stdio::null());
    let child = child.spawn().unwrap();
    let name = target.rsplit(' ').next().unwrap();
    // Its second piece waits for minutes.
    while fs::metadata(files.path(name)).map_or(0, |file| file.len()) < MIB {
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

#[test]
fn an_interrupted_copy_leaves_no_new_target() {
    let files = Sandbox::new();
    files.raw("a.raw", 10 * MIB, &[(0, &[1; 4 << 20])]);
    let before = fs::read(files.path("a.raw")).unwrap();
    for how in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let child = slow_copy(&files, "new.qcow2");
        signal(&child, how);
        let (code, stderr) = end(child);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("interrupted"), "{stderr}");
        assert!(!files.path("new.qcow2").exists());
        assert!(before == fs::read(files.path("a.raw")).unwrap());
    }
}

#[test]
fn a_signal_asks_how_far_it_is() {
    let files = Sandbox::new();
    files.raw("a.raw", 10 * MIB, &[(0, &[1; 4 << 20])]);
    let child = slow_copy(&files, "-m 1 new.qcow2");
    signal(&child, rustix::process::Signal::USR1);
    signal(&child, rustix::process::Signal::INT);
    let (code, stderr) = end(child);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("/100%)\n"), "{stderr}");
}
