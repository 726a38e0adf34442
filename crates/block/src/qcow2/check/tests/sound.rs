//! Images in which nothing is wrong.

use super::rig::*;
use crate::qcow2::check::Level;
use crate::qemu_tool;
use io_engine::SysKind;

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
