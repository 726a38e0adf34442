//! Images that QEMU made and we read, and that we made and QEMU reads, writes and amends.
//!
//! Making a LUKS header takes QEMU two seconds whatever one asks for, opening one takes milliseconds. So every combination is made by us, read by
//! QEMU and written by QEMU; those that QEMU makes are a choice in which every part occurs once, and all of them in a test that is ignored.

use super::super::{
    Cipher, CipherAlg, CipherMode, Hash, IvGen, Luks, LuksOptions, add_secret, legacy_aes,
    remove_slot,
};
use super::{material, new_area, numbers, random_bytes, suites, unlock};
use crate::ErrorKind;
use crate::qemu_tool::{TempFile, is_there};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const SECRET: &[u8] = b"abc";
const DISK_BYTES: usize = 256 << 10;
const CLUSTER_BYTES: usize = 64 << 10;

/// `qemu-img` with the secrets `sec0` (`abc`) and `sec1` (`another`).
fn qemu_img(words: &[&str]) -> Child {
    let (verb, rest) = words.split_first().unwrap();
    let secrets =
        ["--object", "secret,id=sec0,data=abc", "--object", "secret,id=sec1,data=another"];
    let mut command = Command::new("qemu-img");
    command.arg(verb).args(secrets).args(rest);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn done(child: Child) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The options as qemu-img has them, each with this before its name.
fn option_words(options: &LuksOptions, prefix: &str) -> String {
    let LuksOptions { cipher, mode, ivgen, ivgen_hash, hash, .. } = options;
    let mut words = format!("{prefix}key-secret=sec0,{prefix}iter-time=1");
    for (name, value) in [
        ("cipher-alg", cipher.to_string()),
        ("cipher-mode", mode.to_string()),
        ("ivgen-alg", ivgen.to_string()),
        ("hash-alg", hash.to_string()),
    ] {
        words += &format!(",{prefix}{name}={value}");
    }
    if let Some(ivgen_hash) = ivgen_hash {
        words += &format!(",{prefix}ivgen-hash-alg={ivgen_hash}");
    }
    words
}

/// Starts QEMU on making an image in which `disk` is.
fn qemu_makes(format: &str, words: &str, disk: &TempFile, image: &TempFile) -> Child {
    let (from, to) = (text(disk.path()), text(image.path()));
    qemu_img(&["convert", "-f", "raw", "-O", format, "-o", words, from, to])
}

fn options(
    cipher: CipherAlg,
    mode: CipherMode,
    ivgen: IvGen,
    ivgen_hash: Option<Hash>,
    hash: Hash,
) -> LuksOptions {
    LuksOptions { cipher, mode, ivgen, ivgen_hash, hash, ..LuksOptions::default() }
}

/// What `info` must say, and the disk that a LUKS file must have.
fn check_luks_file(file: &[u8], options: &LuksOptions, disk: &[u8]) {
    let luks = Luks::parse(file, file.len() as u64).unwrap();
    let info = luks.describe();
    assert_eq!((info.cipher, info.mode, info.ivgen), (options.cipher, options.mode, options.ivgen));
    assert_eq!((info.hash, info.ivgen_hash), (options.hash, options.ivgen_hash));
    assert_eq!(luks.payload_offset(), options.area_bytes().unwrap(), "{options:?}");
    let mut payload = file[luks.payload_offset() as usize..].to_vec();
    unlock(file, SECRET).unwrap().decrypt(0, &mut payload);
    assert!(payload == disk, "{options:?}");
}

/// Whether QEMU 10 can handle it at all: with a key of 192 bits but in mode xts the key material is not whole sectors, and it aborts.
fn qemu_can(options: &LuksOptions) -> bool {
    options.cipher.key_bytes() != 24 || options.mode == CipherMode::Xts
}

fn check_files_by_qemu(all: &[LuksOptions]) {
    let content = random_bytes(1, DISK_BYTES);
    let disk = TempFile::with("raw", &content);
    for pair in all.chunks(2) {
        let images: Vec<TempFile> = pair.iter().map(|_| TempFile::new("luks")).collect();
        let start = |(options, image)| qemu_makes("luks", &option_words(options, ""), &disk, image);
        let running: Vec<Child> = pair.iter().zip(&images).map(start).collect();
        running.into_iter().for_each(done);
        for (options, image) in pair.iter().zip(&images) {
            check_luks_file(&image.bytes(), options, &content);
        }
    }
}

#[test]
fn luks_files_that_qemu_made() {
    use CipherMode::{Cbc, Ctr, Xts};
    use IvGen::{Essiv, Plain, Plain64};
    if is_there() {
        check_files_by_qemu(&[
            LuksOptions::default(),
            options(CipherAlg::Serpent256, Cbc, Essiv, Some(Hash::Sha256), Hash::Sha512),
            options(CipherAlg::Cast5128, Cbc, Plain, None, Hash::Ripemd160),
            options(CipherAlg::Twofish192, Xts, Plain64, Some(Hash::Sha1), Hash::Sha1),
            options(CipherAlg::Aes128, Ctr, Essiv, Some(Hash::Md5), Hash::Sha384),
        ]);
    }
}

#[test]
#[ignore = "takes minutes: QEMU measures two seconds for each image"]
fn luks_files_that_qemu_made_in_every_combination() {
    if is_there() {
        check_files_by_qemu(&all_that_qemu_can());
    }
}

#[test]
#[ignore = "takes a minute without optimisation"]
fn luks_files_that_we_made_in_every_combination() {
    if is_there() {
        check_files_of_ours(&all_that_qemu_can());
    }
}

/// Every cipher in every mode, every hash, every IV generator with every length of key that it makes.
#[test]
fn luks_files_that_we_made() {
    let needed = |options: &LuksOptions| match options.ivgen {
        IvGen::Plain64 => true,
        IvGen::Plain => options.cipher == CipherAlg::Aes256,
        IvGen::Essiv => {
            options.mode == CipherMode::Cbc && options.cipher.family() == "aes"
                || options.ivgen_hash == Some(Hash::Md5) && options.mode == CipherMode::Xts
        }
    };
    if is_there() {
        let all: Vec<LuksOptions> = all_that_qemu_can().into_iter().filter(needed).collect();
        check_files_of_ours(&all);
    }
}

fn all_that_qemu_can() -> Vec<LuksOptions> {
    let mut all: Vec<LuksOptions> = suites().into_iter().filter(qemu_can).collect();
    for &hash in Hash::ALL {
        all.push(LuksOptions { hash, ..LuksOptions::default() });
    }
    all
}

/// QEMU reads what we wrote, and we what it wrote over it.
fn check_files_of_ours(all: &[LuksOptions]) {
    let (ours, theirs) = (random_bytes(2, 8 << 10), random_bytes(3, 8 << 10));
    let disk = TempFile::with("raw", &theirs);
    for (options, seed) in all.iter().zip(4..) {
        let (mut file, cipher) = new_area(options, SECRET, seed);
        let mut payload = ours.clone();
        cipher.encrypt(0, &mut payload);
        file.extend_from_slice(&payload);
        let image = TempFile::with("luks", &file);

        let as_luks = format!("driver=luks,file.filename={},key-secret=sec0", text(image.path()));
        let read = TempFile::new("raw");
        done(qemu_img(&["convert", "--image-opts", "-O", "raw", &as_luks, text(read.path())]));
        assert!(read.bytes() == ours, "{options:?}");

        let from = text(disk.path());
        done(qemu_img(&["convert", "-n", "-f", "raw", "--target-image-opts", from, &as_luks]));
        check_luks_file(&image.bytes(), options, &theirs);
    }
}

/// A second secret, and then no longer the first.
#[test]
fn secrets_that_qemu_added_and_removed() {
    if !is_there() {
        return;
    }
    let options = LuksOptions::default();
    let (file, _) = new_area(&options, SECRET, 5);
    let image = TempFile::with("luks", &file);
    let as_luks = format!("driver=luks,file.filename={},key-secret=sec0", text(image.path()));
    let amend = |words| done(qemu_img(&["amend", "--image-opts", "-o", words, &as_luks]));

    amend("state=active,new-secret=sec1,iter-time=1");
    let file = image.bytes();
    assert_eq!(Luks::parse(&file, file.len() as u64).unwrap().key_slots().count(), 2);
    let of = |secret: &[u8]| {
        let mut data = vec![0; 512];
        unlock(&image.bytes(), secret).map(|cipher| {
            cipher.encrypt(9, &mut data);
            data
        })
    };
    assert_eq!(of(SECRET).unwrap(), of(b"another").unwrap());

    amend("state=inactive,old-secret=sec0");
    assert_eq!(of(SECRET).unwrap_err().kind(), ErrorKind::BadRequest);
    of(b"another").unwrap();
}

/// The same by us, with QEMU to try the secrets.
#[test]
fn secrets_that_we_added_and_removed() {
    if !is_there() {
        return;
    }
    let (mut file, _) = new_area(&LuksOptions::default(), SECRET, 10);
    let area_bytes = file.len() as u64;
    file.resize(file.len() + 4096, 0);
    let opens = |file: &[u8], name: &str| {
        let image = TempFile::with("luks", file);
        let from = format!("driver=luks,file.filename={},key-secret={name}", text(image.path()));
        let read = TempFile::new("raw");
        let words = ["convert", "--image-opts", "-O", "raw", &from, text(read.path())];
        qemu_img(&words).wait_with_output().unwrap().status.success()
    };
    assert!(opens(&file, "sec0") && !opens(&file, "sec1"));

    let luks = Luks::parse(&file, area_bytes).unwrap();
    let known = material(&luks, &file);
    let add = |secret| {
        let random = &mut numbers(11);
        add_secret(&file, area_bytes, secret, &known, b"another", 1000, random)
    };
    assert_eq!(add(b"another").unwrap_err().kind(), ErrorKind::BadRequest);
    let new = add(SECRET).unwrap();
    assert_eq!(new.slot.index, 1);
    let at = new.slot.offset as usize;
    file[at..at + new.slot.bytes].copy_from_slice(&new.material);
    file[..Luks::HEADER_BYTES].copy_from_slice(&new.header);
    assert!(opens(&file, "sec0") && opens(&file, "sec1"));

    remove_slot(&mut file, area_bytes, 0).unwrap();
    assert!(!opens(&file, "sec0") && opens(&file, "sec1"));
    for index in [0, 1, 7, 8] {
        let error = remove_slot(&mut file, area_bytes, index).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{index}");
    }
}

/// As much of qcow2 as it takes to find clusters: an independent view, and a short one.
struct Qcow2 {
    file: Vec<u8>,
}

impl Qcow2 {
    fn be32(&self, at: usize) -> usize {
        u32::from_be_bytes(self.file[at..at + 4].try_into().unwrap()) as usize
    }

    fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.file[at..at + 8].try_into().unwrap())
    }

    fn crypt_method(&self) -> usize {
        self.be32(32)
    }

    /// The area that the header extension for encryption names.
    fn luks_area(&self) -> Range<usize> {
        let mut at = self.be32(100);
        while self.be32(at) != 0x0537_be77 {
            assert_ne!(self.be32(at), 0, "there is no such extension");
            at += 8 + self.be32(at + 4).next_multiple_of(8);
        }
        assert_eq!(self.be32(at + 4), 16);
        let (from, bytes) = (self.be64(at + 8) as usize, self.be64(at + 16) as usize);
        from..from + bytes
    }

    /// Where the disk's clusters lie; all of them must be allocated.
    fn clusters(&self) -> Vec<usize> {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        assert_eq!(1 << self.be32(20), CLUSTER_BYTES);
        let l2_at = (self.be64(self.be64(40) as usize) & OFFSET) as usize;
        let count = self.be64(24) as usize / CLUSTER_BYTES;
        let cluster = |index| (self.be64(l2_at + 8 * index) & OFFSET) as usize;
        let clusters: Vec<usize> = (0..count).map(cluster).collect();
        assert!(clusters.iter().all(|&at| at != 0), "a cluster is not allocated");
        clusters
    }

    /// The disk, decrypted. `physical`: sectors count in the file.
    fn disk(&self, cipher: &Cipher, physical: bool) -> Vec<u8> {
        let mut disk = Vec::new();
        for (index, at) in self.clusters().into_iter().enumerate() {
            let mut cluster = self.file[at..at + CLUSTER_BYTES].to_vec();
            let counted_from = if physical { at } else { index * CLUSTER_BYTES };
            cipher.decrypt(counted_from as u64 / 512, &mut cluster);
            disk.extend_from_slice(&cluster);
        }
        disk
    }
}

