//! `commit` and `rebase`, beside QEMU's tool: chains of images are changed, and read the same.

use crate::rows::{Row, SAME, run};
use crate::sandbox::{Sandbox, has_qemu};
use serde_json::Value;
use std::fs;

const MIB: u64 = 1 << 20;

/// Chains over `a.raw`: `o` over it, `p` over that, in qcow2 and QED, and new backing files.
fn chains() -> Sandbox {
    let files = Sandbox::new();
    let data = &[1; MIB as usize];
    files.raw("a.raw", 10 * MIB, &[(0, data), (6 * MIB, data)]);
    files.raw("new.raw", 10 * MIB, &[(0, data), (2 * MIB, data), (6 * MIB, &data[..5000])]);
    files.raw("short.raw", 3 * MIB + 512, &[(0, data)]);
    files.qemu_does("create -q -f qcow2 -b a.raw -F raw o.qcow2 12M");
    files.qemu_io("qcow2", "o.qcow2", &["write -P 2 512k 1M", "write -P 2 11M 64k"]);
    files.qemu_does("create -q -f qcow2 -b o.qcow2 -F qcow2 p.qcow2 14M");
    let writes =
        ["write -P 3 1M 1M", "write -z 512k 64k", "write -P 3 13M 64k", "write -z 11M 32k"];
    files.qemu_io("qcow2", "p.qcow2", &writes);
    files.qemu_does("create -q -f qed -b a.raw -F raw o.qed 12M");
    files.qemu_io("qed", "o.qed", &["write -P 2 512k 1M", "write -P 2 11M 64k"]);
    files.qemu_does("create -q -f qed -b o.qed -F qed p.qed 14M");
    files.qemu_io("qed", "p.qed", &["write -P 3 1M 1M", "write -z 6M 64k"]);
    let extended = "extended_l2=on,cluster_size=64k";
    files.qemu_does(&format!("create -q -f qcow2 -o {extended} -b a.raw -F raw sub.o.qcow2 10M"));
    let writes =
        ["write -P 4 2M 2k", "write -P 4 6M 6k", "write -z 6400k 4k", "write -P 4 100k 1k"];
    files.qemu_io("qcow2", "sub.o.qcow2", &writes);
    files.qemu_does("create -q -f qcow2 -o cluster_size=512 -b a.raw -F raw fine.o.qcow2 10M");
    files.qemu_io("qcow2", "fine.o.qcow2", &["write -P 4 2M 2k", "write -P 4 6M 6k"]);
    files.qemu_does("create -q -f qcow2 -o compat=0.10 -b a.raw -F raw v2.o.qcow2 10M");
    files.qemu_io("qcow2", "v2.o.qcow2", &["write -P 4 2M 200k", "write -P 4 6M 6k"]);
    files.qemu_does("create -q -f qcow2 -b o.qcow2 -F qcow2 small.p.qcow2 1M");
    files.qemu_io("qcow2", "small.p.qcow2", &["write -P 6 700k 64k"]);
    files.qemu_does("create -q -f qcow2 -b a.raw -F raw snap.o.qcow2 10M");
    files.qemu_io("qcow2", "snap.o.qcow2", &["write -P 7 3M 1M"]);
    files.qemu_does("snapshot -c s snap.o.qcow2");
    files.qemu_does("bitmap --add snap.o.qcow2 b");
    files.qemu_io("qcow2", "snap.o.qcow2", &["write -P 8 3500k 64k", "write -P 8 9M 64k"]);
    files.qemu_does("convert -O qcow2 -o cluster_size=4k -f raw new.raw new.qcow2");
    let data_file = "data_file=d.o.qcow2.data";
    files.qemu_does(&format!("create -q -f qcow2 -o {data_file} -b a.raw -F raw d.o.qcow2 10M"));
    files.qemu_io("qcow2", "d.o.qcow2", &["write -P 9 2M 1M", "write -z 100k 64k"]);
    files.qemu_does("create -q -f qcow2 -u -b none.raw -F raw none.qcow2 10M");
    files
}

