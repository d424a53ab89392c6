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

/// The client's JSON, as far as it matters. What it says of how many descriptors and how much data it takes at once
/// does not: we send one descriptor with a message, and as much data as was asked for.
#[derive(Default, Deserialize)]
struct Theirs {
    #[serde(default)]
    capabilities: TheirCapabilities,
}

#[derive(Default, Deserialize)]
struct TheirCapabilities {
    #[serde(default)]
    write_multiple: bool,
}

/// Our JSON.
#[derive(Serialize)]
struct Ours {
    capabilities: OurCapabilities,
}

#[derive(Serialize)]
struct OurCapabilities {
    max_msg_fds: u32,
    max_data_xfer_size: usize,
    /// Left out where the client has not proposed it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    write_multiple: bool,
}

/// Replies to the client's version, if it is one that we can talk to: major 0, any minor.
///
/// The reply is kept short, since QEMU makes room for no more than it sent itself.
pub fn negotiate(command: &Header, payload: &[u8], outbox: &mut Outbox) -> Result<Agreement, Errno> {
    let (version, json) = parse::<Version>(payload)?;
    if version.major != 0 {
        return Err(Errno::INVAL);
    }
    let write_multiple = parse_json(json)?.capabilities.write_multiple;
    let ours = Ours {
        capabilities: OurCapabilities {
            max_msg_fds: MAX_MSG_FDS,
            max_data_xfer_size: MAX_DATA_XFER_SIZE,
            write_multiple,
        },
    };
    let mut reply = Version { major: 0, minor: 0 }.as_bytes().to_vec();
    serde_json::to_writer(&mut reply, &ours).map_err(|_| Errno::NOMEM)?;
    reply.push(0);
    outbox.reply_with(command, reply.len(), |payload| payload.copy_from_slice(&reply));
    Ok(Agreement { write_multiple })
}

/// SPDK sends no JSON at all. If there is any, a NUL ends it.
fn parse_json(json: &[u8]) -> Result<Theirs, Errno> {
    match json {
        [] | [0] => Ok(Theirs::default()),
        [json @ .., 0] => serde_json::from_slice(json).map_err(|_| Errno::INVAL),
        _ => Err(Errno::INVAL),
    }
}