#[test]
fn qcow2_images_with_luks_that_qemu_made_and_reads() {
    if !is_there() {
        return;
    }
    let content = random_bytes(6, DISK_BYTES);
    let disk = TempFile::with("raw", &content);
    let essiv = Some(Hash::Sha256);
    let cases = [
        LuksOptions::default(),
        options(CipherAlg::Aes128, CipherMode::Cbc, IvGen::Essiv, essiv, Hash::Sha224),
    ];
    let images = cases.each_ref().map(|_| TempFile::new("qcow2"));
    let start = |(options, image)| {
        let words = format!("encrypt.format=luks,{}", option_words(options, "encrypt."));
        qemu_makes("qcow2", &words, &disk, image)
    };
    let running: Vec<Child> = cases.iter().zip(&images).map(start).collect();
    running.into_iter().for_each(done);
    for (options, image) in cases.iter().zip(&images) {
        let image = Qcow2 { file: image.bytes() };
        assert_eq!(image.crypt_method(), 2);
        let area = &image.file[image.luks_area()];
        assert_eq!(area.len() as u64, options.area_bytes().unwrap());
        let cipher = unlock(area, SECRET).unwrap();
        assert!(image.disk(&cipher, true) == content, "{options:?}");
        assert!(unlock(area, b"another").is_err());
        check_with_our_header(image, options, &content);
    }
}

