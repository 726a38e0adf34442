//! The configuration space and the features that go with it.

use super::guest::disk;
use crate::{BadConfigWrite, ConfigSpace, DiskInfo, Features, Limits};

fn read(config: &ConfigSpace, offset: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    config.read(offset, &mut bytes);
    bytes
}

#[test]
fn every_field_is_where_the_specification_puts_it() {
    let info = DiskInfo {
        capacity_sectors: 0x0102_0304_0506_0708,
        size_max: Some(0x1112_1314),
        seg_max: 0x2122_2324,
        blk_size: 4096,
        physical_block_exp: 3,
        alignment_offset: 4,
        min_io_size: 0x3132,
        opt_io_size: 0x4142_4344,
        num_queues: 0x5152,
        ..disk()
    };
    let config = ConfigSpace::new(&info);
    let u32_at = |offset| u32::from_le_bytes(read(&config, offset, 4).try_into().unwrap());
    assert_eq!(read(&config, 0, 8), [8, 7, 6, 5, 4, 3, 2, 1], "capacity");
    assert_eq!(u32_at(8), 0x1112_1314, "size_max");
    assert_eq!(u32_at(12), 0x2122_2324, "seg_max");
    assert_eq!(u32_at(16), 0, "geometry");
    assert_eq!(u32_at(20), 4096, "blk_size");
    assert_eq!(read(&config, 24, 4), [3, 4, 0x32, 0x31], "topology");
    assert_eq!(u32_at(28), 0x4142_4344, "opt_io_size");
    assert_eq!(read(&config, 32, 4), [1, 0, 0x52, 0x51], "writeback, num_queues");
    assert_eq!([u32_at(36), u32_at(40), u32_at(44)], [100, 3, 8], "discard");
    assert_eq!([u32_at(48), u32_at(52), u32_at(56)], [50, 2, 1], "write zeroes");
    assert_eq!(read(&config, 60, 36), [0; 36], "secure erase and zones");
}

#[test]
fn reads_beyond_the_end_give_zeroes() {
    let config = ConfigSpace::new(&disk());
    assert_eq!(read(&config, 0, 256)[ConfigSpace::LEN..], [0; 160]);
    assert_eq!(read(&config, 56, 3), [1, 0, 0]);
    for offset in [96, 97, 1 << 31, u32::MAX] {
        assert_eq!(read(&config, offset, 8), [0; 8], "{offset}");
    }
    assert_eq!(read(&config, 0, 0), []);
}

#[test]
fn only_the_write_cache_can_be_written() {
    let mut config = ConfigSpace::new(&disk());
    let before = config.clone();
    let bad: [(u32, &[u8]); 9] = [
        (0, &[0; 8]),
        (31, &[0]),
        (33, &[0]),
        (32, &[2]),
        (32, &[255]),
        (32, &[]),
        (32, &[0, 0]),
        (31, &[0, 0]),
        (u32::MAX, &[0]),
    ];
    for (offset, data) in bad {
        let refused = Err(BadConfigWrite { offset, len: data.len() });
        assert_eq!(config.write(offset, data), refused);
    }
    assert_eq!(config, before);
    config.write(32, &[0]).unwrap();
    assert!(!config.writeback());
    assert_eq!(read(&config, 32, 1), [0]);
    config.write(32, &[1]).unwrap();
    assert_eq!(config, before);
}

#[test]
fn a_resize_shows() {
    let mut config = ConfigSpace::new(&disk());
    config.set_capacity(0x1234);
    assert_eq!(read(&config, 0, 8), 0x1234u64.to_le_bytes());
    assert_eq!(config.capacity_sectors(), 0x1234);
    let bigger = ConfigSpace::new(&DiskInfo { capacity_sectors: 0x1234, ..disk() });
    assert_eq!(config, bigger);
}

#[test]
fn features_follow_the_disk() {
    let all = disk().features();
    assert!(all.contains(Features::VERSION_1 | Features::FLUSH | Features::MQ));
    assert!(all.contains(Features::DISCARD | Features::WRITE_ZEROES));
    assert!(!all.intersects(Features::RO | Features::SIZE_MAX | Features::RING_PACKED));
    let plain = DiskInfo {
        discard: None,
        write_zeroes: None,
        num_queues: 1,
        read_only: true,
        size_max: Some(1),
        ..disk()
    };
    let features = plain.features();
    assert!(features.contains(Features::RO | Features::SIZE_MAX));
    assert!(!features.intersects(Features::DISCARD | Features::WRITE_ZEROES | Features::MQ));
    let limits = Limits::new(&plain, features);
    assert!(limits.read_only && limits.size_max == 1 && limits.discard.is_none());
    assert_eq!(Features::from_bits_retain(u64::MAX), Features::all(), "no bit is lost");
}

#[test]
fn more_ranges_than_can_be_taken_are_not_announced() {
    let mut info = disk();
    info.discard.as_mut().unwrap().max_seg = 1000;
    info.write_zeroes.as_mut().unwrap().max_seg = u32::MAX;
    let config = ConfigSpace::new(&info);
    assert_eq!(read(&config, 40, 4), [16, 0, 0, 0]);
    assert_eq!(read(&config, 52, 4), [16, 0, 0, 0]);
}
