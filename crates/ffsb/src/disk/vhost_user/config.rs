//! What a server says about its disk: the configuration space, as far as a workload needs it (VIRTIO 1.3, section 5.2.4).

/// Bytes of the configuration space that are read: up to the fields of write zeroes, which every server has had for years.
/// Some refuse a longer read than they know fields.
pub(super) const CONFIG_BYTES: u32 = 60;

/// Feature bits of a block device (VIRTIO 1.3, section 5.2.3).
pub(super) mod blk_feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    /// Without it, a driver that can flush switches the device's write cache on.
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
}

const SECTOR: u64 = 512;

/// A disk, as its server announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskConfig {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Most bytes in one data segment; `None` for no limit.
    pub segment_max: Option<u32>,
    /// Request queues.
    pub queues: u16,
}

impl DiskConfig {
    /// Reads the configuration space, in the light of the features that were agreed on. The error is a reason.
    pub fn parse(space: &[u8], features: u64) -> Result<DiskConfig, String> {
        let u32_at = |at| field(space, at).map(u32::from_le_bytes);
        let sectors = field(space, 0).map(u64::from_le_bytes);
        let has = |feature| features & feature != 0;
        let read = || -> Option<DiskConfig> {
            Some(DiskConfig {
                bytes: sectors?.checked_mul(SECTOR)?,
                block_bytes: if has(blk_feature::BLK_SIZE) { u32_at(20)? } else { 512 },
                segment_max: if has(blk_feature::SIZE_MAX) { Some(u32_at(8)?) } else { None },
                queues: match has(blk_feature::MQ) {
                    true => field(space, 34).map(u16::from_le_bytes)?,
                    false => 1,
                },
            })
        };
        let mut config = read().ok_or("its configuration space makes no sense")?;
        // QEMU's servers offer the feature and set no limit.
        config.segment_max = config.segment_max.filter(|max| *max > 0);
        if !config.block_bytes.is_power_of_two() || config.block_bytes < 512 {
            return Err(format!("it says that its blocks have {} bytes", config.block_bytes));
        }
        match config.segment_max {
            Some(max) if max < config.block_bytes => {
                Err(format!("it takes at most {max} bytes in a segment, less than a block"))
            }
            _ => Ok(config),
        }
    }
}

fn field<const N: usize>(space: &[u8], at: usize) -> Option<[u8; N]> {
    space.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Vec<u8> {
        let mut space = vec![0; 60];
        space[0..8].copy_from_slice(&2048u64.to_le_bytes());
        space[8..12].copy_from_slice(&65536u32.to_le_bytes());
        space[20..24].copy_from_slice(&4096u32.to_le_bytes());
        space[34..36].copy_from_slice(&4u16.to_le_bytes());
        space
    }

    #[test]
    fn fields_count_only_if_their_feature_was_agreed_on() {
        let all = blk_feature::SIZE_MAX | blk_feature::BLK_SIZE | blk_feature::MQ;
        let full =
            DiskConfig { bytes: 1 << 20, block_bytes: 4096, segment_max: Some(65536), queues: 4 };
        assert_eq!(DiskConfig::parse(&space(), all), Ok(full));
        let plain = DiskConfig { block_bytes: 512, segment_max: None, queues: 1, ..full };
        assert_eq!(DiskConfig::parse(&space(), 0), Ok(plain));
    }

    #[test]
    fn a_segment_limit_of_zero_is_none() {
        let mut space = space();
        space[8..12].fill(0);
        let config = DiskConfig::parse(&space, blk_feature::SIZE_MAX).unwrap();
        assert_eq!(config.segment_max, None);
    }

    #[test]
    fn spaces_that_make_no_sense_are_refused() {
        let all = blk_feature::SIZE_MAX | blk_feature::BLK_SIZE;
        let cases: [(&str, usize, &[u8]); 4] = [
            ("more bytes than numbers", 0, &[0xff; 8]),
            ("blocks of 0 bytes", 20, &[0; 4]),
            ("blocks of 513 bytes", 20, &513u32.to_le_bytes()),
            ("segments smaller than a block", 8, &4095u32.to_le_bytes()),
        ];
        for (name, at, bytes) in cases {
            let mut space = space();
            space[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(DiskConfig::parse(&space, all).is_err(), "{name}");
        }
        assert!(DiskConfig::parse(&space()[..7], 0).is_err(), "too short");
    }
}