/// A header of ours in the place of QEMU's, with clusters that we encrypted: QEMU reads the image.
fn check_with_our_header(mut image: Qcow2, options: &LuksOptions, content: &[u8]) {
    let place = image.luks_area();
    let old = unlock(&image.file[place.clone()], SECRET).unwrap();
    let (area, new) = new_area(options, b"another", 8);
    image.file[place].copy_from_slice(&area);
    for at in image.clusters() {
        let cluster = &mut image.file[at..at + CLUSTER_BYTES];
        old.decrypt(at as u64 / 512, cluster);
        new.encrypt(at as u64 / 512, cluster);
    }
    let image = TempFile::with("qcow2", &image.file);
    let read = TempFile::new("raw");
    let file = format!("driver=qcow2,file.filename={}", text(image.path()));
    let from = format!("{file},encrypt.format=luks,encrypt.key-secret=sec1");
    done(qemu_img(&["convert", "--image-opts", "-O", "raw", &from, text(read.path())]));
    assert!(read.bytes() == content, "{options:?}");
}

#[test]
fn qcow2_image_with_the_first_method_that_qemu_made() {
    if !is_there() {
        return;
    }
    let content = random_bytes(9, DISK_BYTES);
    let disk = TempFile::with("raw", &content);
    let image = TempFile::new("qcow2");
    done(qemu_makes("qcow2", "encrypt.format=aes,encrypt.key-secret=sec0", &disk, &image));
    let image = Qcow2 { file: image.bytes() };
    assert_eq!(image.crypt_method(), 1);
    assert!(image.disk(&legacy_aes(SECRET).unwrap(), false) == content);
    assert!(image.disk(&legacy_aes(b"abd").unwrap(), false) != content);
}
