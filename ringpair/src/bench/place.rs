//! Where the controller is that a bench drives.

use super::placement::Placement;
use super::row::Drive;
use super::server::{Paused, Server};
use crate::controller::Opened;
use crate::disk;
use crate::failure::Usage;
use crate::target::Target;
use anyhow::Result;
use nvme_emu::subsystem::Subsystem;
use nvme_emu::{EngineOptions, PollMode};
use nvme_vfio::{Namespace, Options};
use rustix::process::Pid;
use std::sync::Arc;

/// A controller, and the way to it.
pub enum Place {
    /// In a process of its own or in hardware, and open all the time.
    Elsewhere {
        /// The driver's side; closed before the server ends.
        opened: Box<Opened>,
        /// What is driven.
        namespace: Namespace,
        /// If it is ours.
        server: Option<Server>,
    },
    /// In this process. Its reactor never sleeps, so it is there only while it is driven.
    Here(Loopback),
}

/// What it takes to start a controller in this process.
pub struct Loopback {
    target: Target,
    subsystem: Arc<Subsystem>,
    engine: EngineOptions,
    options: Options,
}

impl Place {
    /// Starts a server for a disk or, with `loopback`, has one driven in this process; reaches everything else where it
    /// is. With `explain`, the server takes the time of some commands.
    ///
    /// # Errors
    ///
    /// What cannot be started or reached, and why.
    pub fn open(
        target: &Target,
        loopback: bool,
        explain: bool,
        options: Options,
        placement: &Placement,
    ) -> Result<Self> {
        match target {
            Target::Disk(disk) if loopback => {
                let subsystem = disk::subsystem(std::slice::from_ref(disk))?;
                let cpus = vec![placement.reactor()];
                let engine = EngineOptions { poll: PollMode::Always, cpus, ..EngineOptions::default() };
                Ok(Self::Here(Loopback { target: target.clone(), subsystem, engine, options }))
            }
            Target::Disk(disk) => {
                let server = Server::start(disk, options.queues, placement.reactor(), explain)?;
                let socket = Target::VfioUser { socket: server.socket().into(), nsid: None, timeout: None };
                Self::elsewhere(&socket, options, Some(server))
            }
            _ if loopback => {
                let message = format!("--loopback: {target} has a controller already; it takes a DISK");
                Err(Usage(message).into())
            }
            Target::Nvme { .. } | Target::VfioUser { .. } => Self::elsewhere(target, options, None),
        }
    }

    fn elsewhere(target: &Target, options: Options, server: Option<Server>) -> Result<Self> {
        let opened = Box::new(Opened::target(target, options)?);
        let namespace = opened.namespace(target)?;
        Ok(Self::Elsewhere { opened, namespace, server })
    }

    /// Has somebody drive it.
    ///
    /// # Errors
    ///
    /// What cannot be started, or the driver's.
    pub fn drive<T>(&self, work: impl FnOnce(&Drive<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Elsewhere { opened, namespace, .. } => {
                work(&Drive { controller: &opened.controller, namespace })
            }
            Self::Here(Loopback { target, subsystem, engine, options }) => {
                let name = target.to_string();
                let opened = Opened::loopback(&name, subsystem.clone(), engine.clone(), options.clone())?;
                let namespace = opened.namespace(target)?;
                work(&Drive { controller: &opened.controller, namespace: &namespace })
            }
        }
    }

    /// The server, if it is ours.
    pub fn server(&self) -> Option<&Server> {
        if let Self::Elsewhere { server, .. } = self { server.as_ref() } else { None }
    }

    /// The process that serves it, if that is another's.
    pub fn other_server(&self) -> Option<Pid> {
        match self {
            Self::Elsewhere { opened, server: None, .. } => opened.server_process(),
            _ => None,
        }
    }

    /// CPUs besides the jobs' that it keeps busy in this process.
    pub fn own_cpus(&self) -> usize {
        usize::from(matches!(self, Self::Here(_)))
    }

    /// Keeps it from running while a limit is measured on its CPU.
    pub fn pause(&self) -> Option<Paused<'_>> {
        self.server().map(Server::pause)
    }
}
