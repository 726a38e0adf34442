//! CPU time of a guest, as the host sees it.

use crate::server::{host_cpu_seconds, process_cpu_seconds};
use std::io;

/// QEMU names its vCPU threads so (`debug-threads=on`), with the vCPU's number behind.
const VCPU_THREAD: &str = "CPU ";

/// A reading of all clocks that a run is billed by. Seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    pub vcpus: Vec<f64>,
    /// QEMU's whole process, vCPUs included.
    pub qemu: f64,
    /// The vhost-user server; 0 where there is none.
    pub server: f64,
    pub host: f64,
}

impl Usage {
    /// Reads them now.
    pub fn read(qemu: u32, vcpus: &[u32], server: Option<u32>) -> io::Result<Usage> {
        Ok(Usage {
            vcpus: vcpus.iter().map(|tid| thread_seconds(qemu, *tid)).collect::<io::Result<_>>()?,
            qemu: process_cpu_seconds(qemu)?,
            server: server.map_or(Ok(0.0), process_cpu_seconds)?,
            host: host_cpu_seconds()?,
        })
    }

    /// What was used between an earlier reading and this one.
    pub fn since(&self, earlier: &Usage) -> Usage {
        let past = |now: f64, then: f64| (now - then).max(0.0);
        let vcpus = self.vcpus.iter().zip(&earlier.vcpus);
        Usage {
            vcpus: vcpus.map(|(now, then)| past(*now, *then)).collect(),
            qemu: past(self.qemu, earlier.qemu),
            server: past(self.server, earlier.server),
            host: past(self.host, earlier.host),
        }
    }

    /// All vCPUs together.
    pub fn workload(&self) -> f64 {
        self.vcpus.iter().sum()
    }

    /// What serving the disk cost: QEMU without its vCPUs, and the server.
    pub fn serving(&self) -> f64 {
        // The clocks are read one after the other, so the vCPUs' may be a little ahead.
        (self.qemu - self.workload()).max(0.0) + self.server
    }
}

/// The vCPU threads of a QEMU process, in the vCPUs' order.
pub(super) fn vcpu_threads(qemu: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{qemu}/task"))? {
        let path = entry?.path();
        // A thread that has just ended is no vCPU.
        let Ok(name) = std::fs::read_to_string(path.join("comm")) else { continue };
        let number = name
            .strip_prefix(VCPU_THREAD)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
        let tid = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        found.extend(number.zip(tid));
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, tid)| tid).collect())
}

/// Seconds on a CPU of a thread that has not ended: the first number of its schedstat, in nanoseconds.
fn thread_seconds(pid: u32, tid: u32) -> io::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))?;
    let ns: Option<u64> = text.split_whitespace().next().and_then(|first| first.parse().ok());
    let ns = ns.ok_or_else(|| io::Error::other(format!("/proc/{pid}/task/{tid}/schedstat")))?;
    Ok(std::time::Duration::from_nanos(ns).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serving_is_what_is_left_of_qemu_and_the_server() {
        let then = Usage { vcpus: vec![1.0, 2.0], qemu: 4.0, server: 1.0, host: 9.0 };
        let now = Usage { vcpus: vec![2.5, 2.5], qemu: 7.0, server: 1.5, host: 20.0 };
        let used = now.since(&then);
        assert_eq!(used.vcpus, [1.5, 0.5]);
        assert_eq!(used.workload(), 2.0);
        assert_eq!(used.serving(), 1.0 + 0.5);
        assert_eq!(used.host, 11.0);
    }

    #[test]
    fn threads_are_found_by_name_in_the_vcpus_order() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let (ready, go) = std::sync::mpsc::channel();
        let threads: Vec<_> = ["CPU 10/TCG", "CPU 2/TCG", "CPUs", "IO io0"]
            .into_iter()
            .map(|name| {
                let (wait, ready) = (wait.clone(), ready.clone());
                let body = move || {
                    ready.send((name, rustix::thread::gettid().as_raw_nonzero().get())).unwrap();
                    let _ = wait.lock().unwrap().recv();
                };
                #[expect(clippy::disallowed_methods, reason = "named threads are what is tested")]
                std::thread::Builder::new().name(name.into()).spawn(body).unwrap()
            })
            .collect();
        let tids: std::collections::BTreeMap<_, _> = go.iter().take(4).collect();
        let own = std::process::id();
        let found = vcpu_threads(own).unwrap();
        let expected = ["CPU 2/TCG", "CPU 10/TCG"].map(|name| u32::try_from(tids[name]).unwrap());
        assert_eq!(found, expected);
        assert!(thread_seconds(own, found[0]).unwrap() >= 0.0);
        drop(done);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(thread_seconds(own, found[0]).is_err());
    }
}
