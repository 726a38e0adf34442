//! The little that must be known of ELF files to pack them.

/// Bytes of a 64-bit ELF header.
const HEADER: usize = 64;
/// Bytes of a 64-bit program header; a file may say that its own are longer.
const PROGRAM_HEADER: usize = 56;
/// Where a header says how many sections there are, and which holds their names; each 2 bytes.
const SECTION_COUNT: usize = 60;
/// Where it says where the section headers are; 8 bytes.
const SECTION_OFFSET: usize = 40;

/// Removes what no loader reads: everything behind the last segment (symbols, debug information, section headers). A file that is
/// not a little-endian 64-bit ELF file stays as it is.
pub(super) fn strip(data: &mut Vec<u8>) {
    let Some(end) = end_of_segments(data) else { return };
    data.truncate(end);
    data[SECTION_OFFSET..SECTION_OFFSET + 8].fill(0);
    data[SECTION_COUNT..SECTION_COUNT + 4].fill(0);
}

fn end_of_segments(data: &[u8]) -> Option<usize> {
    if !data.starts_with(b"\x7fELF\x02\x01") || data.len() < HEADER {
        return None;
    }
    let table = usize::try_from(number(data, 32, 8)?).ok()?;
    let entry = usize::try_from(number(data, 54, 2)?).ok()?;
    let count = usize::try_from(number(data, 56, 2)?).ok()?;
    if entry < PROGRAM_HEADER {
        return None;
    }
    let mut end = table.checked_add(entry.checked_mul(count)?)?.max(HEADER);
    for n in 0..count {
        let at = table + n * entry;
        let (offset, size) = (number(data, at + 8, 8)?, number(data, at + 32, 8)?);
        end = end.max(usize::try_from(offset.checked_add(size)?).ok()?);
    }
    (count > 0 && end <= data.len()).then_some(end)
}

/// Little-endian, `bytes` bytes at `at`.
fn number(data: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let bytes = data.get(at..at.checked_add(bytes)?)?;
    Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Names of the modules that a kernel module needs, from its `.modinfo`: texts `key=value`, each ended by a zero byte.
pub(super) fn module_needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let mut texts = module.split(|byte| *byte == 0);
    let value = texts.find_map(|text| text.strip_prefix(KEY)).unwrap_or_default();
    let names = value.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_program_still_runs() {
        let dir = tempfile::tempdir().unwrap();
        let whole = super::super::files::read(&std::env::current_exe().unwrap()).unwrap();
        let mut small = whole.clone();
        strip(&mut small);
        assert!(small.len() < whole.len(), "{} of {}", small.len(), whole.len());
        let path = dir.path().join("small");
        super::super::files::write(&path, &small).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let listed = std::process::Command::new(&path).arg("--list").output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(text.contains("a_stripped_program_still_runs"), "{listed:?}");
    }

    #[test]
    fn what_is_no_elf_file_stays() {
        let mut cut = vec![0; 70];
        cut[..6].copy_from_slice(b"\x7fELF\x02\x01");
        cut[56] = 200;
        for data in [b"#!/bin/sh\n".to_vec(), b"\x7fELF\x02\x01".to_vec(), cut] {
            let mut stripped = data.clone();
            strip(&mut stripped);
            assert_eq!(stripped, data);
        }
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\x7fELF\0alias=depends=no\0depends=virtio,virtio_ring\0name=x\0";
        assert_eq!(module_needs(module), ["virtio", "virtio_ring"]);
        assert!(module_needs(b"\0depends=\0name=y\0").is_empty());
        assert!(module_needs(b"").is_empty());
    }
}
