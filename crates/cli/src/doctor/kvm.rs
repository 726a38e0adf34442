//! KVM: whether guests run with it, and what an exit, an interrupt and a wake-up cost.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread};
use super::probed::Probed;
use rustix::io::Errno;

/// The only version that was ever stable.
const API_VERSION: i32 = 12;

/// What KVM's state and parameters mean.
pub fn check(host: &Host, probed: &Probed, out: &mut Vec<Finding>) {
    out.push(device(probed));
    out.extend(eventfd(probed));
    if let Some(vendor) = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .find(|module| host.exists(&format!("/sys/module/{module}")))
    {
        out.extend(paging(host, vendor));
        out.extend(apicv(host, vendor));
        out.extend(nested(host, vendor));
    }
    out.extend(halt_poll(host));
    out.extend(x2apic(host));
    let guest = guest_of(host);
    out.push(virtual_machine(guest.as_deref()));
    if guest.is_some() {
        out.push(guest_halt_poll(host));
    }
}

/// Under what this machine runs, if it is itself a guest.
pub fn guest_of(host: &Host) -> Option<String> {
    if let Ok(kind) = host.text("/sys/hypervisor/type")
        && !kind.is_empty()
    {
        return Some(kind);
    }
    let flagged = has_flag(host, "hypervisor") == Some(true);
    flagged.then(|| {
        let maker = host.text("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
        if maker.is_empty() { "a hypervisor".to_owned() } else { format!("a hypervisor ({maker})") }
    })
}

/// Whether the CPU has a flag; `None` where CPUs have no such list.
fn has_flag(host: &Host, flag: &str) -> Option<bool> {
    host.cpuinfo("flags").map(|flags| flags.split_whitespace().any(|own| own == flag))
}

fn device(probed: &Probed) -> Finding {
    let source = "/dev/kvm";
    let means = "without KVM a guest is emulated, ten to a hundred times slower: its disk \
        figures say nothing";
    match &probed.kvm {
        Ok(facts) if facts.api_version == API_VERSION => {
            let what = format!("KVM can be used, API {}", facts.api_version);
            Finding::new(Id::KvmDevice, Status::Ok, what, source, "guests run on the CPU itself")
        }
        Ok(facts) => Finding::new(
            Id::KvmDevice,
            Status::Problem,
            format!("KVM has API {}, not {API_VERSION}", facts.api_version),
            source,
            means,
        )
        .fix("a KVM of Linux 2.6.22 or later"),
        Err(why) => {
            let fix = match () {
                () if why.is(Errno::NOENT) || why.is(Errno::NODEV) || why.is(Errno::NXIO) => {
                    "modprobe kvm_intel or kvm_amd; virtualisation enabled in the firmware; in a \
                     guest, nested virtualisation enabled on its host"
                }
                () if why.is(Errno::ACCESS) || why.is(Errno::PERM) => {
                    "usermod -aG kvm USER, and log in anew; in a container: --device /dev/kvm"
                }
                () => "see dmesg | grep -i kvm",
            };
            Finding::new(
                Id::KvmDevice,
                Status::Problem,
                format!("KVM cannot be used: {why}"),
                source,
                means,
            )
            .fix(fix)
        }
    }
}

fn eventfd(probed: &Probed) -> Option<Finding> {
    let facts = probed.kvm.as_ref().ok()?;
    let source = "KVM_CHECK_EXTENSION";
    let lacks: Vec<&str> = [(facts.ioeventfd, "ioeventfd"), (facts.irqfd, "irqfd")]
        .iter()
        .filter(|(has, _)| !has)
        .map(|(_, name)| *name)
        .collect();
    Some(if lacks.is_empty() {
        Finding::new(
            Id::KvmEventfd,
            Status::Ok,
            "KVM has ioeventfd and irqfd",
            source,
            "a guest's request wakes the I/O thread, and the I/O thread interrupts the \
             guest, without the VMM's threads in between",
        )
    } else {
        Finding::new(
            Id::KvmEventfd,
            Status::Problem,
            format!("KVM lacks {}", lacks.join(" and ")),
            source,
            "each notification goes through the VMM's vCPU thread: the guest stands \
             still meanwhile, and vhost-user may not work at all",
        )
        .fix("a kernel with CONFIG_EVENTFD and KVM's irqchip")
    })
}

/// A parameter of a module that is on or off.
fn switch(host: &Host, source: &str) -> Result<bool, Unread> {
    match host.text(source)?.as_str() {
        "Y" | "y" | "1" => Ok(true),
        "N" | "n" | "0" => Ok(false),
        _ => Err(Unread::Refused("neither on nor off".to_owned())),
    }
}

fn paging(host: &Host, vendor: &str) -> Option<Finding> {
    let name = if vendor == "kvm_intel" { "ept" } else { "npt" };
    let source = format!("/sys/module/{vendor}/parameters/{name}");
    Some(match switch(host, &source) {
        Ok(true) => Finding::new(
            Id::KvmPaging,
            Status::Ok,
            format!("nested paging is on ({name})"),
            source,
            "a guest changes its page tables without an exit",
        ),
        Ok(false) => Finding::new(
            Id::KvmPaging,
            Status::Problem,
            format!("nested paging is off ({name})"),
            source,
            "each change of a guest's page tables is an exit: its page cache, and so all \
             its disk I/O, costs several times more CPU",
        )
        .fix(format!(
            "modprobe -r {vendor} && modprobe {vendor} {name}=1; if it stays off, the \
             CPU or an outer hypervisor does not have it"
        )),
        Err(Unread::Missing) => return None,
        Err(why) => Finding::unknown(Id::KvmPaging, "nested paging", source, why),
    })
}

fn apicv(host: &Host, vendor: &str) -> Option<Finding> {
    let name = if vendor == "kvm_intel" { "enable_apicv" } else { "avic" };
    let source = format!("/sys/module/{vendor}/parameters/{name}");
    Some(match switch(host, &source) {
        Ok(true) => Finding::new(
            Id::KvmApicv,
            Status::Ok,
            format!("the CPU delivers guests' interrupts ({name})"),
            source,
            "a completion's interrupt reaches a running vCPU without an exit",
        ),
        Ok(false) => Finding::new(
            Id::KvmApicv,
            Status::Note,
            format!("the CPU does not deliver guests' interrupts ({name} off)"),
            source,
            "each completion's interrupt, and its end where the guest has no paravirtual \
             one, is an exit of some microseconds",
        )
        .fix(format!("modprobe -r {vendor} && modprobe {vendor} {name}=1, if the CPU has it")),
        Err(Unread::Missing) => return None,
        Err(why) => Finding::unknown(Id::KvmApicv, "APIC virtualisation", source, why),
    })
}

fn nested(host: &Host, vendor: &str) -> Option<Finding> {
    let source = format!("/sys/module/{vendor}/parameters/nested");
    Some(match switch(host, &source) {
        Ok(true) => Finding::new(
            Id::KvmNested,
            Status::Ok,
            "guests may run guests (nested)",
            source,
            "changes nothing for the disks of plain guests",
        ),
        Ok(false) => Finding::new(
            Id::KvmNested,
            Status::Note,
            "guests may not run guests (nested off)",
            source,
            "changes nothing for disks; a test machine in a guest has to emulate its own guests",
        )
        .fix(format!("only if you need it: options {vendor} nested=1 in /etc/modprobe.d")),
        Err(Unread::Missing) => return None,
        Err(why) => Finding::unknown(Id::KvmNested, "nested virtualisation", source, why),
    })
}

fn halt_poll(host: &Host) -> Option<Finding> {
    let source = "/sys/module/kvm/parameters/halt_poll_ns";
    Some(match host.number(source) {
        Ok(ns) if ns > 0 => Finding::new(
            Id::KvmHaltPoll,
            Status::Ok,
            format!("a halted vCPU is polled for up to {} µs", ns / 1000),
            source,
            "a guest that waits for its disk is awake again in a microsecond or two. CPU \
             time goes up for it: measure CPU per request with this in mind",
        ),
        Ok(_) => Finding::new(
            Id::KvmHaltPoll,
            Status::Warning,
            "a halted vCPU sleeps at once (halt polling is off)",
            source,
            "each completion that a guest waits for pays the wake-up of a sleeping \
             thread, and of the CPU from its idle state: 5 to 50 µs with one request in \
             flight",
        )
        .fix(format!("echo 200000 | sudo tee {source}")),
        // Without KVM there is nothing to poll; that is told by kvm-device.
        Err(Unread::Missing) => return None,
        Err(why) => Finding::unknown(Id::KvmHaltPoll, "halt polling", source, why),
    })
}

fn x2apic(host: &Host) -> Option<Finding> {
    let source = "/proc/cpuinfo";
    Some(if has_flag(host, "x2apic")? {
        Finding::new(
            Id::X2apic,
            Status::Ok,
            "the CPU has an x2APIC",
            source,
            "interrupts are sent and ended by a register: where that is an exit at all, \
             it is a cheap one",
        )
    } else {
        Finding::new(
            Id::X2apic,
            Status::Warning,
            "the CPU has no x2APIC",
            source,
            "interrupts are sent and ended by writing to memory-mapped registers: each \
             such exit has to decode the instruction, and a guest with many completions \
             feels it. (KVM gives guests an x2APIC all the same: use it there)",
        )
        .fix(
            "enable x2APIC in the firmware, no nox2apic on the kernel's command line; \
             for guests: QEMU -cpu ...,+x2apic",
        )
    })
}

fn virtual_machine(guest: Option<&str>) -> Finding {
    let source = "/proc/cpuinfo, /sys/hypervisor";
    match guest {
        None => Finding::new(
            Id::VirtualMachine,
            Status::Ok,
            "this machine is no guest",
            source,
            "exits go straight to this kernel, and the disk below is the real one",
        ),
        Some(under) => Finding::new(
            Id::VirtualMachine,
            Status::Note,
            format!("this machine is itself a guest of {under}"),
            source,
            "its disk and CPUs are shared with others that you do not see, so figures \
             vary; each exit of a guest in here is handled twice, at several times the \
             cost. Bare metal here means this machine's disk",
        ),
    }
}

fn guest_halt_poll(host: &Host) -> Finding {
    let dir = "/sys/devices/system/cpu/cpuidle";
    let source = format!("{dir}/current_driver");
    let driver = host.text(&source).unwrap_or_default();
    let governor = host.text(&format!("{dir}/current_governor")).unwrap_or_default();
    if driver == "haltpoll" || governor == "haltpoll" {
        let what = "an idle CPU polls before it halts (haltpoll)";
        return Finding::new(
            Id::GuestHaltPoll,
            Status::Ok,
            what,
            source,
            "a completion that comes soon finds the CPU awake, without an exit",
        );
    }
    Finding::new(
        Id::GuestHaltPoll,
        Status::Note,
        "an idle CPU halts at once (no haltpoll)",
        source,
        "each wait for the disk is an exit to the hypervisor below and a wake-up by \
         it: 10 to 50 µs on each request that is waited for",
    )
    .fix(
        "modprobe cpuidle-haltpoll force=1, or cpuidle_haltpoll.force=1 on this \
         guest's kernel command line",
    )
}
