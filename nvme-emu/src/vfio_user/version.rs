//! The handshake: `VFIO_USER_VERSION`, and the JSON in it.

use super::message::{Header, MAX_DATA_XFER_SIZE, MAX_MSG_FDS, Version, parse};
use super::send::Outbox;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

/// What client and server have agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// The client may send `VFIO_USER_REGION_WRITE_MULTI`.
    pub write_multiple: bool,
}

/// Either side's JSON. Names that we do not know are ignored.
#[derive(Default, Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

/// What the client says of itself beyond this (how many descriptors and how much data it takes at once) does not
/// matter: we send one descriptor with a message, and as much data as was asked for.
#[derive(Default, Serialize, Deserialize)]
struct Capabilities {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_msg_fds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_data_xfer_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_multiple: Option<bool>,
}

/// Replies to the client's version, if it is one that we can talk to: major 0, any minor.
///
/// The reply is kept short, since QEMU makes room for no more than it sent itself.
pub fn negotiate(command: &Header, payload: &[u8], outbox: &mut Outbox) -> Result<Agreement, Errno> {
    let (version, json) = parse::<Version>(payload)?;
    if version.major != 0 {
        return Err(Errno::INVAL);
    }
    let theirs = parse_json(json)?;
    let write_multiple = theirs.capabilities.write_multiple.unwrap_or(false);
    let ours = VersionData {
        capabilities: Capabilities {
            max_msg_fds: Some(MAX_MSG_FDS),
            max_data_xfer_size: Some(MAX_DATA_XFER_SIZE as u64),
            write_multiple: write_multiple.then_some(true),
        },
    };
    let mut reply = Version { major: 0, minor: 0 }.as_bytes().to_vec();
    serde_json::to_writer(&mut reply, &ours).map_err(|_| Errno::NOMEM)?;
    reply.push(0);
    outbox.reply_with(command, reply.len(), |payload| payload.copy_from_slice(&reply));
    Ok(Agreement { write_multiple })
}

/// SPDK sends no JSON at all. If there is any, a NUL ends it.
fn parse_json(json: &[u8]) -> Result<VersionData, Errno> {
    match json {
        [] | [0] => Ok(VersionData::default()),
        [json @ .., 0] => serde_json::from_slice(json).map_err(|_| Errno::INVAL),
        _ => Err(Errno::INVAL),
    }
}
