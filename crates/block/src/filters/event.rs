//! The points in a driver's work that a rule can name, by QEMU's names (`BlkdebugEvent`).

use std::str::FromStr;

/// An event, and whether this driver ever comes to it.
macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal,)*) => {
        /// A point in a driver's work.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $event,)*
            /// One of [`NEVER`]: known by its name, and never come to.
            Never,
        }

        impl Event {
            /// All that are come to, by name.
            pub const FIRING: &[(&str, Event)] = &[$(($name, Event::$event),)*];
        }
    };
}

events! {
    /// The filter was made: its rules hold from the start.
    None = "none",
    /// Data is read for a request.
    ReadAio = "read_aio",
    /// Data is written for a request.
    WriteAio = "write_aio",
    /// A compressed cluster is read.
    ReadCompressed = "read_compressed",
    /// A compressed cluster is written.
    WriteCompressed = "write_compressed",
    /// What a new cluster is filled up with is read.
    CowRead = "cow_read",
    /// A cluster is written with what it was filled up with.
    CowWrite = "cow_write",
    /// A part of an L2 table is read.
    L2Load = "l2_load",
    /// Entries of an L2 table are written, in its place or with a new table.
    L2Update = "l2_update",
    /// A new L2 table is written.
    L2AllocWrite = "l2_alloc_write",
    /// Entries of the L1 table are written.
    L1Update = "l1_update",
    /// The refcount table is read.
    ReftableLoad = "reftable_load",
    /// A part of a refcount block is read.
    RefblockLoad = "refblock_load",
    /// Parts of refcount blocks are written.
    RefblockUpdate = "refblock_update",
    /// A new refcount block is needed.
    RefblockAlloc = "refblock_alloc",
    /// The refcount table gets the entry of a new block.
    RefblockAllocHookup = "refblock_alloc_hookup",
    /// A larger refcount table is written.
    RefblockAllocWriteTable = "refblock_alloc_write_table",
    /// The header is led to a larger refcount table.
    RefblockAllocSwitchTable = "refblock_alloc_switch_table",
    /// Clusters for data are taken.
    ClusterAlloc = "cluster_alloc",
    /// The host is asked to sync: comes before the next.
    FlushToOs = "flush_to_os",
    /// The host is asked to sync.
    FlushToDisk = "flush_to_disk",
    /// The host is asked to write.
    Pwritev = "pwritev",
    /// The host is asked to write zeroes.
    PwritevZero = "pwritev_zero",
    /// The host has written, data or zeroes.
    PwritevDone = "pwritev_done",
}

/// What QEMU's drivers come to and ours do not: they do it otherwise, or as a part of something else.
pub const NEVER: &[&str] = &[
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "read_backing_aio",
    "vmstate_load",
    "vmstate_save",
    "reftable_grow",
    "reftable_update",
    "refblock_update_part",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "cluster_alloc_bytes",
    "cluster_free",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
];

impl FromStr for Event {
    type Err = UnknownEvent;

    fn from_str(name: &str) -> Result<Event, UnknownEvent> {
        let firing = Event::FIRING.iter().find(|(known, _)| *known == name);
        match firing {
            Some((_, event)) => Ok(*event),
            None if NEVER.contains(&name) => Ok(Event::Never),
            None => Err(UnknownEvent),
        }
    }
}

/// No event has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownEvent;
