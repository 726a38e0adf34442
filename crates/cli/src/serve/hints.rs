//! The command lines that attach the disk, ready to be pasted into a shell.
//!
//! A socket's path passes three readers on its way: the VMM, which cuts its options at commas; the shell, which cuts at
//! spaces and obeys much else; and the terminal. Each layer is quoted for its reader.

use crate::text;

/// The lines for QEMU and Cloud Hypervisor, each with its end.
pub fn attach(socket: &str, queues: u16) -> String {
    let chardev = shell(&format!("socket,id=disk0,path={}", socket.replace(',', ",,")));
    // Double quotes keep a comma within its option there.
    let path = if socket.contains(',') { format!("\"{socket}\"") } else { socket.to_owned() };
    let disk = shell(&format!("vhost_user=on,socket={path},num_queues={queues}"));
    format!(
        "attach with QEMU:
  qemu-system-x86_64 -accel kvm -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
    -chardev {chardev} -device vhost-user-blk-pci,chardev=disk0,num-queues={queues}
attach with Cloud Hypervisor:
  cloud-hypervisor --memory size=1G,shared=on --disk {disk}
"
    )
}

/// A word for a shell, in quotes only if it needs them. Control characters are beyond pasting, and shown as such.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./,=:@%+".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => text::escape(&format!("'{}'", word.replace('\'', r"'\''"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{attach, shell};

    #[test]
    fn words_are_quoted_if_they_need_it() {
        assert_eq!(shell("path=/run/vm-1.sock,x"), "path=/run/vm-1.sock,x");
        assert_eq!(shell("a b"), "'a b'");
        assert_eq!(shell("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell("a\nb"), r"'a\nb'");
    }

    #[test]
    fn a_comma_in_the_path_stays_in_the_path() {
        let lines = attach("a,b.sock", 4);
        assert!(lines.contains("-chardev socket,id=disk0,path=a,,b.sock "), "{lines}");
        assert!(lines.contains(r#"'vhost_user=on,socket="a,b.sock",num_queues=4'"#), "{lines}");
    }
}