#[test]
fn commit() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("commit p.qcow2", SAME),
        ("commit -q p.qcow2", SAME),
        ("commit -p o.qcow2", SAME),
        ("commit -d p.qcow2", SAME),
        ("commit -b a.raw p.qcow2", SAME),
        ("commit -b o.qcow2 p.qcow2", SAME),
        ("commit -b ./a.raw p.qcow2", SAME),
        ("commit -t none p.qcow2", SAME),
        ("commit -t unsafe p.qcow2", SAME),
        ("commit -r 100M p.qcow2", SAME),
        ("commit -f qed p.qed", SAME),
        ("commit -f qed -b a.raw p.qed", SAME),
        ("commit --image-opts driver=qcow2,file.filename=p.qcow2", SAME),
        ("commit sub.o.qcow2", SAME),
        ("commit fine.o.qcow2", SAME),
        ("commit v2.o.qcow2", SAME),
        ("commit small.p.qcow2", SAME),
        ("commit snap.o.qcow2", SAME),
        ("commit -b none.raw p.qcow2", SAME),
        ("commit -b new.raw p.qcow2", SAME),
        ("commit -b p.qcow2 p.qcow2", SAME),
        ("commit -f raw a.raw", SAME),
        ("commit new.qcow2", SAME),
        ("commit none.qcow2", SAME),
        ("commit -r x p.qcow2", SAME),
        ("commit -t never p.qcow2", SAME),
        ("commit", SAME),
    ];
    run(&chains(), rows);
}

/// What QEMU says of where a disk's data is, without places in files.
fn layout(files: &Sandbox, name: &str) -> Vec<(u64, u64, u64, bool)> {
    let text = files.qemu_does(&format!("map --output json {name}"));
    let runs: Vec<Value> = serde_json::from_str(&text).unwrap();
    let number = |run: &Value, field: &str| run[field].as_u64().unwrap();
    let mut all: Vec<(u64, u64, u64, bool)> = Vec::new();
    for run in runs {
        let (at, len) = (number(&run, "start"), number(&run, "length"));
        let (depth, data) = (number(&run, "depth"), run["data"].as_bool().unwrap());
        match all.last_mut() {
            Some(last) if (last.2, last.3) == (depth, data) => last.1 += len,
            _ => all.push((at, len, depth, data)),
        }
    }
    all
}

#[test]
fn what_was_committed_is_gone_from_the_top_and_stays_in_snapshots() {
    if !has_qemu() {
        return;
    }
    let all = chains();
    for name in
        ["p.qcow2", "sub.o.qcow2", "v2.o.qcow2", "snap.o.qcow2", "fine.o.qcow2", "d.o.qcow2"]
    {
        let [files, theirs] = [all.copy_for(name), all.copy_for(name)];
        files.ours_does(&format!("commit {name}"));
        theirs.qemu_does(&format!("commit {name}"));
        // QEMU's copies 64 KiB at least, where less would do.
        if !["sub.o.qcow2", "fine.o.qcow2"].contains(&name) {
            assert_eq!(layout(&files, name), layout(&theirs, name), "{name}");
        }
        assert!(layout(&files, name).iter().all(|run| run.2 > 0 || !run.3), "{name}");
        files.qemu_does(&format!("check {name}"));
    }
    let files = all.copy_for("snap.o.qcow2");
    files.qemu_does("convert -l s snap.o.qcow2 -O raw before.raw");
    files.ours_does("commit snap.o.qcow2");
    // The part that shows through is the base's, which has changed; the rest is not.
    files.qemu_does("convert -l s snap.o.qcow2 -O raw after.raw");
    let [before, after] =
        ["before.raw", "after.raw"].map(|name| fs::read(files.path(name)).unwrap());
    let own = 3 * MIB as usize..4 * MIB as usize;
    assert!(before[own.clone()] == after[own]);
}

