//! What `qemu-img check` says of an image, and images that differ from a good one in a few bytes.

use super::{Scratch, qemu_img};

/// What a checker says: nothing if the image does not open, else errors and leaked clusters.
pub type Verdict = Option<(u64, u64)>;

pub fn verdict_of_qemu(scratch: &Scratch, format: &str, image: &[u8]) -> Verdict {
    let path = scratch.put("spoiled", image);
    let (status, said) =
        qemu_img(&["check", "-f", format, "--output=json", path.to_str().unwrap()]);
    let count = |name: &str| {
        let (_, rest) = said.split_once(&format!("\"{name}\": "))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let counts = (count("corruptions").unwrap_or(0), count("leaks").unwrap_or(0));
    match status {
        0 => assert_eq!(counts, (0, 0), "{said}"),
        2 => assert!(counts.0 > 0, "{said}"),
        3 => assert!(counts.0 == 0 && counts.1 > 0, "{said}"),
        1 => return None,
        _ => panic!("{status}: {said}"),
    }
    Some(counts)
}

/// Eight bytes of an image.
pub fn word(image: &[u8], at: u64) -> [u8; 8] {
    *image[usize::try_from(at).unwrap()..].first_chunk().unwrap()
}

/// The image with other bytes in one place.
pub fn put(image: &[u8], at: u64, bytes: &[u8]) -> Vec<u8> {
    let (mut image, at) = (image.to_vec(), usize::try_from(at).unwrap());
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}
