use super::*;
use std::sync::Arc;

fn two_adjacent_regions() -> (MemHandle, std::os::fd::OwnedFd) {
    let (memory, fd) = GuestMemory::memfd(0x4000).unwrap();
    let far = RegionSpec {
        guest_addr: GuestAddr(0x4000),
        len: 0x1000,
        user_addr: 0x10_0000,
        file_offset: 0x1000,
    };
    let memory = memory.with_region(Region::map(far, &fd).unwrap()).unwrap();
    (MemHandle::new(Arc::new(memory)), fd)
}

#[test]
fn a_range_over_two_regions_becomes_two_segments() {
    let (mem, _fd) = two_adjacent_regions();
    let mut iov = IoVecs::new(&mem);
    iov.push(GuestAddr(0x3ff0), 0x20).unwrap();
    assert_eq!(iov.as_raw().len(), 2);
    assert_eq!(iov.bytes(), 0x20);
    assert!(mem.slice(GuestAddr(0x3ff0), 0x20).is_err(), "a ring may not cross");
}

#[test]
fn a_range_that_leaves_memory_is_refused_and_appends_nothing() {
    let (mem, _fd) = two_adjacent_regions();
    let mut iov = IoVecs::new(&mem);
    for (addr, len) in [(0x4fff, 2), (0x5000, 1), (u64::MAX, 2), (0x4000, u64::MAX), (0, 1 << 63)] {
        assert!(iov.push(GuestAddr(addr), len).is_err(), "{addr:#x}+{len:#x}");
    }
    assert_eq!((iov.bytes(), iov.as_raw().len()), (0, 0));
}

#[test]
fn copies_cross_segments_at_any_alignment() {
    let (mem, _fd) = two_adjacent_regions();
    for (start, len) in [(0u64, 100usize), (1, 99), (7, 3), (13, 64), (98, 2), (3, 0)] {
        let mut iov = IoVecs::new(&mem);
        iov.push(GuestAddr(0x10), 33).unwrap();
        iov.push(GuestAddr(0x2001), 20).unwrap();
        iov.push(GuestAddr(0x3fff), 47).unwrap();
        iov.copy_from(0, &[0xEE; 100]);
        let data: Vec<u8> = (0..len).map(|i| u8::try_from(i).unwrap() | 0x80).collect();
        assert_eq!(iov.copy_from(start, &data), len);
        let mut back = vec![0; 100];
        assert_eq!(iov.copy_to(0, &mut back), 100);
        let start = usize::try_from(start).unwrap();
        assert_eq!(back[start..start + len], data);
        assert!(back[..start].iter().chain(&back[start + len..]).all(|b| *b == 0xEE));
    }
}

#[test]
fn trimming_and_zeroing_keep_count_of_bytes() {
    let (mem, _fd) = two_adjacent_regions();
    let mut iov = IoVecs::new(&mem);
    iov.push(GuestAddr(0), 16).unwrap();
    iov.push(GuestAddr(0x100), 512).unwrap();
    iov.push(GuestAddr(0x1000), 1).unwrap();
    iov.copy_from(0, &[0xff; 529]);
    iov.pop_last_byte().unwrap().write(7);
    assert_eq!(mem.slice(GuestAddr(0x1000), 2).unwrap().read_u16(0), 7);
    iov.trim_front(16);
    assert_eq!((iov.bytes(), iov.as_raw().len()), (512, 1));
    assert!(!iov.is_zero());
    iov.zero_from(1);
    assert!(!iov.is_zero());
    iov.zero_from(0);
    assert!(iov.is_zero());
    iov.truncate(500);
    assert!(iov.is_aligned_to(4) && !iov.is_aligned_to(512));
    iov.trim_front(1000);
    assert!(iov.pop_last_byte().is_none());
}

