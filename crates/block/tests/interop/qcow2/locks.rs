//! Who has an image open for writing keeps the other side out.

use super::M;
use super::kind::{Below, Data, Kind};
use crate::common::qemu::{self, Holder};
use crate::common::{Dir, Disk, PLAIN};
use block::ErrorKind;

#[test]
fn who_has_an_image_open_for_writing_keeps_the_other_out() {
    if !qemu::is_there() {
        return;
    }
    let dir = Dir::new();
    let base = dir.file("base", &vec![1; M as usize]);
    let kind = Kind { below: Below::Raw(100), ..Kind::plain(PLAIN) };
    let path = kind.make_ours(&dir);
    let read = ["read 0 512".to_owned()];
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    let said = qemu::io_fails("qcow2", &path, &read);
    assert!(said.contains("lock"), "{said}");
    assert_eq!(Disk::open(&path, PLAIN, true).unwrap_err().kind(), ErrorKind::Locked);
    // The backing file is read by us, and written by nobody.
    assert!(qemu::io_fails("raw", &base, &["write 0 512".into()]).contains("lock"));
    disk.close().unwrap();
    qemu::io("qcow2", &path, &read);
    {
        let _holder = Holder::new("qcow2", &path, false);
        for read_only in [true, false] {
            let error = Disk::open(&path, PLAIN, read_only).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        }
    }
    let _holder = Holder::new("qcow2", &path, true);
    Disk::open(&path, PLAIN, true).unwrap().close().unwrap();
    assert_eq!(Disk::open(&path, PLAIN, false).unwrap_err().kind(), ErrorKind::Locked);
}

#[test]
fn a_data_file_is_locked_as_its_image_is() {
    if !qemu::is_there() {
        return;
    }
    let dir = Dir::new();
    let kind = Kind { data: Data::Outside, ..Kind::plain(PLAIN) };
    let path = kind.make_ours(&dir);
    let data = dir.path("data.raw");
    let disk = kind.open(&path, false);
    assert!(qemu::io_fails("raw", &data, &["write 0 512".into()]).contains("lock"));
    disk.close().unwrap();
    let _holder = Holder::new("raw", &data, false);
    let error = Disk::open(&path, PLAIN, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
}