#[test]
fn encrypted_images() {
    if !has_qemu() {
        return;
    }
    let files = Sandbox::new();
    files.raw("a.raw", MIB, &[(0, &[1; 70_000])]);
    files.raw("new.raw", MIB, &[(9000, &[2; 70_000])]);
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = "--object secret,id=s,data=hello";
    files.qemu_does(&format!(
        "create -q -f qcow2 {secret} -o {luks} -b a.raw -F raw o.luks.qcow2 1M"
    ));
    let rows: &[Row] = &[
        ("commit @secret --image-opts @open:o", SAME),
        ("rebase @secret --image-opts -b new.raw -F raw @open:o", SAME),
        ("rebase -u @secret --image-opts -b new.raw -F raw @open:o", SAME),
        ("rebase -u -b new.raw -F raw o.luks.qcow2", SAME),
    ];
    run(&files, rows);
}

/// A base that others use is left alone, and so is the image.
#[test]
fn a_base_in_use_is_not_written() {
    if !has_qemu() {
        return;
    }
    let files = chains();
    let before = ["a.raw", "o.qcow2", "p.qcow2"].map(|name| fs::read(files.path(name)).unwrap());
    let mut holder = std::process::Command::new("qemu-nbd");
    holder.args(["-f", "qcow2", "-r", "-t", "-k"]).arg(files.path("held.sock")).arg("o.qcow2");
    let mut holder = holder.current_dir(files.dir()).spawn().unwrap();
    while !files.path("held.sock").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ended = files.ours("commit p.qcow2");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(ended.code == 1 && ended.stderr.contains("locked"), "{ended:?}");
    let after = ["a.raw", "o.qcow2", "p.qcow2"].map(|name| fs::read(files.path(name)).unwrap());
    assert!(before == after);
}

