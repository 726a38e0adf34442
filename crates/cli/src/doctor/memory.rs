//! Memory that guests share with their disks, and how much the page cache may hold back.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread, chosen, human};
use super::probed::Probed;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const GIB: u64 = 1 << 30;

/// What the kernel's settings for memory mean.
pub fn check(host: &Host, probed: &Probed, out: &mut Vec<Finding>) {
    out.push(memfd(probed));
    out.push(memfd_hugetlb(probed));
    out.push(shm(host, probed));
    out.push(hugepages(host, Id::Hugepages2m, 2048, "2 MiB"));
    out.push(hugepages(host, Id::Hugepages1g, 1 << 20, "1 GiB"));
    out.push(thp(host));
    out.push(thp_shmem(host));
    out.push(dirty_limits(host));
}

fn memfd(probed: &Probed) -> Finding {
    let source = "memfd_create";
    match &probed.memfd {
        Ok(()) => Finding::new(
            Id::Memfd,
            Status::Ok,
            "memory can be shared by descriptor (memfd)",
            source,
            "a VMM can give a guest's RAM to ferroblk: QEMU -object \
             memory-backend-memfd,share=on",
        ),
        Err(why) => Finding::new(
            Id::Memfd,
            Status::Problem,
            format!("no memory can be shared by descriptor (memfd): {why}"),
            source,
            "vhost-user needs the guest's RAM shared: without memfd only a file in \
             /dev/shm or hugetlbfs will do",
        )
        .fix(
            "allow memfd_create in the sandbox's profile, or QEMU -object \
             memory-backend-file,mem-path=/dev/shm,share=on",
        ),
    }
}

fn memfd_hugetlb(probed: &Probed) -> Finding {
    let source = "memfd_create(MFD_HUGETLB)";
    match &probed.memfd_hugetlb {
        Ok(()) => Finding::new(
            Id::MemfdHugetlb,
            Status::Ok,
            "shared memory can be of huge pages",
            source,
            "QEMU -object memory-backend-memfd,share=on,hugetlb=on works, as far as \
             there are free huge pages",
        ),
        Err(why) => Finding::new(
            Id::MemfdHugetlb,
            Status::Note,
            format!("no shared memory of huge pages: {why}"),
            source,
            "guests' RAM that is shared with ferroblk is of small pages, or of \
             transparent huge ones: more misses of address translation",
        )
        .fix("a kernel with CONFIG_HUGETLBFS, or huge pages for shared memory (see thp-shmem)"),
    }
}

fn shm(host: &Host, probed: &Probed) -> Finding {
    let source = "statvfs /dev/shm";
    let space = match &probed.shm {
        Ok(space) => space,
        Err(why) => return Finding::unknown(Id::ShmSize, "size of /dev/shm", source, why),
    };
    let what = format!("/dev/shm holds {}, {} of it free", human(space.total), human(space.free));
    let ram = host.meminfo("MemTotal").unwrap_or(0);
    // Half of the RAM is what a system gives it; containers are started with 64 MiB.
    if space.free < GIB.min((ram / 4).max(64 << 20)) {
        let means = "a guest whose RAM is a file there does not start, or is killed when it \
            touches what does not fit. (RAM by memfd is not counted here)";
        return Finding::new(Id::ShmSize, Status::Warning, what, source, means)
            .fix("mount -o remount,size=N /dev/shm; in a container: --shm-size; or RAM by memfd");
    }
    Finding::new(
        Id::ShmSize,
        Status::Ok,
        what,
        source,
        "guests' RAM may be files there, as far as it reaches",
    )
}

fn hugepages(host: &Host, id: Id, kib: u64, name: &str) -> Finding {
    let dir = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
    let source = format!("{dir}/free_hugepages");
    let read =
        || Ok::<_, Unread>((host.number(&source)?, host.number(&format!("{dir}/nr_hugepages"))?));
    let means = "a guest's RAM of huge pages makes its page tables and those of KVM small: \
        fewer misses of address translation in guest, VMM and ferroblk, for several \
        percent of CPU at high rates";
    match read() {
        Ok((free, all)) if free > 0 => {
            let means = format!(
                "guests with RAM of huge pages can start, up to {}",
                human(free.unsigned_abs().saturating_mul(kib << 10))
            );
            Finding::new(
                id,
                Status::Ok,
                format!("{free} of {all} huge pages of {name} free"),
                source,
                means,
            )
        }
        Ok((_, all)) => Finding::new(
            id,
            Status::Note,
            format!("none of {all} huge pages of {name} free"),
            source,
            means,
        )
        .fix(format!(
            "echo N | sudo tee {dir}/nr_hugepages, early after boot; hugepagesz={kib}K \
             hugepages=N on the kernel's command line always works"
        )),
        Err(Unread::Missing) => Finding::new(
            id,
            Status::Note,
            format!("no huge pages of {name}"),
            source,
            "this CPU or kernel does not have them",
        ),
        Err(why) => Finding::unknown(id, &format!("huge pages of {name}"), source, why),
    }
}