#[test]
fn overlapping_and_oversized_regions_are_refused() {
    let (memory, fd) = GuestMemory::memfd(0x4000).unwrap();
    let spec = |guest_addr, len, user_addr, file_offset| RegionSpec {
        guest_addr: GuestAddr(guest_addr),
        len,
        user_addr,
        file_offset,
    };
    for (name, bad) in [
        ("empty", spec(0x8000, 0, 0x8000, 0)),
        ("wraps", spec(u64::MAX, 0x1000, 0x8000, 0)),
        ("wraps in the VMM", spec(0x8000, 0x1000, u64::MAX, 0)),
        ("past the file", spec(0x8000, 0x4001, 0x8000, 0)),
        ("offset wraps", spec(0x8000, 0x1000, 0x8000, u64::MAX)),
    ] {
        assert!(Region::map(bad, &fd).is_err(), "{name}");
    }
    for (name, bad) in [
        ("guest overlap", spec(0x3fff, 0x1000, 0x8000, 0)),
        ("user overlap", spec(0x8000, 0x1000, 0x3fff, 0)),
    ] {
        assert!(memory.with_region(Region::map(bad, &fd).unwrap()).is_err(), "{name}");
    }
    let pipe = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, 0.into()).unwrap();
    assert!(Region::map(spec(0x8000, 1, 0x8000, 0), pipe).is_err(), "not a regular file");
}

#[test]
fn a_region_at_an_odd_file_offset_is_mapped_where_it_says() {
    let (memory, fd) = GuestMemory::memfd(0x4000).unwrap();
    let spec = RegionSpec {
        guest_addr: GuestAddr(0x1_0000),
        len: 0x100,
        user_addr: 1 << 40,
        file_offset: 0x1010,
    };
    let both = memory.with_region(Region::map(spec, &fd).unwrap()).unwrap();
    let mem = MemHandle::new(Arc::new(both));
    mem.slice(GuestAddr(0x1010), 8).unwrap().write_u64(0, 0x0102_0304_0506_0708);
    assert_eq!(mem.slice(GuestAddr(0x1_0000), 8).unwrap().read_u64(0), 0x0102_0304_0506_0708);
    assert_eq!(mem.user_to_guest((1 << 40) + 5), Some(GuestAddr(0x1_0005)));
    assert_eq!(mem.user_to_guest((1 << 40) + 0x100), None);
}

#[test]
fn a_shrunk_memory_file_breaks_the_region_and_not_the_process() {
    let (memory, fd) = GuestMemory::memfd(0x4000).unwrap();
    let mem = MemHandle::new(Arc::new(memory));
    let slice = mem.slice(GuestAddr(0x2000), 0x1000).unwrap();
    slice.write_u32(0, 5);
    rustix::fs::ftruncate(&fd, 0x1000).unwrap();
    assert_eq!(slice.read_u32(0), 0, "a zero page stands in");
    assert!(mem.is_broken());
}

#[test]
fn a_shared_slice_goes_to_another_thread_and_keeps_the_memory_mapped() {
    let (memory, fd) = GuestMemory::memfd(0x4000).unwrap();
    let memory = Arc::new(memory);
    let slice = memory.shared_slice(GuestAddr(0x1003), 0x100).unwrap();
    assert!(memory.shared_slice(GuestAddr(0x3fff), 2).is_err(), "past the end");
    drop(memory);
    let data: Vec<u8> = (0..0xfd).collect();
    let written = data.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "what goes from thread to thread needs two of them"
    )]
    let thread = std::thread::spawn(move || {
        slice.copy_from(3, &written);
        slice
    });
    let slice = thread.join().unwrap();
    let mut back = vec![0; data.len()];
    slice.copy_to(3, &mut back);
    assert_eq!(back, data);
    let mut byte = [0];
    rustix::io::pread(&fd, &mut byte, 0x1007).unwrap();
    assert_eq!(byte, [1], "the memory file holds it, where it belongs");
}

#[test]
#[should_panic(expected = "2 bytes at 255 of a guest area of 256")]
fn a_copy_past_the_end_of_a_slice_panics() {
    let (memory, _fd) = GuestMemory::memfd(0x4000).unwrap();
    Arc::new(memory).shared_slice(GuestAddr(0), 0x100).unwrap().copy_to(0xff, &mut [0; 2]);
}

#[test]
#[should_panic(expected = "access at 4092")]
fn an_access_past_the_end_of_a_slice_panics() {
    let (memory, _fd) = GuestMemory::memfd(0x4000).unwrap();
    let mem = MemHandle::new(Arc::new(memory));
    mem.slice(GuestAddr(0), 0xffe).unwrap().read_u32(0xffc);
}