/// Killed half way, the top reads as before; and the next commit does it all.
#[test]
fn a_commit_that_was_killed_has_changed_nothing_that_the_top_shows() {
    if !has_qemu() {
        return;
    }
    for base in ["base.raw", "base.qcow2"] {
        let files = Sandbox::new();
        let format = crate::sandbox::format_of(base);
        files.qemu_does(&format!("create -q -f {format} {base} 8M"));
        files.qemu_io(format, base, &["write -P 1 0 8M"]);
        files.qemu_does(&format!("create -q -f qcow2 -b {base} -F {format} top.qcow2 12M"));
        let writes = ["write -P 2 0 2M", "write -z 3M 1M", "write -P 3 5M 5M"];
        files.qemu_io("qcow2", "top.qcow2", &writes);
        files.qemu_does("convert top.qcow2 -O raw expected.raw");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ferroblk"));
        let args = "img commit --allow-backing -p -r 1k top.qcow2";
        command.args(args.split(' ')).current_dir(files.dir());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        // What comes after the first piece waits for minutes.
        let mut said = child.stdout.take().unwrap();
        let (mut text, mut piece) = (Vec::new(), [0; 64]);
        while !text.windows(4).any(|word| word == b"(8.3") {
            let len = std::io::Read::read(&mut said, &mut piece).unwrap();
            assert!(len > 0, "it has ended: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..len]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        files.qemu_does("compare -f raw expected.raw -F qcow2 top.qcow2");
        files.ours_does("commit top.qcow2");
        files.qemu_does("compare -f raw expected.raw -F qcow2 top.qcow2");
        files.qemu_does(&format!("compare -f raw expected.raw -F {format} {base}"));
        files.qemu_does("check top.qcow2");
    }
}

#[test]
fn rebase() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("rebase -b new.raw -F raw p.qcow2", SAME),
        ("rebase -p -b new.raw -F raw p.qcow2", SAME),
        ("rebase -q -b a.raw -F raw p.qcow2", SAME),
        ("rebase -b short.raw -F raw p.qcow2", SAME),
        ("rebase -b new.qcow2 -F qcow2 p.qcow2", SAME),
        ("rebase -b new.qcow2 -F qcow2 -t none -T none p.qcow2", SAME),
        ("rebase -b o.qed -F qed p.qcow2", SAME),
        ("rebase -c -b new.raw -F raw p.qcow2", SAME),
        ("rebase -f qed -b new.raw -F raw p.qed", SAME),
        ("rebase -f qed -b new.qcow2 -F qcow2 p.qed", SAME),
        ("rebase -b new.raw -F raw sub.o.qcow2", SAME),
        // Not with -c: that ends QEMU's tool with a failed assertion.
        ("rebase -b new.raw -F raw fine.o.qcow2", SAME),
        ("rebase -b new.raw -F raw v2.o.qcow2", SAME),
        ("rebase -b new.raw -F raw small.p.qcow2", SAME),
        ("rebase -b new.raw -F raw snap.o.qcow2", SAME),
        ("rebase -b new.raw -F raw d.o.qcow2", SAME),
        ("rebase -U -b new.raw -F raw p.qcow2", SAME),
        ("rebase -b new.raw -F raw new.qcow2", SAME),
        ("rebase --image-opts -b new.raw -F raw driver=qcow2,file.filename=p.qcow2", SAME),
        // The name alone.
        ("rebase -u -b new.raw -F raw p.qcow2", SAME),
        ("rebase -u -b none.raw -F raw p.qcow2", SAME),
        ("rebase -u -b a-name-that-is-rather-longer-than-the-old-one.qcow2 -F qcow2 p.qcow2", SAME),
        (
            "rebase -u -b a-name-that-is-rather-longer-than-the-old-one.raw -F raw fine.o.qcow2",
            SAME,
        ),
        ("rebase -u -b new.raw -F raw v2.o.qcow2", SAME),
        ("rebase -u -b new.raw -F raw none.qcow2", SAME),
        ("rebase -u -b new.raw -F raw d.o.qcow2", SAME),
        ("rebase -u -f qed -b new.raw -F raw p.qed", SAME),
        ("rebase -u -f qed -b o.qcow2 -F qcow2 p.qed", SAME),
        ("rebase -u -f qed p.qed", SAME),
        ("rebase -u p.qcow2", SAME),
        ("rebase -u p.qcow2 -b new.qcow2 -F qcow2 -c", SAME),
        // What cannot be.
        ("rebase -b none.raw -F raw p.qcow2", SAME),
        ("rebase -b new.raw p.qcow2", SAME),
        ("rebase -u -b none.raw p.qcow2", SAME),
        ("rebase -u -b o.qcow2 -F none p.qcow2", SAME),
        ("rebase p.qcow2", SAME),
        ("rebase -F raw p.qcow2", SAME),
        ("rebase -b p.qcow2 -F qcow2 p.qcow2", SAME),
        ("rebase -f raw -u -b new.raw -F raw a.raw", SAME),
        ("rebase -b new.raw -F raw none.qcow2", SAME),
        ("rebase -c -f qed -b new.raw -F raw p.qed", SAME),
        ("rebase -t never -b new.raw -F raw p.qcow2", SAME),
    ];
    run(&chains(), rows);
}

/// A file name of no characters, which no row can have: no backing file.
#[test]
fn rebase_on_nothing() {
    if !has_qemu() {
        return;
    }
    let all = chains();
    for name in ["p.qcow2", "p.qed", "sub.o.qcow2", "fine.o.qcow2", "v2.o.qcow2", "snap.o.qcow2"] {
        for options in [&[][..], &["-c"]] {
            let is_qed = name.ends_with("qed");
            if is_qed && !options.is_empty() {
                continue;
            }
            let files = all.copy_for(name);
            files.qemu_does(&format!("convert -O raw {name} before.raw"));
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ferroblk"));
            command.args(["img", "rebase", "--allow-backing", "-b", ""]).args(options).arg(name);
            let ended = files.run_command(&mut command);
            assert_eq!(ended.code, 0, "{name}: {ended:?}");
            fs::remove_file(files.path("a.raw")).unwrap();
            files.qemu_does(&format!("compare -f raw before.raw {name}"));
            files.qemu_does(&format!("check {name}"));
            let info = files.qemu_does(&format!("info {name}"));
            assert!(!info.contains("backing"), "{info}");
        }
    }
}
