//! qcow2 images on the command line: named, made, refused, unlocked and closed.

use crate::common::{MIB, Scratch, is_installed};
use crate::images::capacity;
use crate::qed::{BLOCK, Driver, qemu, serve, set};
use std::fs;

/// The byte of the header that has the incompatible features' lowest bits.
const FEATURES_AT: u64 = 79;
const SECRET: &str = "secret,id=s,data=hello";
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

#[test]
fn create_makes_an_image_that_qemu_knows() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    // By its name, or because it is said.
    for (name, args) in [("a.qcow2", &[][..]), ("b", &["-f", "qcow2"]), ("c.raw", &["-f", "qcow2"])]
    {
        let server = serve(&scratch, &[&[name, "--create", "10G"], args].concat());
        let mut driver = Driver::connect(&server);
        assert_eq!(driver.device.capacity, 10 << 30);
        driver.write(5 << 30, 0x5A);
        server.stop();
        let info = qemu(&scratch, "qemu-img", &["info", "-f", "qcow2", name]);
        assert!(info.contains("10 GiB (10737418240 bytes)"), "{info}");
        qemu(&scratch, "qemu-img", &["check", "-f", "qcow2", name]);
        let asked = ["-f", "qcow2", "-r", "-c", "read -P 0x5a 5G 4k", "-c", "read -P 0 0 1M", name];
        let said = qemu(&scratch, "qemu-io", &asked);
        assert!(!said.contains("failed"), "{said}");
        // A disk of 10 GiB, and nothing on it but one cluster and what leads to it.
        assert!(fs::metadata(scratch.path(name)).unwrap().len() < MIB as u64);
    }
    scratch.refuses(&["serve", "a.qcow2", "--create", "1M"], 1, &["a.qcow2", "exists already"]);
    scratch.refuses(&["serve", "b"], 1, &["opening b", "does not tell its format", "-f"]);
    scratch.refuses(&["serve", "c.raw"], 1, &["opening c.raw", "looks like qcow2", "-f"]);
}

#[test]
fn what_is_served_is_served_again() {
    let scratch = Scratch::new();
    let server = serve(&scratch, &["a.qcow2", "--create", "8M"]);
    Driver::connect(&server).write(4096, 7);
    server.stop();
    let before = scratch.look();
    let server = serve(&scratch, &["a.qcow2", "--read-only"]);
    assert_eq!(Driver::connect_to(&server, true).read(4096), [7; BLOCK]);
    server.stop();
    assert!(scratch.look() == before);
    // Killed, after a flush.
    let server = serve(&scratch, &["a.qcow2"]);
    Driver::connect(&server).write(1 << 20, 8);
    drop(server);
    fs::remove_file(scratch.path("vm.sock")).unwrap();
    let server = serve(&scratch, &["a.qcow2"]);
    let mut driver = Driver::connect(&server);
    assert_eq!((driver.read(4096), driver.read(1 << 20)), (vec![7; BLOCK], vec![8; BLOCK]));
    let log = server.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

/// Each row spoils one thing in an image that is good otherwise.
#[test]
fn a_header_that_cannot_be_right_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    serve(&scratch, &["good.qcow2", "--create", "64M"]).stop();
    let image = scratch.path("bad.qcow2");
    let refused = |name: &str, at: u64, bytes: &[u8], word: &str, ways: &[&[&str]]| {
        fs::copy(scratch.path("good.qcow2"), &image).unwrap();
        set(&image, at, bytes);
        for more in ways {
            println!("{name}");
            let args = [&["serve", "bad.qcow2", "-f", "qcow2"], *more].concat();
            scratch.refuses(&args, 1, &["opening bad.qcow2", word]);
        }
    };
    let all: &[&[&str]] = &[&[], &["--read-only"], &["--cache", "writeback"]];
    refused("magic", 0, b"QFX\xfb", "magic", all);
    refused("version", 4, &4u32.to_be_bytes(), "version 4", all);
    refused("cluster size", 20, &30u32.to_be_bytes(), "clusters", all);
    refused("L1 table in the header", 40, &0u64.to_be_bytes(), "L1 table", all);
    refused("L1 table too small", 36, &0u32.to_be_bytes(), "L1 table", all);
    refused("refcount table", 48, &(1u64 << 40).to_be_bytes(), "refcount table", all);
    refused("unknown feature", 72, &[0x80], "incompatible", all);
    refused("encryption nobody knows", 32, &3u32.to_be_bytes(), "encryption", all);
    refused("encryption without a key", 32, &1u32.to_be_bytes(), "encrypted", all);
    refused("marked corrupt", FEATURES_AT, &[2], "marked corrupt", &[&[]]);
    // What is marked corrupt may be looked at.
    let server = serve(&scratch, &["bad.qcow2", "--read-only"]);
    assert_eq!(capacity(&server.socket), 64 * MIB as u64);
    server.stop();
}

