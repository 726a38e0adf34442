//! Feature bits (VIRTIO 1.3, sections 5.2.3 and 6).

bitflags::bitflags! {
    /// Features of a block device and of its transport.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `VIRTIO_BLK_F_SIZE_MAX`: data segments have a greatest length.
        const SIZE_MAX = 1 << 1;
        /// `VIRTIO_BLK_F_SEG_MAX`: requests have a greatest number of data segments.
        const SEG_MAX = 1 << 2;
        /// `VIRTIO_BLK_F_GEOMETRY`: cylinders and heads. Never offered.
        const GEOMETRY = 1 << 4;
        /// `VIRTIO_BLK_F_RO`: the disk is read-only.
        const RO = 1 << 5;
        /// `VIRTIO_BLK_F_BLK_SIZE`: the logical block size is announced.
        const BLK_SIZE = 1 << 6;
        /// `VIRTIO_BLK_F_FLUSH`: the flush command is there.
        const FLUSH = 1 << 9;
        /// `VIRTIO_BLK_F_TOPOLOGY`: best alignments are announced.
        const TOPOLOGY = 1 << 10;
        /// `VIRTIO_BLK_F_CONFIG_WCE`: the driver may switch the write cache.
        const CONFIG_WCE = 1 << 11;
        /// `VIRTIO_BLK_F_MQ`: several queues.
        const MQ = 1 << 12;
        /// `VIRTIO_BLK_F_DISCARD`: the discard command is there.
        const DISCARD = 1 << 13;
        /// `VIRTIO_BLK_F_WRITE_ZEROES`: the write zeroes command is there.
        const WRITE_ZEROES = 1 << 14;
        /// `VIRTIO_BLK_F_LIFETIME`. Never offered.
        const LIFETIME = 1 << 15;
        /// `VIRTIO_BLK_F_SECURE_ERASE`. Never offered.
        const SECURE_ERASE = 1 << 16;
        /// `VIRTIO_BLK_F_ZONED`. Never offered.
        const ZONED = 1 << 17;
        /// `VIRTIO_F_INDIRECT_DESC`: indirect descriptor tables.
        const INDIRECT_DESC = 1 << 28;
        /// `VIRTIO_F_EVENT_IDX`: kicks and notifications at an index of choice.
        const EVENT_IDX = 1 << 29;
        /// `VIRTIO_F_VERSION_1`: the device as specified since VIRTIO 1.0, the only one there is here.
        const VERSION_1 = 1 << 32;
        /// `VIRTIO_F_ACCESS_PLATFORM`: addresses go through an IOMMU.
        const ACCESS_PLATFORM = 1 << 33;
        /// `VIRTIO_F_RING_PACKED`: the packed ring.
        const RING_PACKED = 1 << 34;
        /// `VIRTIO_F_IN_ORDER`: chains are used in the order they were made available.
        const IN_ORDER = 1 << 35;
        /// `VIRTIO_F_RING_RESET`: queues can be reset one by one.
        const RING_RESET = 1 << 40;

        // Bits of other devices and transports pass through unharmed.
        const _ = !0;
    }
}
