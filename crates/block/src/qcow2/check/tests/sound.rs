//! Images in which nothing is wrong.

use super::rig::*;
use crate::qcow2::check::Level;
use crate::qemu_tool::{self, TempFile};
use io_engine::{Rng, SysKind};

#[test]
fn images_that_qemu_made_are_clean_and_the_figures_are_its_own() {
    if !qemu_tool::is_there() {
        return;
    }
    for recipe in RECIPES {
        let bytes = recipe.make();
        let disk = disk_of(&bytes);
        let report = check_of(&disk).unwrap();
        assert!(report.is_clean(), "{}: {:?}", recipe.name, report.problems);
        assert_eq!(verdict(&report), qemu(&bytes), "{}", recipe.name);
        for level in [Level::Leaks, Level::All] {
            assert_eq!(plan_of(&disk, level).unwrap().fixes, [], "{}", recipe.name);
            assert_eq!(repair_of(&disk, level).unwrap().1, [], "{}", recipe.name);
        }
        assert_eq!(disk.count(SysKind::Pwritev), 0, "{}", recipe.name);
    }
}

#[test]
fn compressed_data_over_the_boundaries_of_clusters() {
    if !qemu_tool::is_there() {
        return;
    }
    // Every other byte at random: it does not become small.
    let mut rng = Rng::new(9);
    let content: Vec<u8> =
        (0..600_000).map(|n| if n % 2 == 0 { rng.bits() as u8 } else { 7 }).collect();
    let (raw, image) = (TempFile::with("raw", &content), TempFile::new("qcow2"));
    let (from, to) = (raw.path().to_str().unwrap(), image.path().to_str().unwrap());
    for cluster in [512, 4096, 65536] {
        let options = format!("cluster_size={cluster}");
        let words = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, from, to];
        assert!(qemu_tool::run(&words).status.success());
        let bytes = image.bytes();
        let report = check_of(&disk_of(&bytes)).unwrap();
        assert!(report.is_clean(), "{cluster}: {:?}", report.problems.first());
        assert_eq!(verdict(&report), qemu(&bytes), "{cluster}");
        assert!(cluster == 512 || report.compressed_clusters > 8, "{cluster}");
    }
}
