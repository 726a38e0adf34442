//! Another backing file: what a power cut leaves of the header.

use crate::power_cut;
use crate::qed::{CreateOptions, Header};
use crate::testing::rig::{Rig, image};
use io_engine::sim::{SimDisk, SimOptions};

const MIB: u64 = 1 << 20;

/// The name that a header leads to, and whether that file is raw.
fn named(disk: &SimDisk) -> Option<(Vec<u8>, bool)> {
    let bytes = disk.contents();
    let start = bytes[..Header::LEN].try_into().unwrap();
    let header = Header::parse(start, bytes.len() as u64).unwrap();
    let (at, len) = header.backing_name()?;
    Some((bytes[at as usize..][..len].to_vec(), header.backing_is_raw()))
}

#[test]
fn a_power_cut_leaves_one_backing_file_or_the_other() {
    let base = SimDisk::with_contents(SimOptions::default(), &[9; MIB as usize]);
    let [long, other] = ["long/", "lang/"].map(|part| part.repeat(204));
    for names in [["base", "a-longer-name", "b"], [&long, "short", &long], ["a", &long, &other]] {
        let mut now = (names[0].as_bytes().to_vec(), true);
        let create = CreateOptions {
            cluster_bytes: 4096,
            backing: Some(now.clone()),
            ..CreateOptions::new(MIB)
        };
        let disk = image(&create, SimOptions { log: true, ..SimOptions::default() });
        let rig = Rig::open_over(&disk, Some(&base), 1, false).unwrap();
        rig.write(8192, &[7; 512]).unwrap();
        rig.flush().unwrap();
        let changes = names[1..].iter().map(|name| Some((name.as_bytes().to_vec(), false)));
        for new in changes.chain([None]) {
            let (begin, done) = (disk.fork(), disk.write_log().len());
            let set = new.clone();
            let changed = rig.run(|node| async move {
                let backing = set.map(|(name, _)| crate::qcow2::BackingFile {
                    name,
                    format: Some(b"qcow2".to_vec()),
                });
                node.set_backing(backing.as_ref()).await
            });
            changed.unwrap();
            let mut seen = [false; 2];
            power_cut::each_state(&begin, &disk.write_log()[done..], |state| {
                let found = named(&state);
                assert!(found.as_ref() == Some(&now) || found == new, "{found:?}");
                seen[usize::from(found == new)] = true;
                let rig = Rig::open_over(&state, Some(&base), 2, false).unwrap();
                assert_eq!(rig.read(8192, 1024).unwrap(), [[7; 512], [9; 512]].concat());
            });
            assert_eq!(seen, [true; 2]);
            assert_eq!(named(&disk), new);
            now = new.unwrap_or_default();
        }
        rig.close().unwrap();
        assert_eq!(named(&disk), None);
    }
}