#[test]
fn files_that_an_image_names_are_opened_only_if_that_is_allowed() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    let base = fs::read(scratch.image("base.raw", MIB)).unwrap();
    let create = |args: &[&str]| {
        qemu(&scratch, "qemu-img", &[&["create", "-q", "-f", "qcow2"], args].concat());
    };
    create(&["-b", "base.raw", "-F", "raw", "over.qcow2"]);
    create(&["-o", "data_file=apart.data", "apart.qcow2", "1M"]);
    for (name, words) in [
        ("over.qcow2", ["opening over.qcow2", "\"base.raw\"", "--allow-backing"]),
        ("apart.qcow2", ["opening apart.qcow2", "\"apart.data\"", "--allow-backing"]),
    ] {
        for more in [&[][..], &["--read-only"]] {
            scratch.refuses(&[&["serve", name], more].concat(), 1, &words);
        }
    }
    let server = serve(&scratch, &["over.qcow2", "--allow-backing"]);
    let mut driver = Driver::connect(&server);
    assert_eq!(driver.read(4096), base[4096..8192]);
    driver.write(4096, 0xEE);
    assert_eq!(driver.read(8192), base[8192..12288], "copied on write");
    server.stop();
    assert!(fs::read(scratch.path("base.raw")).unwrap() == base);

    let server = serve(&scratch, &["apart.qcow2", "--allow-backing"]);
    Driver::connect(&server).write(65536, 0xDD);
    server.stop();
    assert_eq!(fs::read(scratch.path("apart.data")).unwrap()[65536..65536 + BLOCK], [0xDD; BLOCK]);
    for (name, byte, at) in [("over.qcow2", "0xee", "4k"), ("apart.qcow2", "0xdd", "64k")] {
        qemu(&scratch, "qemu-img", &["check", name]);
        let read = format!("read -P {byte} {at} 4k");
        let said = qemu(&scratch, "qemu-io", &["-r", "-c", &read, name]);
        assert!(!said.contains("failed"), "{said}");
    }
}

#[test]
fn an_encrypted_image_is_opened_with_its_secret_only() {
    if !is_installed("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    let create = ["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", LUKS, "a.qcow2", "8M"];
    qemu(&scratch, "qemu-img", &create);
    // As an editor leaves it, and as `printf` does.
    fs::write(scratch.path("good.txt"), "hello\n").unwrap();
    fs::write(scratch.path("plain.txt"), "hello").unwrap();
    fs::write(scratch.path("wrong.txt"), "hellO\n").unwrap();
    fs::write(scratch.path("spaced.txt"), "hello\n\n").unwrap();
    fs::write(scratch.path("empty.txt"), "").unwrap();
    scratch.refuses(&["serve", "a.qcow2"], 1, &["opening a.qcow2", "encrypted", "no secret"]);
    for name in ["wrong.txt", "spaced.txt", "empty.txt"] {
        let args = ["serve", "a.qcow2", "--secret-file", name];
        scratch.refuses(&args, 1, &["opening a.qcow2", "the secret opens no key slot"]);
    }
    let args = ["serve", "a.qcow2", "--secret-file", "none.txt"];
    scratch.refuses(&args, 1, &["none.txt", "No such file"]);
    for (name, byte) in [("good.txt", 0xAA), ("plain.txt", 0xBB)] {
        let server = serve(&scratch, &["a.qcow2", "--secret-file", name]);
        let mut driver = Driver::connect(&server);
        driver.write(1 << 20, byte);
        assert_eq!(driver.read(1 << 20), [byte; BLOCK]);
        server.stop();
        let opened = "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s";
        let read = format!("read -P {byte} 1M 4k");
        let asked = ["--object", SECRET, "-r", "-c", &read, "--image-opts", opened];
        let said = qemu(&scratch, "qemu-io", &asked);
        assert!(!said.contains("failed"), "{said}");
        let bytes = fs::read(scratch.path("a.qcow2")).unwrap();
        assert!(!bytes.windows(BLOCK).any(|block| block == [byte; BLOCK]), "in clear");
    }
}
