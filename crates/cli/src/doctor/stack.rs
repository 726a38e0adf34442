//! From a path down to the devices: partitions, device mapper, md and loop devices are looked through.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread};
use super::mount::Mounts;
use super::spot::{Kind, Spot};

/// Layers looked through at most, in all branches together.
const LAYERS_MAX: usize = 256;

/// What drives a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Nvme,
    /// virtio-blk: we are in a guest.
    Virtio,
    /// SCSI, SATA, USB.
    Scsi,
    Loop,
    DeviceMapper,
    Md,
    Partition,
    Other,
}

/// A block device in /sys.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name, as under /dev.
    pub name: String,
    /// Its directory, links followed.
    pub dir: String,
    /// `major:minor`.
    pub number: String,
    pub driver: Driver,
    /// How the layer is shown: `dm-0 (LVM vg-vm1)`.
    pub shown: String,
}

/// All block devices under a path, the topmost first.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// What is looked through.
    pub layers: Vec<Device>,
    /// What does the work.
    pub lowest: Vec<Device>,
    /// What was in the way, if not all was found.
    pub gap: Option<String>,
}

impl Device {
    fn at(host: &Host, dir: String) -> Device {
        let sys_name = dir.rsplit('/').next().unwrap_or("").to_owned();
        let name = sys_name.replace('!', "/");
        let is_in = |part: &str| host.exists(&format!("{dir}/{part}"));
        let driver = match name.as_str() {
            _ if is_in("partition") => Driver::Partition,
            _ if is_in("dm") => Driver::DeviceMapper,
            _ if is_in("md") => Driver::Md,
            _ if is_in("loop/backing_file") => Driver::Loop,
            name if name.starts_with("nvme") => Driver::Nvme,
            name if name.starts_with("vd") => Driver::Virtio,
            name if name.starts_with("sd") => Driver::Scsi,
            _ => Driver::Other,
        };
        let number = host.text(&format!("{dir}/dev")).unwrap_or_default();
        let mut device = Device { shown: name.clone(), name, dir, number, driver };
        device.shown = device.describe(host);
        device
    }

    /// A file of its own in /sys, by the short way that people use.
    pub fn file(&self, name: &str) -> String {
        let class = if self.driver == Driver::Partition { "class/block" } else { "block" };
        format!("/sys/{class}/{}/{name}", self.sys_name())
    }

    /// Its name as a directory's: a slash in it is a `!` there.
    pub fn sys_name(&self) -> String {
        self.name.replace('/', "!")
    }

    fn describe(&self, host: &Host) -> String {
        let name = &self.name;
        let text = |file: &str| host.text(&self.file(file)).ok();
        match self.driver {
            Driver::Partition => format!("{name} (partition)"),
            Driver::DeviceMapper => {
                let own = text("dm/name").unwrap_or_default();
                format!("{name} ({} {own})", self.dm_kind(host))
            }
            Driver::Md => {
                format!("{name} ({})", text("md/level").unwrap_or_else(|| "md".to_owned()))
            }
            Driver::Loop => {
                format!("{name} (loop over {})", text("loop/backing_file").unwrap_or_default())
            }
            Driver::Nvme | Driver::Virtio | Driver::Scsi | Driver::Other => {
                match text("device/model") {
                    Some(model) if !model.is_empty() => format!("{name} ({model})"),
                    _ => name.clone(),
                }
            }
        }
    }

    /// What the device mapper does here, by the prefix of its unique name.
    fn dm_kind(&self, host: &Host) -> &'static str {
        let uuid = host.text(&self.file("dm/uuid")).unwrap_or_default();
        let known = [
            ("CRYPT-", "encrypted"),
            ("LVM-", "LVM"),
            ("mpath-", "multipath"),
            ("DMRAID-", "RAID"),
        ];
        known.iter().find(|(prefix, _)| uuid.starts_with(prefix)).map_or("mapped", |(_, kind)| kind)
    }

    fn is_encrypted(&self, host: &Host) -> bool {
        self.driver == Driver::DeviceMapper && self.dm_kind(host) == "encrypted"
    }
}

