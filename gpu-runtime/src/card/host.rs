//! This machine's cards: what is offered of them, what is closed and why, and whether one more slice fits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::nvml::{Cards, Fault, HealthEvent};
use crate::inventory::Gpu;
use crate::slice::arbiter::SliceId;
use crate::slice::desk::Desk;
use crate::slice::ladder::{self, Abilities, Program, Wanted};
use crate::slice::{Card, Kind, SM_MILLIS_WHOLE, Slice};

/// How long the driver is asked for an event before the thread looks whether it is still wanted.
const WATCH_PATIENCE_MS: u32 = 1000;

/// Why a card takes nothing that its owner has taken back.
pub const PAUSED: &str = "its owner has taken it back";

/// What the owner of the machine decides about its cards.
#[derive(Debug, Clone, Default)]
pub struct HostConfig {
    /// The driver's libraries; `None`: as the system finds them.
    pub cuda_library: Option<PathBuf>,
    pub nvml_library: Option<PathBuf>,
    /// Of each card, for the owner's desktop.
    pub reserve_mib: u64,
    /// Containers may have shares of cards, kept within them by a library in front of the driver's.
    pub shares_for_containers: bool,
    /// Folder of the desk's socket.
    pub desk: PathBuf,
    /// Where it is kept which cards the owner has taken back; `None`: until this process ends.
    pub paused: Option<PathBuf>,
}

/// This machine's cards.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    cards: Option<Cards>,
    desk: Option<Desk>,
    /// Why a card takes nothing, by its id.
    closed: Mutex<BTreeMap<String, String>>,
    /// Cards that the owner has taken back.
    paused: Mutex<BTreeSet<String>>,
    /// Cards that programs of the machine's own use, and which.
    lent: Mutex<BTreeMap<String, String>>,
    /// Whether containers get shares; until it is known, they do not.
    shadow: OnceLock<Result<(), String>>,
}

/// A slice that was let in, and why in this way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub slice: Slice,
    pub why: String,
    /// Number of the card's device node.
    pub minor: u32,
}

impl Host {
    /// Looks for the driver's libraries. A machine without them has no cards, which is said once in its log.
    ///
    /// # Errors
    /// The machine has cards, and its desk cannot be opened.
    pub fn open(config: HostConfig) -> std::io::Result<Self> {
        let cards = match Cards::open(config.nvml_library.as_deref()) {
            Ok(cards) => Some(cards),
            Err(why) => {
                tracing::info!(why, "no GPU is offered");
                None
            }
        };
        let desk = match &cards {
            Some(_) => Some(Desk::open(&config.desk)?),
            None => None,
        };
        let paused = match &config.paused {
            Some(path) if path.exists() => serde_json::from_slice(&std::fs::read(path)?)?,
            _ => BTreeSet::new(),
        };
        let paused = Mutex::new(paused);
        Ok(Self {
            config,
            cards,
            desk,
            closed: Mutex::default(),
            paused,
            lent: Mutex::default(),
            shadow: OnceLock::new(),
        })
    }

