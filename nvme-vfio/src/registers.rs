//! The controller's properties, with names instead of offsets (Base Specification, "Controller Properties").

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::registers::{
    self, AdminQueueAttributes, Cap, ControllerConfiguration, ControllerStatus, ShutdownNotification,
    ShutdownStatus, Version,
};

use crate::error::Error;
use crate::patience::Patience;
use crate::transport::Transport;

/// Registers of one controller.
#[derive(Clone)]
pub(crate) struct Registers {
    transport: Arc<dyn Transport>,
}

impl Registers {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(crate) fn name(&self) -> String {
        self.transport.name().into()
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error {
        let (name, doing) = (self.name(), doing.into());
        move |source| Error::Transport { name, doing, source }
    }

    fn gone(&self) -> Error {
        Error::Gone { name: self.name() }
    }

    fn read32(&self, offset: u64, doing: &str) -> Result<u32, Error> {
        self.transport.read32(offset).map_err(self.failed(doing))
    }

    fn read64(&self, offset: u64, doing: &str) -> Result<u64, Error> {
        self.transport.read64(offset).map_err(self.failed(doing))
    }

    fn write32(&self, offset: u64, value: u32, doing: &str) -> Result<(), Error> {
        self.transport.write32(offset, value).map_err(self.failed(doing))
    }

    /// CAP. All ones in it cannot be: reserved bits are 0.
    pub(crate) fn cap(&self) -> Result<Cap, Error> {
        match self.read64(registers::CAP, "reading CAP")? {
            u64::MAX => Err(self.gone()),
            cap => Ok(Cap::from_bits(cap)),
        }
    }

    pub(crate) fn vs(&self) -> Result<Version, Error> {
        self.read32(registers::VS, "reading VS").map(Version::from_bits)
    }

    pub(crate) fn cc(&self) -> Result<ControllerConfiguration, Error> {
        match self.read32(registers::CC, "reading CC")? {
            u32::MAX => Err(self.gone()),
            cc => Ok(ControllerConfiguration::from_bits(cc)),
        }
    }

    pub(crate) fn set_cc(&self, cc: ControllerConfiguration) -> Result<(), Error> {
        self.write32(registers::CC, cc.into_bits(), "writing CC")
    }

    /// CSTS, whatever it says, unless the controller has gone.
    pub(crate) fn csts(&self) -> Result<ControllerStatus, Error> {
        match self.read32(registers::CSTS, "reading CSTS")? {
            u32::MAX => Err(self.gone()),
            csts => Ok(ControllerStatus::from_bits(csts)),
        }
    }

    /// Whether the controller is there and well.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.csts()?.cfs() { Err(Error::Fatal { name: self.name() }) } else { Ok(()) }
    }

    /// How long CSTS.RDY may take, CAP.TO or, where there is more to say, CRTO.CRWMT.
    pub(crate) fn ready_timeout(&self, cap: Cap) -> Result<Duration, Error> {
        let mut timeout = cap.timeout();
        if cap.crwms() {
            let crto = self.read32(registers::CRTO, "reading CRTO")?;
            timeout = timeout.max(Duration::from_millis(500 * u64::from(crto & 0xffff)));
        }
        // As Linux does: a unit more, for 0 and for clocks that do not quite agree.
        Ok(timeout + Duration::from_millis(500))
    }

    /// Waits until CSTS.RDY is as wanted. A fatal error ends the wait for ready, not that for the end of it.
    pub(crate) fn wait_ready(&self, ready: bool, limit: Duration) -> Result<(), Error> {
        let mut patience = Patience::new(limit);
        loop {
            let csts = self.csts()?;
            if csts.rdy() == ready {
                return Ok(());
            }
            if ready && csts.cfs() {
                return Err(Error::Fatal { name: self.name() });
            }
            if !patience.wait() {
                let what = format!("CSTS.RDY = {}", u8::from(ready));
                return Err(Error::Timeout { name: self.name(), what, limit });
            }
        }
    }

    /// Writes AQA, ASQ and ACQ.
    pub(crate) fn set_admin_queue(
        &self,
        entries: (u16, u16),
        submission: u64,
        completion: u64,
    ) -> Result<(), Error> {
        let aqa = AdminQueueAttributes::with_entries(entries.0, entries.1);
        self.write32(registers::AQA, aqa.into_bits(), "writing AQA")?;
        let write64 =
            |offset, value, doing| self.transport.write64(offset, value).map_err(self.failed(doing));
        write64(registers::ASQ, submission, "writing ASQ")?;
        write64(registers::ACQ, completion, "writing ACQ")
    }

    /// Brings the controller to CC.EN = 0 and CSTS.RDY = 0, from whatever state it was left in.
    pub(crate) fn disable(&self, timeout: Duration) -> Result<(), Error> {
        let cc = self.cc()?;
        let csts = self.csts()?;
        if cc.en() {
            // EN is not to be cleared on the way up. A controller that does not arrive is disabled all the same.
            if !csts.rdy() && !csts.cfs() {
                match self.wait_ready(true, timeout) {
                    Ok(()) | Err(Error::Timeout { .. } | Error::Fatal { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            self.set_cc(cc.with_en(false).with_shn(ShutdownNotification::None))?;
        }
        self.wait_ready(false, timeout)
    }

    /// Orderly shutdown: tells the controller, waits until it is through, and disables it.
    pub(crate) fn shut_down(&self, limit: Duration, timeout: Duration) -> Result<(), Error> {
        let cc = self.cc()?;
        if cc.en() {
            self.set_cc(cc.with_shn(ShutdownNotification::Normal))?;
            let mut patience = Patience::new(limit);
            while self.csts()?.shst() != ShutdownStatus::Complete {
                self.check()?;
                if !patience.wait() {
                    return Err(Error::Timeout {
                        name: self.name(),
                        what: "shutdown (CSTS.SHST)".into(),
                        limit,
                    });
                }
            }
        }
        self.disable(timeout)
    }
}