fn thp(host: &Host) -> Finding {
    let source = format!("{THP}/enabled");
    let text = match host.text(&source) {
        Ok(text) => text,
        Err(Unread::Missing) => "never".to_owned(),
        Err(why) => return Finding::unknown(Id::Thp, "transparent huge pages", source, why),
    };
    let what = |mode: &str| format!("transparent huge pages: {mode}");
    match chosen(&text) {
        Some(mode @ ("always" | "madvise")) => Finding::new(
            Id::Thp,
            Status::Ok,
            what(mode),
            source,
            "VMMs get huge pages for a guest's private RAM without any being set aside",
        ),
        Some(mode) => Finding::new(
            Id::Thp,
            Status::Note,
            what(mode),
            source,
            "a guest's private RAM is of small pages, unless huge ones are set aside: \
             more misses of address translation",
        )
        .fix(format!("echo madvise | sudo tee {THP}/enabled")),
        None => Finding::unknown(
            Id::Thp,
            "transparent huge pages",
            source,
            "none of the choices is marked",
        ),
    }
}

fn thp_shmem(host: &Host) -> Finding {
    let source = format!("{THP}/shmem_enabled");
    let text = match host.text(&source) {
        Ok(text) => text,
        Err(Unread::Missing) => "never".to_owned(),
        Err(why) => {
            return Finding::unknown(Id::ThpShmem, "huge pages for shared memory", source, why);
        }
    };
    let what = |mode: &str| format!("transparent huge pages for shared memory: {mode}");
    match chosen(&text) {
        Some(mode @ ("always" | "within_size" | "advise" | "force")) => Finding::new(
            Id::ThpShmem,
            Status::Ok,
            what(mode),
            source,
            "RAM that a guest shares with ferroblk (memfd) can be of huge pages",
        ),
        Some(mode) => Finding::new(
            Id::ThpShmem,
            Status::Note,
            what(mode),
            source,
            "RAM that a guest shares with ferroblk (memfd) is of small pages, whatever \
             is set for private memory: each request's buffers take more misses of \
             address translation",
        )
        .fix(format!(
            "echo advise | sudo tee {THP}/shmem_enabled, or RAM of huge pages that are \
             set aside (hugetlb=on)"
        )),
        None => Finding::unknown(
            Id::ThpShmem,
            "huge pages for shared memory",
            source,
            "none of the choices is marked",
        ),
    }
}

/// How much may be written to the page cache before writers must wait for the disk.
fn dirty_limits(host: &Host) -> Finding {
    let dir = "/proc/sys/vm";
    let bytes_file = format!("{dir}/dirty_bytes");
    let ratio_file = format!("{dir}/dirty_ratio");
    let read = || Ok::<_, Unread>((host.number(&bytes_file)?, host.number(&ratio_file)?));
    let (bytes, ratio) = match read() {
        Ok(read) => read,
        Err(why) => {
            return Finding::unknown(
                Id::DirtyLimits,
                "vm.dirty_bytes, vm.dirty_ratio",
                bytes_file,
                why,
            );
        }
    };
    let (limit, setting, source) = if bytes > 0 {
        (bytes.unsigned_abs(), format!("vm.dirty_bytes is {bytes}"), bytes_file)
    } else {
        let Some(available) = host.meminfo("MemAvailable") else {
            return Finding::unknown(
                Id::DirtyLimits,
                "memory for unwritten data",
                "/proc/meminfo",
                "MemAvailable is not there",
            );
        };
        let share = u64::try_from(ratio.clamp(0, 100)).unwrap_or(0);
        (available / 100 * share, format!("vm.dirty_ratio is {ratio}"), ratio_file)
    };
    let what = format!("up to {} of unwritten data in the page cache ({setting})", human(limit));
    let fix = "sysctl vm.dirty_bytes=1073741824 vm.dirty_background_bytes=268435456";
    match limit {
        0..0x400_0000 => Finding::new(
            Id::DirtyLimits,
            Status::Warning,
            what,
            source,
            "with cache=writeback and unsafe, writers soon wait for the disk: the page \
             cache takes no burst. cache=none is not touched",
        )
        .fix(fix),
        0x400_0000..=0x1_0000_0000 => Finding::new(
            Id::DirtyLimits,
            Status::Ok,
            what,
            source,
            "with cache=writeback, a burst is taken at memory speed, and a flush has no \
             more to write than this",
        ),
        _ => Finding::new(
            Id::DirtyLimits,
            Status::Note,
            what,
            source,
            "with cache=writeback, writes look fast for long, then a flush or the limit \
             makes all writers wait until that much is written. Measure longer than it \
             takes, or with cache=none",
        )
        .fix(fix),
    }
}
