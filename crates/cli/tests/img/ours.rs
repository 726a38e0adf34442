//! What `qemu-img` has not, or not so: plans, NEED_CHECK, names that are no text, files that are opened only when that is allowed.

use crate::sandbox::{Sandbox, assert_one_line};
use serde_json::Value;
use std::fs;
use std::process::Command;

#[test]
fn a_backing_file_is_opened_only_if_that_is_allowed() {
    let files = Sandbox::new();
    files.raw("base.raw", 1 << 20, &[(4096, b"data")]);
    files.raw("flat.raw", 1 << 20, &[(4096, b"data")]);
    files.ours_does("create -q -f qed -b base.raw -F raw over.qed");
    for args in ["map over.qed", "convert over.qed new.raw", "resize over.qed +1M"] {
        let ended = files.ferroblk(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args}: {ended:?}");
        assert_one_line(&ended.stderr, "ferroblk", args);
        let line = &ended.stderr;
        assert!(line.contains("base.raw") && line.contains("--allow-backing"), "{args}: {line}");
    }
    assert_eq!(files.ferroblk("compare over.qed flat.raw").code, 2);
    // What looks at the image alone needs no leave, and no such file.
    fs::rename(files.path("base.raw"), files.path("away.raw")).unwrap();
    assert_eq!(files.ferroblk("info over.qed").code, 0);
    assert_eq!(files.ferroblk("check over.qed").code, 0);
    assert_eq!(files.ferroblk("map --allow-backing over.qed").code, 1);
    assert_eq!(files.ferroblk("info --backing-chain over.qed").code, 1);
    fs::rename(files.path("away.raw"), files.path("base.raw")).unwrap();
    for args in [
        "map --allow-backing over.qed",
        "convert --allow-backing over.qed new.raw",
        "compare --allow-backing over.qed flat.raw",
        "resize --allow-backing over.qed +1M",
        "info --backing-chain over.qed",
    ] {
        assert_eq!(files.ferroblk(args).code, 0, "{args}");
    }
}

#[test]
fn an_image_that_was_not_closed_is_told_of_and_mended() {
    let files = Sandbox::new();
    files.ours_does("create -q -f qed a.qed 1M");
    let told = |needed: bool| {
        let text = files.ours_does("info a.qed");
        assert!(text.contains(&format!("    need check: {needed}\n")), "{text}");
        let json: Value =
            serde_json::from_str(&files.ours_does("info --output json a.qed")).unwrap();
        let expected = serde_json::json!({
            "type": "qed",
            "data": { "need-check": needed, "cluster-size": 65536, "table-size": 4 },
        });
        assert_eq!((&json["format-specific"], &json["dirty-flag"]), (&expected, &needed.into()));
    };
    told(false);
    files.poke("a.qed", 16, &[2]);
    told(true);
    files.ours_does("check a.qed");
    told(true);
    let plan = files.ours_does("check --plan a.qed");
    assert_eq!(plan, "A repair of a.qed would change:\n    header: needs no check\n");
    told(true);
    files.ours_does("check -r leaks a.qed");
    told(false);
    assert!(files.ours_does("check --plan a.qed").ends_with("    nothing\n"));
}

#[test]
fn a_plan_is_what_a_repair_does_and_changes_nothing() {
    let files = Sandbox::new();
    files.raw("a.raw", 2 << 20, &[(0, &[1; 65536]), (1 << 20, &[2; 65536])]);
    files.ours_does("convert -O qed a.raw a.qed");
    let l2_at = files.peek("a.qed", files.peek("a.qed", 40));
    files.poke("a.qed", l2_at + 8 * 16, &0x7fff_0000u64.to_le_bytes());
    let before = fs::read(files.path("a.qed")).unwrap();
    for args in
        ["check --plan a.qed", "check --plan -r all a.qed", "check --plan --output json a.qed"]
    {
        let ended = files.ours(args);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stdout.contains("L2 entry of cluster 16: 0x7fff0000 -> 0x0"), "{ended:?}");
        assert!(fs::read(files.path("a.qed")).unwrap() == before, "{args}");
    }
    let json = files.ours("check --plan --output json a.qed").stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["filename"], &json["complete"]), (&"a.qed".into(), &false.into()));
    let repaired = files.ours("check -r all a.qed");
    assert_eq!(repaired.code, 0, "{repaired:?}");
    assert!(repaired.stdout.contains("    1 leaked clusters\n    1 corruptions\n"), "{repaired:?}");
    assert!(files.ours_does("check a.qed").contains("No errors"));
}