impl Stack {
    /// The devices under a path.
    pub fn under(host: &Host, mounts: &Mounts, spot: &Spot) -> Stack {
        let mut stack = Stack::default();
        let number = if spot.kind != Kind::Device && spot.device.starts_with("0:") {
            let mount = mounts.holding(spot.mount_id, &spot.shown());
            mount.and_then(|mount| mounts.device_of(host, mount))
        } else {
            Some(spot.device.clone())
        };
        match number {
            Some(number) => stack.add_number(host, mounts, &number),
            None => stack.gap = Some("no block device stands for its file system".to_owned()),
        }
        stack
    }

    fn add_number(&mut self, host: &Host, mounts: &Mounts, number: &str) {
        match host.resolve(&format!("/sys/dev/block/{number}")) {
            Ok(dir) => self.add(host, mounts, dir),
            Err(Unread::Missing) => {
                self.gap = Some(format!("/sys does not show the block device {number}"))
            }
            Err(why) => self.gap = Some(format!("/sys/dev/block/{number}: {why}")),
        }
    }

    fn add(&mut self, host: &Host, mounts: &Mounts, dir: String) {
        let is_known = |known: &[Device]| known.iter().any(|device| device.dir == dir);
        if is_known(&self.layers) || is_known(&self.lowest) || self.layers.len() >= LAYERS_MAX {
            return;
        }
        let device = Device::at(host, dir);
        match device.driver {
            Driver::Partition => {
                let disk = device.dir.rsplit_once('/').map(|(disk, _)| disk.to_owned());
                self.layers.push(device);
                if let Some(disk) = disk {
                    self.add(host, mounts, disk);
                }
            }
            Driver::Loop => {
                let file = host.text(&device.file("loop/backing_file")).unwrap_or_default();
                self.layers.push(device);
                let mount = mounts.holding(None, &file);
                match mount.and_then(|mount| mounts.device_of(host, mount)) {
                    Some(number) => self.add_number(host, mounts, &number),
                    None => self.gap = Some(format!("no block device was found under {file}")),
                }
            }
            _ => {
                let slaves = host.names(&device.file("slaves"));
                let dirs: Vec<String> = slaves
                    .iter()
                    .filter_map(|slave| host.resolve(&device.file(&format!("slaves/{slave}"))).ok())
                    .collect();
                if dirs.is_empty() {
                    self.lowest.push(device);
                    return;
                }
                self.layers.push(device);
                for dir in dirs {
                    self.add(host, mounts, dir);
                }
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Device> {
        self.layers.iter().chain(&self.lowest)
    }

    /// The way down as text.
    pub fn shown(&self) -> String {
        let names = |devices: &[Device]| -> Vec<String> {
            devices.iter().map(|d| d.shown.clone()).collect()
        };
        let mut parts = names(&self.layers);
        if !self.lowest.is_empty() {
            parts.push(names(&self.lowest).join(", "));
        }
        parts.join(" over ")
    }
}

/// What the layers mean.
pub fn check(host: &Host, stack: &Stack, spot: &Spot, out: &mut Vec<Finding>) {
    let path = spot.shown();
    out.push(way_down(stack).about(&path));
    for device in &stack.layers {
        let mut push = |finding: Finding| out.push(finding.about(&device.name));
        match device.driver {
            Driver::Md => {
                raid_parity(host, device).into_iter().for_each(&mut push);
                raid_state(host, device).into_iter().for_each(push);
            }
            Driver::Loop => push(loop_device(host, device)),
            _ if device.is_encrypted(host) => push(encryption(device)),
            _ => {}
        }
    }
}

fn way_down(stack: &Stack) -> Finding {
    let source = "/sys/dev/block";
    match &stack.gap {
        Some(why) if stack.layers.is_empty() && stack.lowest.is_empty() => {
            Finding::unknown(Id::DeviceStack, "block device", source, why)
        }
        Some(why) => Finding::unknown(Id::DeviceStack, &stack.shown(), source, why),
        None if stack.layers.iter().all(|device| device.driver == Driver::Partition) => {
            Finding::new(
                Id::DeviceStack,
                Status::Ok,
                stack.shown(),
                source,
                "nothing stands between the disk and its device",
            )
        }
        None => Finding::new(
            Id::DeviceStack,
            Status::Note,
            stack.shown(),
            source,
            "each request passes all these layers; what they cost, they cost a guest \
             too. The settings below are those of the lowest devices",
        ),
    }
}

fn encryption(device: &Device) -> Finding {
    Finding::new(
        Id::DeviceEncryption,
        Status::Note,
        "encrypted (dm-crypt)",
        device.file("dm/uuid"),
        "a CPU works on each byte, by default on a kernel work queue: two more \
         switches of context for each request, which a fast SSD makes felt",
    )
    .fix(
        "on SSDs: cryptsetup refresh --perf-no_read_workqueue \
         --perf-no_write_workqueue --persistent NAME",
    )
}

fn loop_device(host: &Host, device: &Device) -> Finding {
    let source = device.file("loop/dio");
    let means = |cost: &str| {
        format!("two file systems and a kernel thread are in each request's way{cost}")
    };
    let fix = "serve the file itself: ferroblk needs no loop device";
    match host.text(&source).as_deref() {
        Ok("1") => Finding::new(
            Id::DeviceLoop,
            Status::Note,
            "a loop device with direct I/O",
            source,
            means(""),
        ),
        Ok(_) => Finding::new(
            Id::DeviceLoop,
            Status::Warning,
            "a loop device without direct I/O",
            source,
            means(", data is cached twice, and cache=none bypasses the upper cache only"),
        ),
        Err(why) => {
            return Finding::unknown(Id::DeviceLoop, "direct I/O of the loop device", source, why);
        }
    }
    .fix(format!("{fix}; or losetup --direct-io=on /dev/{}", device.name))
}

fn raid_parity(host: &Host, device: &Device) -> Option<Finding> {
    let source = device.file("md/level");
    let level = match host.text(&source) {
        Ok(level) => level,
        Err(why) => return Some(Finding::unknown(Id::RaidParity, "RAID level", source, why)),
    };
    let what = format!("RAID level {level}");
    Some(if ["raid4", "raid5", "raid6"].contains(&level.as_str()) {
        let means = "a write smaller than a stripe reads old data and parity first: one random \
            write is four to six device requests. After a crash, stripes that were \
            being written are made whole again";
        Finding::new(Id::RaidParity, Status::Warning, what, source, means).fix(
            "raid10 for disks of guests; else a journal (mdadm --write-journal) and \
             stripe_cache_size raised",
        )
    } else {
        let means = "no parity: a small write is one request to each copy";
        Finding::new(Id::RaidParity, Status::Ok, what, source, means)
    })
}

fn raid_state(host: &Host, device: &Device) -> Option<Finding> {
    let source = device.file("md/degraded");
    // Levels without redundancy have neither file.
    let degraded = match host.number(&source) {
        Ok(count) => count,
        Err(Unread::Missing) => return None,
        Err(why) => return Some(Finding::unknown(Id::RaidState, "missing devices", source, why)),
    };
    let action = host.text(&device.file("md/sync_action")).unwrap_or_else(|_| "idle".to_owned());
    Some(if degraded > 0 {
        let means = "the array runs without redundancy or with less: reads of what is missing \
            are computed, the next failure may lose data";
        Finding::new(
            Id::RaidState,
            Status::Problem,
            format!("{degraded} devices missing, {action}"),
            source,
            means,
        )
        .fix(format!("mdadm --detail /dev/{0}; mdadm /dev/{0} --add DEVICE", device.name))
    } else if action != "idle" && action != "frozen" {
        let means = "the array reads or writes all of itself in the background: figures measured \
            now are too low";
        Finding::new(
            Id::RaidState,
            Status::Warning,
            format!("complete, {action} is running"),
            source,
            means,
        )
        .fix(format!("measure when cat /sys/block/{}/md/sync_action says idle", device.name))
    } else {
        Finding::new(
            Id::RaidState,
            Status::Ok,
            "complete and idle",
            source,
            "nothing but requests keeps the array busy",
        )
    })
}
