//! Reaching a target's controller, wherever it is.

use crate::disk;
use crate::target::Target;
use anyhow::{Context, Result, anyhow};
use nvme_emu::subsystem::Subsystem;
use nvme_emu::{ControllerOptions, Engine, EngineOptions};
use nvme_loopback::Loopback;
use nvme_vfio::transport::{Vfio, VfioUser};
use nvme_vfio::{Controller, Namespace, Options};
use rustix::process::Pid;
use std::path::Path;
use std::sync::Arc;

/// A target's controller, opened.
pub struct Opened {
    /// The driver's side. Shut down before what is behind it.
    pub controller: Controller,
    behind: Option<Behind>,
    server_process: Option<Pid>,
}

/// As [`Opened::explain`].
pub fn explain<T>(controller: &Controller, result: Result<T>) -> Result<T> {
    result.map_err(|error| match controller.failure() {
        Some(why) => anyhow!("{error:#}: {why}"),
        None => error,
    })
}

/// The controller's side, where that is in this process.
struct Behind {
    engine: Engine,
    subsystem: Arc<Subsystem>,
}

impl Opened {
    /// Takes a controller of this machine, connects to a server, or starts a controller for a disk in this process.
    ///
    /// # Errors
    ///
    /// Names what cannot be reached, and why.
    pub fn target(target: &Target, options: Options) -> Result<Self> {
        let options = target.apply(options);
        match target {
            Target::Nvme { address, interface, .. } => {
                let transport = Vfio::open(*address, interface.unwrap_or_default())?;
                let controller = Controller::open(Box::new(transport), options)?;
                Ok(Self { controller, behind: None, server_process: None })
            }
            Target::VfioUser { socket, .. } => Self::vfio_user(socket, options),
            Target::Disk(disk) => Self::disk(disk, options),
        }
    }

    fn vfio_user(socket: &Path, options: Options) -> Result<Self> {
        let transport = VfioUser::connect(socket)
            .with_context(|| format!("{}: cannot reach a vfio-user server", socket.display()))?;
        let server_process = transport.server_process();
        Ok(Self { controller: Controller::open(Box::new(transport), options)?, behind: None, server_process })
    }

    fn disk(disk: &str, options: Options) -> Result<Self> {
        Self::loopback(disk, disk::subsystem(&[disk.to_owned()])?, EngineOptions::default(), options)
    }

    /// Starts a controller for a subsystem in this process, under this name in messages.
    ///
    /// # Errors
    ///
    /// There are no threads or no memory for it.
    pub fn loopback(
        name: &str,
        subsystem: Arc<Subsystem>,
        engine: EngineOptions,
        options: Options,
    ) -> Result<Self> {
        let engine = Engine::start(engine)?;
        let default = ControllerOptions::default();
        let queues = options.queues.clamp(default.queues, ControllerOptions::MAX_QUEUES);
        let function = engine.add_controller(&subsystem, &ControllerOptions { queues, ..default })?;
        let transport = Loopback::new(name, function).with_context(|| format!("{name}: attaching to it"))?;
        let controller = Controller::open(Box::new(transport), options)?;
        Ok(Self { controller, behind: Some(Behind { engine, subsystem }), server_process: None })
    }

    /// The namespace that a target names, or else the only one or the first one.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn namespace(&self, target: &Target) -> Result<Namespace> {
        let nsid = match target.nsid() {
            Some(nsid) => nsid,
            None => {
                *self.controller.namespace_ids()?.first().ok_or_else(|| anyhow!("{target}: no namespaces"))?
            }
        };
        Ok(self.controller.namespace(nsid)?)
    }

    /// The process at the other end of a vfio-user socket.
    pub fn server_process(&self) -> Option<Pid> {
        self.server_process
    }

    /// Says of an error what it comes from, where that is a controller that has failed for good.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        explain(&self.controller, result)
    }

    /// Shuts the controller down; if it was in this process, makes its disk's data durable.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn close(self) -> Result<()> {
        let Self { controller, behind, .. } = self;
        drop(controller);
        if let Some(Behind { engine, subsystem }) = behind {
            engine.shutdown();
            disk::flush(&subsystem)?;
        }
        Ok(())
    }
}
