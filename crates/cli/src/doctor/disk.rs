//! The lowest devices: their queue, scheduler and cache.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread, chosen, human};
use super::stack::{Device, Driver};

/// What is judged.
struct Disk<'a> {
    host: &'a Host,
    device: &'a Device,
}

/// What a device's settings mean.
pub fn check(host: &Host, device: &Device, out: &mut Vec<Finding>) {
    let disk = Disk { host, device };
    let findings = [
        Some(disk.scheduler()),
        Some(disk.rotational()),
        disk.queue_depth(),
        disk.hardware_queues(),
        Some(disk.write_cache()),
        disk.wbt(),
        disk.rq_affinity(),
        Some(disk.polling()),
        Some(disk.discard()),
        Some(disk.numa_node()),
    ];
    out.extend(findings.into_iter().flatten().map(|finding| finding.about(&device.name)));
}

impl Disk<'_> {
    fn queue(&self, file: &str) -> String {
        self.device.file(&format!("queue/{file}"))
    }

    /// A command that sets a file of the queue.
    fn set(&self, file: &str, value: &str) -> String {
        format!("echo {value} | sudo tee {}", self.queue(file))
    }

    fn spins(&self) -> bool {
        self.host.number(&self.queue("rotational")) == Ok(1) && !self.is_virtual()
    }

    /// Whether what it says of its medium is a guess of the kernel's: a guest's disk (virtio does not tell), or one made of software.
    fn is_virtual(&self) -> bool {
        self.device.driver == Driver::Virtio || self.device.dir.contains("/devices/virtual/")
    }

    fn is_fast(&self) -> bool {
        matches!(self.device.driver, Driver::Nvme | Driver::Virtio)
    }

    fn scheduler(&self) -> Finding {
        let source = self.queue("scheduler");
        let text = match self.host.text(&source) {
            Ok(text) => text,
            // Devices that take requests without a queue have no scheduler either.
            Err(Unread::Missing) => "none".to_owned(),
            Err(why) => return Finding::unknown(Id::Scheduler, "I/O scheduler", source, why),
        };
        let Some(scheduler) = chosen(&text) else {
            let why = "none of the choices is marked";
            return Finding::unknown(Id::Scheduler, "I/O scheduler", source, why);
        };
        let zoned =
            self.host.text(&self.queue("zoned")).is_ok_and(|zoned| zoned.starts_with("host"));
        let (status, means, fit) = self.judge(scheduler, zoned);
        let offered = text.split_whitespace().any(|word| word.trim_matches(['[', ']']) == fit);
        let what = format!("I/O scheduler {scheduler}");
        let finding = Finding::new(Id::Scheduler, status, what, source, means);
        if status == Status::Ok {
            return finding;
        }
        if !offered {
            return finding.fix(format!("a kernel that offers {fit} for this disk"));
        }
        finding.fix(format!(
            "{}; to stay, a udev rule: ACTION==\"add|change\", KERNEL==\"{}\", \
             ATTR{{queue/scheduler}}=\"{fit}\"",
            self.set("scheduler", fit),
            self.device.name,
        ))
    }

    /// Status and meaning of a scheduler for this device, and which one fits.
    fn judge(&self, scheduler: &str, zoned: bool) -> (Status, &'static str, &'static str) {
        // Names of the time before blk-mq.
        let scheduler = match scheduler {
            "noop" => "none",
            "deadline" => "mq-deadline",
            "cfq" => "bfq",
            other => other,
        };
        match scheduler {
            "mq-deadline" if zoned => (
                Status::Ok,
                "a zoned disk needs its writes in order, which this scheduler keeps",
                "mq-deadline",
            ),
            "none" if self.spins() => (
                Status::Warning,
                "requests reach a spinning disk in the order they come: the head moves more \
                 than it must, and a reader waits behind many writes",
                "mq-deadline",
            ),
            _ if self.spins() => (
                Status::Ok,
                "requests are sorted, so that the head of a spinning disk moves less",
                "mq-deadline",
            ),
            "none" => (
                Status::Ok,
                "requests go straight to the device, which sorts better itself: least CPU \
                 per request",
                "none",
            ),
            "bfq" if self.is_fast() => (
                Status::Warning,
                "shares a spinning disk fairly, at several microseconds of CPU per request \
                 and one lock for all queues: it holds a fast device down, and waits for \
                 more of the same reader while the device idles",
                "none",
            ),
            "bfq" => (
                Status::Note,
                "shares the disk fairly between processes at the cost of CPU and of a lock \
                 for all queues; the guests' figures fall with many requests in flight",
                "mq-deadline",
            ),
            _ if self.device.driver == Driver::Nvme => (
                Status::Warning,
                "one sorted list and one lock for all hardware queues: what the device's \
                 many queues are for is lost above some 100,000 requests a second",
                "none",
            ),
            _ if self.device.driver == Driver::Virtio => (
                Status::Note,
                "requests are sorted here, and again on the host below: the first sorting \
                 costs CPU and a lock, and knows nothing of the medium",
                "none",
            ),
            "mq-deadline" | "kyber" => (
                Status::Ok,
                "light work per request; keeps readers from waiting behind writes",
                "none",
            ),
            _ => (Status::Note, "a scheduler that ferroblk knows nothing about", "none"),
        }
    }

    fn rotational(&self) -> Finding {
        let source = self.queue("rotational");
        match self.host.number(&source) {
            Ok(0) => Finding::new(
                Id::Rotational,
                Status::Ok,
                "solid state",
                source,
                "random requests cost no more than sequential ones",
            ),
            Ok(_) if self.is_virtual() => Finding::new(
                Id::Rotational,
                Status::Note,
                "a virtual disk that is taken for a spinning one",
                source,
                "nothing tells what is below. The kernel now groups and reads ahead \
                 as for a spinning disk, which an SSD below does not need",
            )
            .fix(self.set("rotational", "0")),
            Ok(_) => Finding::new(
                Id::Rotational,
                Status::Note,
                "a spinning disk",
                source,
                "100 to 200 random requests a second, whatever the software: only sequential \
                 figures say something about the stack above",
            ),
            Err(why) => Finding::unknown(Id::Rotational, "kind of medium", source, why),
        }
    }

    fn queue_depth(&self) -> Option<Finding> {
        let source = self.queue("nr_requests");
        let depth = match self.host.number(&source) {
            Ok(depth) => depth,
            // A device that takes requests without a queue (zram, pmem).
            Err(Unread::Missing) => return None,
            Err(why) => {
                return Some(Finding::unknown(Id::QueueDepth, "requests in a queue", source, why));
            }
        };
        let enough = if self.is_fast() { 64 } else { 16 };
        let what = format!("{depth} requests in a queue at most");
        Some(if depth < enough {
            let means = "with more in flight, from several guests or threads, submitters sleep until \
                a place is free: an I/O thread stands still with them";
            Finding::new(Id::QueueDepth, Status::Warning, what, source, means)
                .fix(self.set("nr_requests", "256"))
        } else {
            Finding::new(
                Id::QueueDepth,
                Status::Ok,
                what,
                source,
                "submitters do not wait for a place",
            )
        })
    }

    fn hardware_queues(&self) -> Option<Finding> {
        let source = self.device.file("mq");
        let count =
            self.host.names(&source).iter().filter(|name| name.parse::<u32>().is_ok()).count();
        if count == 0 {
            // A device without blk-mq; there is nothing to count.
            return None;
        }
        let Some(cpus) = self.host.cpus() else {
            let why = "how many CPUs there are is unknown";
            return Some(Finding::unknown(Id::HardwareQueues, "hardware queues", source, why));
        };
        let what = format!("hardware queues: {count}, for {cpus} CPUs");
        Some(if !self.is_fast() || count >= cpus {
            Finding::new(
                Id::HardwareQueues,
                Status::Ok,
                what,
                source,
                "as many as such a device offers or CPUs can use",
            )
        } else {
            let status = if count == 1 { Status::Warning } else { Status::Note };
            let means = "CPUs share queues: they meet at a lock, and completions interrupt a CPU \
                that did not submit";
            let finding = Finding::new(Id::HardwareQueues, status, what, source, means);
            match self.device.driver {
                Driver::Virtio => finding.fix(format!(
                    "give the disk more queues on its host: QEMU num-queues={cpus}, ferroblk \
                     serve --queues {cpus}"
                )),
                _ => finding.fix(
                    "nothing on most drives; fewer CPUs than queues for the I/O threads (taskset)",
                ),
            }
        })
    }

    fn write_cache(&self) -> Finding {
        let source = self.queue("write_cache");
        let fua = self.host.number(&self.queue("fua")) == Ok(1);
        match self.host.text(&source).as_deref() {
            Ok("write back") => Finding::new(
                Id::WriteCache,
                Status::Note,
                format!(
                    "volatile write cache, {} durable writes (FUA)",
                    if fua { "with" } else { "no" }
                ),
                source,
                "a write is safe only after a flush, which empties the cache: a guest's sync \
                 costs what the medium costs. (NVMe drives with power-loss protection say \
                 write through, and flush for free)",
            ),
            Ok("write through") => Finding::new(
                Id::WriteCache,
                Status::Ok,
                "no volatile write cache",
                source,
                "what is written is safe, and a flush costs nothing. If this was set by hand \
                 on a drive that has one, a power cut loses data",
            ),
            Ok(_) => Finding::unknown(
                Id::WriteCache,
                "write cache",
                source,
                "the kernel says neither 'write back' nor 'write through'",
            ),
            Err(why) => Finding::unknown(Id::WriteCache, "write cache", source, why),
        }
    }

    fn wbt(&self) -> Option<Finding> {
        let source = self.queue("wbt_lat_usec");
        let usec = match self.host.number(&source) {
            Ok(usec) => usec,
            // Built without it, or a device that has no use for it: both is nothing to know.
            Err(_) => return None,
        };
        Some(if usec > 0 {
            let means = "write-back from the page cache is held back when reads take longer than \
                this: good for others on this disk, slower for cache=writeback; cache=none \
                is not touched";
            Finding::new(
                Id::Wbt,
                Status::Note,
                format!("write-back throttling above {usec} µs"),
                source,
                means,
            )
            .fix(format!("for disks with cache=writeback only: {}", self.set("wbt_lat_usec", "0")))
        } else {
            Finding::new(
                Id::Wbt,
                Status::Ok,
                "no write-back throttling",
                source,
                "write-back takes what the disk gives",
            )
        })
    }

    fn rq_affinity(&self) -> Option<Finding> {
        let source = self.queue("rq_affinity");
        let value = match self.host.number(&source) {
            Ok(value) => value,
            Err(Unread::Missing) => return None,
            Err(why) => {
                return Some(Finding::unknown(
                    Id::RqAffinity,
                    "where requests complete",
                    source,
                    why,
                ));
            }
        };
        let (status, means) = match value {
            0 => (
                Status::Note,
                "a completion is handled on the CPU that took the interrupt: another one \
                 than submitted, with cold caches, and one CPU may handle all of them",
            ),
            1 => (Status::Ok, "a completion is handled on a CPU near the one that submitted"),
            _ => (Status::Ok, "a completion is handled on the very CPU that submitted"),
        };
        let finding =
            Finding::new(Id::RqAffinity, status, format!("rq_affinity is {value}"), source, means);
        Some(finding.fix_unless_ok(self.set("rq_affinity", "1")))
    }

    fn polling(&self) -> Finding {
        let source = self.queue("io_poll");
        let polls = match self.host.number(&source) {
            Ok(value) => value == 1,
            Err(Unread::Missing) => false,
            Err(why) => return Finding::unknown(Id::Polling, "polling", source, why),
        };
        match self.device.driver {
            Driver::Nvme if !polls => Finding::new(
                Id::Polling,
                Status::Note,
                "no queues for polling",
                source,
                "each completion comes by interrupt, some microseconds later than a poller \
                 would see it. ferroblk polls its rings, not the device: this is for \
                 programs that ask for it",
            )
            .fix("nvme.poll_queues=N on the kernel's command line, if you use such programs"),
            _ if polls => Finding::new(
                Id::Polling,
                Status::Ok,
                "completions can be polled for",
                source,
                "programs that ask for it do without interrupts",
            ),
            _ => Finding::new(
                Id::Polling,
                Status::Ok,
                "completions come by interrupt",
                source,
                "such a device offers nothing else, or has none to offer",
            ),
        }
    }

    fn discard(&self) -> Finding {
        let source = self.queue("discard_max_bytes");
        match self.host.number(&source) {
            Ok(bytes) if bytes > 0 => {
                let most = human(bytes.unsigned_abs());
                Finding::new(
                    Id::Discard,
                    Status::Ok,
                    format!("takes discards, {most} at once"),
                    source,
                    "space that guests free can be given back to the device",
                )
            }
            Ok(_) if self.spins() => Finding::new(
                Id::Discard,
                Status::Ok,
                "takes no discards",
                source,
                "a spinning disk has no use for them",
            ),
            Ok(_) => Finding::new(
                Id::Discard,
                Status::Note,
                "takes no discards",
                source,
                "what guests free stays in use below: an SSD has less room to work with and \
                 gets slower as it fills, a thin volume never shrinks",
            ),
            Err(why) => Finding::unknown(Id::Discard, "discard", source, why),
        }
    }

    fn numa_node(&self) -> Finding {
        let nodes = self.host.numa_nodes();
        let known = "/sys/devices/system/node/online";
        if nodes <= 1 {
            return Finding::new(
                Id::NumaNode,
                Status::Ok,
                "one NUMA node",
                known,
                "all memory is equally near",
            );
        }
        // Of NVMe, the controller has it; of others, the function on the bus, further up.
        let mut dir = self.device.dir.as_str();
        while let Some((parent, _)) = dir.rsplit_once('/') {
            let source = format!("{dir}/numa_node");
            match self.host.number(&source) {
                Ok(node) if node >= 0 => {
                    let means = "requests from CPUs of other nodes cross the link between them: each gets \
                        slower, and large transfers share its bandwidth";
                    return Finding::new(
                        Id::NumaNode,
                        Status::Note,
                        format!("on NUMA node {node} of {nodes}"),
                        source,
                        means,
                    )
                    .fix(format!(
                        "numactl --cpunodebind={node} --membind={node} ferroblk serve ..., and the \
                         guest on the same node"
                    ));
                }
                _ => dir = parent,
            }
        }
        Finding::unknown(
            Id::NumaNode,
            "NUMA node",
            self.device.file("device/numa_node"),
            "the kernel does not say where the device is attached",
        )
    }
}