#[test]
fn a_name_stays_on_its_line() {
    let files = Sandbox::new();
    let name = "a\nb\u{1b}[31m\u{202e}.qed";
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferroblk"));
        files.run_command(command.arg("img").args(args))
    };
    let shown = r"a\nb\u{1b}[31m\u{202e}.qed";
    let created = run(&["create", "-f", "qed", name, "1M"]);
    let line = format!("Formatting '{shown}', fmt=qed size=1048576 cluster_size=65536\n");
    assert_eq!((created.code, created.stdout), (0, line));
    let over = run(&["create", "-f", "qed", "-b", name, "-F", "qed", "over.qed"]);
    assert_eq!(over.code, 0, "{over:?}");
    for (args, word) in [
        (&["info", name][..], "image: "),
        (&["info", "over.qed"], "backing file: "),
        (&["check", "--plan", name], "A repair of "),
    ] {
        let ended = run(args);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.stdout.contains(&format!("{word}{shown}")), "{ended:?}");
    }
    let json = run(&["info", "--output", "json", name]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["filename"], name);
    let refused = run(&["info", "-f", "nope\n", name]);
    assert_one_line(&refused.stderr, "ferroblk", "a format with a line break");
    let refused = run(&["map", "-f", "raw", "x\ny"]);
    assert_one_line(&refused.stderr, "ferroblk", "a name with a line break");
}

#[test]
fn a_disk_becomes_smaller_if_that_is_wanted() {
    let files = Sandbox::new();
    files.raw("a.raw", 4 << 20, &[(0, &[1; 4096]), (3 << 20, &[2; 4096])]);
    files.ours_does("convert -O qed a.raw a.qed");
    let refused = files.ours("resize a.qed -2M");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("--shrink"), "{refused:?}");
    assert_eq!(files.ours_does("resize --shrink a.qed -2M"), "Image resized.\n");
    files.ours_does("resize a.qed +2M");
    files.raw("expected.raw", 4 << 20, &[(0, &[1; 4096])]);
    files.ours_does("compare a.qed expected.raw");
    // The cluster that was cut off may lie where something follows it: a leak, and no more.
    assert!(files.ours_does("check -r leaks a.qed").contains("    0 corruptions"));
    assert!(files.ours_does("check a.qed").contains("No errors"));
    files.ours_does("compare a.qed expected.raw");
}

#[test]
fn a_chain_without_an_end_is_refused() {
    let files = Sandbox::new();
    files.ours_does("create -q -u -f qed -b b.qed -F qed a.qed 1M");
    files.ours_does("create -q -u -f qed -b a.qed -F qed b.qed 1M");
    for args in ["info --backing-chain a.qed", "map a.qed", "convert a.qed new.raw"] {
        let ended = files.ours(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args}: {ended:?}");
    }
    files.ours_does("info a.qed");
}

#[test]
fn a_target_without_room_is_an_error_and_is_taken_away_again() {
    let files = Sandbox::new();
    fs::write(files.path("a.raw"), vec![1; 6 << 20]).unwrap();
    fs::create_dir(files.path("small")).unwrap();
    for args in [
        "convert a.raw small/b.raw",
        "convert -O qed a.raw small/b.qed",
        "convert -m 16 -W -O qed a.raw small/b.qed",
        "create -q -o preallocation=full small/b.raw 6M",
        "create -q -o preallocation=falloc small/b.raw 6M",
    ] {
        let script = format!(
            "mount -t tmpfs -o size=4M none small && $IMG {args}; code=$?; ls small; exit $code"
        );
        let Some(ended) = files.with_mounts(&script) else { return };
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args}: {ended:?}");
        assert_one_line(&ended.stderr, "qemu-img", args);
        let line = &ended.stderr;
        assert!(line.contains("small/b.") && line.contains("No space left"), "{args}: {line}");
    }
    assert!(fs::read(files.path("a.raw")).unwrap() == vec![1; 6 << 20]);
}

/// The verbs have pages and completions as other commands do.
#[test]
fn help_is_there() {
    let files = Sandbox::new();
    for verb in ["check", "compare", "convert", "create", "info", "map", "resize", "snapshot"] {
        let ended = files.ours(&format!("{verb} --help"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{verb}");
        assert!(ended.stdout.contains(&format!("qemu-img {verb}")), "{verb}: {}", ended.stdout);
    }
    let options = files.ours_does("create -f qed -o help");
    for name in ["backing_file", "backing_fmt", "cluster_size", "size", "table_size"] {
        assert!(options.contains(&format!("  {name}=")), "{options}");
    }
    assert!(files.ours_does("--version").starts_with("qemu-img version 10."));
    // Nothing to do is not done well.
    assert_eq!(files.ours("").code, 1);
}
