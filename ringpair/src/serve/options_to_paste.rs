//! The options that plug a served controller into a virtual machine.

use std::path::Path;

/// What to give to QEMU 10.1 or later.
pub fn qemu(socket: &Path) -> String {
    let socket = socket.to_string_lossy();
    // QEMU takes a socket's address in JSON only.
    let device = serde_json::json!({
        "driver": "vfio-user-pci",
        "socket": { "path": socket, "type": "unix" },
    });
    format!(
        "-object memory-backend-memfd,id=ram,size=4G,share=on -machine q35,memory-backend=ram -m 4G \
         -device {}",
        shell_quoted(&device.to_string())
    )
}

/// What to give to Cloud Hypervisor.
pub fn cloud_hypervisor(socket: &Path) -> String {
    let socket = socket.to_string_lossy();
    format!("--memory size=4G,shared=on --user-device {}", shell_quoted(&format!("socket={socket}")))
}

/// The text as one word of a POSIX shell.
fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:@%+".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_device_is_json_and_its_memory_is_shared() {
        let options = qemu(Path::new("/run/a.sock"));
        let wanted = r#"-device '{"driver":"vfio-user-pci","socket":{"path":"/run/a.sock","type":"unix"}}'"#;
        assert!(options.contains(wanted), "{options}");
        assert!(options.contains("memory-backend-memfd,id=ram,size=4G,share=on"), "{options}");
    }

    #[test]
    fn cloud_hypervisors_memory_is_shared() {
        let wanted = "--memory size=4G,shared=on --user-device socket=/run/a.sock";
        assert_eq!(cloud_hypervisor(Path::new("/run/a.sock")), wanted);
    }

    #[test]
    fn odd_paths_survive_the_shell_and_json() {
        assert!(qemu(Path::new("/it's \"here\"")).contains(r#"/it'\''s \"here\""#));
        assert!(cloud_hypervisor(Path::new("/a b")).ends_with("'socket=/a b'"));
    }
}
