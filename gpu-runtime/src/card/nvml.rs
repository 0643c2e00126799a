//! What cards this machine has, and whether they are well, from the management library.
//!
//! Its absence is normal: most machines have no card. What a card or a driver does not tell (consumer cards tell less) is left
//! out, and nothing depends on it.

use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

use super::guard::CardProcess;
use crate::inventory::Gpu;
use crate::slice::Level;

/// As the system finds it where the owner names no other.
pub const LIBRARY: &str = "libnvidia-ml.so.1";
const MIB: u64 = 1 << 20;
/// Instances that one card can be cut into.
const INSTANCES_MAX: u32 = 8;
const CARDS_MAX: u32 = 64;

/// The management library, open.
pub struct Cards {
    nvml: Nvml,
}

impl std::fmt::Debug for Cards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cards").finish_non_exhaustive()
    }
}

/// Something that a card's driver reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEvent {
    pub uuid: String,
    pub fault: Fault,
}

/// Whose fault an event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A program's: the card goes on.
    Program { xid: u64 },
    /// The card's: it takes nothing more until a person has looked at it.
    Card { why: String },
}

/// Judges an Xid as NVIDIA's own device plugin does: these few are a program's doing, all others the card's.
#[must_use]
pub fn judge(xid: u64) -> Fault {
    let what = match xid {
        13 | 31 | 43 | 45 | 68 | 109 => return Fault::Program { xid },
        48 | 94 | 95 => "uncorrectable memory error",
        62 | 119 | 120 => "its firmware does not answer",
        63 | 64 => "memory rows had to be retired",
        74 => "an NVLink error",
        79 => "it has fallen off the bus",
        _ => "the driver reports a critical error",
    };
    Fault::Card { why: format!("Xid {xid}: {what}") }
}

impl Cards {
    /// Opens the library, or the one that the machine's owner names.
    ///
    /// # Errors
    /// There is none, or no driver behind it: the machine has no cards, and this says why.
    pub fn open(library: Option<&Path>) -> Result<Self, String> {
        let path = library.unwrap_or(Path::new(LIBRARY));
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
        nvml.map(|nvml| Self { nvml }).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// All cards that answer. `reserve_mib` stays with the owner's desktop.
    #[must_use]
    pub fn list(&self, reserve_mib: u64) -> Vec<Gpu> {
        let driver = self.nvml.sys_driver_version().unwrap_or_default();
        let count = self.nvml.device_count().unwrap_or(0).min(CARDS_MAX);
        let mut found = Vec::new();
        for index in 0..count {
            match self.card(index, &driver, reserve_mib) {
                Ok(cards) => found.extend(cards),
                Err(error) => tracing::warn!(index, %error, "a card does not say what it is"),
            }
        }
        found
    }

    /// A card, or the instances that it is cut into.
    fn card(&self, index: u32, driver: &str, reserve_mib: u64) -> Result<Vec<Gpu>, NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let capability = device.cuda_compute_capability();
        let capability =
            capability.map_or((0, 0), |found| (found.major.unsigned_abs(), found.minor.unsigned_abs()));
        let whole = Gpu {
            uuid: device.uuid()?,
            model: device.name()?,
            memory_mib: (device.memory_info()?.total / MIB).saturating_sub(reserve_mib),
            driver: driver.to_owned(),
            capability,
            minor: device.minor_number().unwrap_or(index),
            level_max: Level::Exclusive.number(),
            ..Gpu::default()
        };
        if !device.mig_mode().is_ok_and(|mode| mode.current != 0) {
            return Ok(vec![whole]);
        }
        let mut instances = Vec::new();
        for at in 0..device.mig_device_count().unwrap_or(0).min(INSTANCES_MAX) {
            let Ok(instance) = device.mig_device_by_index(at) else { continue };
            let (Ok(uuid), Ok(memory)) = (instance.uuid(), instance.memory_info()) else { continue };
            let model = instance.name().unwrap_or_else(|_| format!("{} MIG", whole.model));
            let (memory_mib, level_max) = (memory.total / MIB, Level::Hardware.number());
            let parent = whole.uuid.clone();
            instances.push(Gpu { uuid, model, memory_mib, level_max, parent, ..whole.clone() });
        }
        Ok(instances)
    }

    /// Processes that compute or draw with any card, each once a card. What a card does not tell is left out.
    #[must_use]
    pub fn processes(&self) -> Vec<CardProcess> {
        let mut found: Vec<CardProcess> = Vec::new();
        for index in 0..self.nvml.device_count().unwrap_or(0).min(CARDS_MAX) {
            let Ok(device) = self.nvml.device_by_index(index) else { continue };
            let Ok(uuid) = device.uuid() else { continue };
            let listed = [device.running_compute_processes(), device.running_graphics_processes()];
            for process in listed.into_iter().flatten().flatten() {
                let memory_mib = match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
                    UsedGpuMemory::Unavailable => None,
                };
                let is_known = found.iter().any(|known| known.pid == process.pid && known.uuid == uuid);
                if !is_known {
                    found.push(CardProcess { uuid: uuid.clone(), pid: process.pid, memory_mib });
                }
            }
        }
        found
    }

    /// Hands `tell` every event of every card until it answers `false`; it is asked at least every `patience_ms`. Blocks.
    ///
    /// # Errors
    /// The driver has no events for these cards, or stops giving them.
    pub fn watch(
        &self,
        patience_ms: u32,
        tell: &mut dyn FnMut(Option<HealthEvent>) -> bool,
    ) -> Result<(), String> {
        let text = |error: NvmlError| error.to_string();
        let mut set = self.nvml.create_event_set().map_err(text)?;
        let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
        for index in 0..self.nvml.device_count().map_err(text)?.min(CARDS_MAX) {
            let device = self.nvml.device_by_index(index).map_err(text)?;
            let offered = device.supported_event_types().unwrap_or(wanted);
            set = device.register_events(wanted & offered, set).map_err(|error| error.to_string())?;
        }
        loop {
            let event = match set.wait(patience_ms) {
                Ok(event) => event,
                Err(NvmlError::Timeout) => {
                    if tell(None) {
                        continue;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.to_string()),
            };
            let fault = match event.event_data {
                Some(XidError::Value(xid)) => judge(xid),
                Some(XidError::Unknown) => Fault::Card { why: "a critical error without a number".into() },
                None => Fault::Card { why: "uncorrectable memory error".into() },
            };
            let uuid = event.device.uuid().map_err(text)?;
            if !tell(Some(HealthEvent { uuid, fault })) {
                return Ok(());
            }
        }
    }
}