    /// Closes cards whose driver reports that they are ill, as long as anyone holds `host`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(host: &Arc<Self>) -> std::io::Result<()> {
        if host.cards.is_none() {
            return Ok(());
        }
        let watched = Arc::downgrade(host);
        let body = move || {
            while let Some(host) = watched.upgrade() {
                let Some(cards) = host.cards() else { return };
                let ended = cards.watch(WATCH_PATIENCE_MS, &mut |event| match event {
                    Some(HealthEvent { uuid, fault: Fault::Card { why } }) => {
                        tracing::error!(uuid, why, "a card is ill and takes no more tasks");
                        host.close(&uuid, &why);
                        true
                    }
                    Some(HealthEvent { uuid, fault: Fault::Program { xid } }) => {
                        tracing::warn!(uuid, xid, "a program on a card did what it may not");
                        true
                    }
                    // Nobody else holds it: the end.
                    None => Arc::strong_count(&host) > 1,
                });
                if let Err(why) = ended {
                    tracing::info!(why, "the health of this machine's cards is not told");
                    return;
                }
            }
        };
        std::thread::Builder::new().name("gpu-health".into()).spawn(body).map(drop)
    }

    #[must_use]
    pub fn cuda_library(&self) -> Option<&Path> {
        self.config.cuda_library.as_deref()
    }

    /// Whether it is to be found out if containers can have shares.
    #[must_use]
    pub fn wants_shadow(&self) -> bool {
        self.cards.is_some() && self.config.shares_for_containers
    }

    /// What was found out of that; the first answer stays.
    pub fn set_shadow(&self, found: Result<(), String>) {
        if let Err(why) = &found {
            tracing::warn!(why, "containers get whole cards alone");
        }
        let _ = self.shadow.set(found);
    }

    fn has_shadow(&self) -> bool {
        matches!(self.shadow.get(), Some(Ok(())))
    }

    #[must_use]
    pub fn desk(&self) -> Option<&Desk> {
        self.desk.as_ref()
    }

    #[must_use]
    pub fn cards(&self) -> Option<&Cards> {
        self.cards.as_ref()
    }

    /// All cards, with what closes them.
    #[must_use]
    pub fn list(&self) -> Vec<Gpu> {
        let mut found =
            self.cards.as_ref().map_or_else(Vec::new, |cards| cards.list(self.config.reserve_mib));
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        for gpu in &mut found {
            if let Some(why) = lent.get(&gpu.uuid).or_else(|| lent.get(&gpu.parent)) {
                gpu.closed.clone_from(why);
            }
            if paused.contains(&gpu.uuid) || paused.contains(&gpu.parent) {
                PAUSED.clone_into(&mut gpu.closed);
            }
            gpu.has_shadow = self.has_shadow();
            if let Some(why) = closed.get(&gpu.uuid).or_else(|| closed.get(&gpu.parent)) {
                gpu.closed = why.clone();
            }
        }
        found
    }

    /// The owner takes cards back, or gives them to tasks again; `uuid`: one of them or an instance of one, `None`: all. Answers those
    /// that it concerns, with their instances. What runs on them is the caller's to end.
    ///
    /// # Errors
    /// There is no such card, or it cannot be kept beyond a restart: then nothing has changed.
    pub fn pause(&self, uuid: Option<&str>, is_paused: bool) -> std::io::Result<Vec<Gpu>> {
        let missing = |text: String| std::io::Error::new(std::io::ErrorKind::NotFound, text);
        let concerned: Vec<Gpu> = self
            .list()
            .into_iter()
            .filter(|gpu| uuid.is_none_or(|uuid| gpu.uuid == uuid || gpu.parent == uuid))
            .collect();
        if concerned.is_empty() {
            let uuid = uuid.map_or_else(|| "at all".to_owned(), str::to_owned);
            return Err(missing(format!("this machine has no card {uuid}")));
        }
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = paused.clone();
        for gpu in &concerned {
            match is_paused {
                true => _ = next.insert(gpu.uuid.clone()),
                false => {
                    next.remove(&gpu.uuid);
                    next.remove(&gpu.parent);
                }
            }
        }
        if let Some(path) = &self.config.paused {
            let part = path.with_extension("part");
            std::fs::write(&part, serde_json::to_vec(&next)?)?;
            std::fs::rename(part, path)?;
        }
        *paused = next;
        Ok(concerned)
    }

    /// A program of the machine's own uses a card, or none does any more.
    pub fn lend(&self, uuid: &str, why: Option<String>) {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => _ = lent.insert(uuid.to_owned(), why),
            None => _ = lent.remove(uuid),
        }
    }

    /// The card that an instance is a part of.
    #[must_use]
    pub fn parent_of(&self, uuid: &str) -> Option<String> {
        let found = self.list().into_iter().find(|gpu| gpu.uuid == uuid)?;
        (!found.parent.is_empty()).then_some(found.parent)
    }

    /// Gives nothing of a card to tasks any more, and says why.
    pub fn close(&self, uuid: &str, why: &str) {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).insert(uuid.to_owned(), why.to_owned());
    }

    /// Gives a card to tasks again.
    pub fn reopen(&self, uuid: &str) {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).remove(uuid);
    }

    /// Lets a slice onto its card beside those that are there, in the strictest way that will do.
    ///
    /// # Errors
    /// Why it does not fit here.
    pub fn admit(&self, slice: &Slice, program: Program, others: &[Slice]) -> Result<Admitted, String> {
        let gpu = self.list().into_iter().find(|gpu| gpu.uuid == slice.gpu_uuid);
        let gpu = gpu.ok_or_else(|| format!("this machine has no card {}", slice.gpu_uuid))?;
        if !gpu.closed.is_empty() {
            return Err(format!("the card {} takes no tasks: {}", gpu.uuid, gpu.closed));
        }
        let others: Vec<&Slice> = others.iter().filter(|other| other.gpu_uuid == gpu.uuid).collect();
        let is_whole = slice.kind != Kind::Shared || slice.sm_millis == SM_MILLIS_WHOLE;
        let is_instance = !gpu.parent.is_empty();
        // Who names no amount gets as much of the memory as of the time.
        let its_part =
            || gpu.memory_mib * u64::from(slice.sm_millis.min(SM_MILLIS_WHOLE)) / u64::from(SM_MILLIS_WHOLE);
        let memory_mib = if slice.memory_mib == 0 { its_part() } else { slice.memory_mib };
        let abilities = Abilities {
            driver_major: gpu.driver_major(),
            // A share of an instance is a share of a card; a whole one has a wall around it.
            is_mig_on: is_instance && is_whole,
            has_free_mig_instance: is_instance && is_whole,
            has_shadow: self.has_shadow(),
            ..Abilities::default()
        };
        let wanted = Wanted {
            program,
            is_whole: is_whole && !is_instance,
            level_min: slice.enforcement,
            // Who asks for a share of a card for a container agrees to it; who does not demands a stricter level.
            shares_under_shadow: true,
            is_among_own: others.is_empty(),
            is_card_free: others.is_empty(),
        };
        let choice = ladder::choose(&abilities, &wanted).map_err(|error| error.to_string())?;
        let mut slice = Slice { enforcement: choice.level, memory_mib, ..slice.clone() };
        if choice.level == ladder::Level::Exclusive {
            (slice.kind, slice.sm_millis) = (Kind::Whole, SM_MILLIS_WHOLE);
        }
        let mut card = Card::new(gpu.uuid.clone(), gpu.memory_mib, 0);
        for (id, other) in (1..).zip(others) {
            // What runs already stays, whatever the sums say now.
            let _ = card.admit(SliceId(id), other.clone());
        }
        card.admit(SliceId(0), slice.clone()).map_err(|error| error.to_string())?;
        Ok(Admitted { slice, why: ladder::explain(&choice.rungs), minor: gpu.minor })
    }
}
