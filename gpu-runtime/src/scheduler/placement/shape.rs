//! Demands and rooms in the form that placement compares: numbers, no names.

use crate::scheduler::model::{GPU_MILLI, NODE_GPUS_MAX, Node, Refusal};

/// Demands that are alike share a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeId(pub usize);

/// A demand with its names resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub scratch_mib: u64,
    /// 0: no GPU.
    pub cards: u32,
    pub milli: u32,
    pub card_memory_mib: u64,
    /// Kinds of cards that will do, by their number; `None`: all.
    pub kinds: Option<Vec<bool>>,
    pub level_min: u8,
    pub needs_shadow: bool,
    pub site: Option<u32>,
    pub trust_min_milli: u32,
}

impl Shape {
    #[must_use]
    pub fn gpu_milli(&self) -> u64 {
        u64::from(self.cards) * u64::from(self.milli)
    }

    fn allows(&self, card: &Card) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds[card.kind as usize])
    }

    /// Whether the card can take its part of the task now.
    #[must_use]
    pub fn fits_card(&self, card: &Card) -> bool {
        card.free_milli >= self.milli
            && card.free_memory_mib >= self.card_memory_mib
            && self.is_confined(card)
            && self.allows(card)
    }

    /// Whether the card can keep the task to its share as strictly as is demanded.
    fn is_confined(&self, card: &Card) -> bool {
        card.level_max >= self.level_min && (card.has_shadow || !self.needs_shadow)
    }
}

/// What is left of one card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    pub kind: u32,
    pub level_max: u8,
    pub has_shadow: bool,
    pub free_milli: u32,
    pub free_memory_mib: u64,
    pub memory_mib: u64,
}

/// What is left of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub is_open: bool,
    pub site: Option<u32>,
    pub trust_milli: u32,
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub scratch_mib: u64,
    pub cpu_milli_max: u64,
    pub memory_mib_max: u64,
    pub scratch_mib_max: u64,
    pub cards: Vec<Card>,
}

impl Room {
    /// The whole of a node. `kind` and `site` number the names.
    pub fn of(node: &Node, kind: &mut impl FnMut(&str) -> u32, site: &mut impl FnMut(&str) -> u32) -> Self {
        let card = |gpu: &crate::scheduler::model::Gpu| Card {
            kind: kind(&gpu.model),
            level_max: gpu.level_max,
            has_shadow: gpu.has_shadow,
            free_milli: GPU_MILLI,
            free_memory_mib: gpu.memory_mib,
            memory_mib: gpu.memory_mib,
        };
        Self {
            is_open: node.is_open,
            site: (!node.site.is_empty()).then(|| site(&node.site)),
            trust_milli: node.traits.trust_milli,
            cpu_milli: node.cpu_milli,
            memory_mib: node.memory_mib,
            scratch_mib: node.scratch_mib,
            cpu_milli_max: node.cpu_milli,
            memory_mib_max: node.memory_mib,
            scratch_mib_max: node.scratch_mib,
            cards: node.gpus.iter().take(NODE_GPUS_MAX).map(card).collect(),
        }
    }

    /// Whether a task of this shape can start here now.
    #[must_use]
    pub fn fits(&self, shape: &Shape) -> bool {
        self.is_open
            && self.cpu_milli >= shape.cpu_milli
            && self.memory_mib >= shape.memory_mib
            && self.scratch_mib >= shape.scratch_mib
            && (shape.site.is_none() || shape.site == self.site)
            && self.trust_milli >= shape.trust_min_milli
            && (shape.cards == 0
                || self.cards.iter().filter(|card| shape.fits_card(card)).count() >= shape.cards as usize)
    }

    /// Why it cannot; `None`: it can.
    #[must_use]
    pub fn refusal(&self, shape: &Shape) -> Option<Refusal> {
        let demanded = shape.cards as usize;
        let count = |test: &dyn Fn(&Card) -> bool| self.cards.iter().filter(|card| test(card)).count();
        let free: u64 = self.cards.iter().map(|card| u64::from(card.free_milli)).sum();
        let reasons = [
            (!self.is_open, Refusal::NotOpen),
            (shape.site.is_some() && shape.site != self.site, Refusal::WrongSite),
            (self.trust_milli < shape.trust_min_milli, Refusal::TooLittleTrust),
            (count(&|card| shape.allows(card)) < demanded, Refusal::NoSuchGpu),
            (count(&|card| shape.allows(card) && shape.is_confined(card)) < demanded, Refusal::LevelTooWeak),
            (
                self.cpu_milli_max < shape.cpu_milli
                    || self.memory_mib_max < shape.memory_mib
                    || self.scratch_mib_max < shape.scratch_mib
                    || count(&|card| shape.allows(card) && card.memory_mib >= shape.card_memory_mib)
                        < demanded,
                Refusal::TooSmall,
            ),
            (self.cpu_milli < shape.cpu_milli, Refusal::CpuTaken),
            (self.memory_mib < shape.memory_mib, Refusal::MemoryTaken),
            (self.scratch_mib < shape.scratch_mib, Refusal::ScratchTaken),
            (
                demanded > 0 && free >= shape.gpu_milli() && count(&|card| shape.fits_card(card)) < demanded,
                Refusal::GpuFragmented,
            ),
            (count(&|card| shape.fits_card(card)) < demanded, Refusal::GpuTaken),
        ];
        reasons.into_iter().find(|&(applies, _)| applies).map(|(_, refusal)| refusal)
    }

    /// Takes room away. Returns false, and takes nothing, where there is not enough: facts that disagree with the
    /// inventory, which then count as a full node.
    pub fn take(&mut self, shape: &Shape, cards: &[u16]) -> bool {
        let are_cards_free = cards.iter().all(|&card| {
            self.cards.get(usize::from(card)).is_some_and(|card| {
                card.free_milli >= shape.milli && card.free_memory_mib >= shape.card_memory_mib
            })
        });
        if !are_cards_free
            || self.cpu_milli < shape.cpu_milli
            || self.memory_mib < shape.memory_mib
            || self.scratch_mib < shape.scratch_mib
        {
            return false;
        }
        self.cpu_milli -= shape.cpu_milli;
        self.memory_mib -= shape.memory_mib;
        self.scratch_mib -= shape.scratch_mib;
        for &card in cards {
            let card = &mut self.cards[usize::from(card)];
            card.free_milli -= shape.milli;
            card.free_memory_mib -= shape.card_memory_mib;
        }
        true
    }

    /// Takes what can be taken: nothing is left where more is held than is known to be there.
    pub fn take_all_there_is(&mut self, shape: &Shape, cards: &[u16]) {
        self.cpu_milli = self.cpu_milli.saturating_sub(shape.cpu_milli);
        self.memory_mib = self.memory_mib.saturating_sub(shape.memory_mib);
        self.scratch_mib = self.scratch_mib.saturating_sub(shape.scratch_mib);
        for &card in cards {
            if let Some(card) = self.cards.get_mut(usize::from(card)) {
                card.free_milli = card.free_milli.saturating_sub(shape.milli);
                card.free_memory_mib = card.free_memory_mib.saturating_sub(shape.card_memory_mib);
            }
        }
    }

    /// Gives back what [`Room::take`] took; never more than the node has.
    pub fn give_back(&mut self, shape: &Shape, cards: &[u16]) {
        self.cpu_milli = self.cpu_milli.saturating_add(shape.cpu_milli).min(self.cpu_milli_max);
        self.memory_mib = self.memory_mib.saturating_add(shape.memory_mib).min(self.memory_mib_max);
        self.scratch_mib = self.scratch_mib.saturating_add(shape.scratch_mib).min(self.scratch_mib_max);
        for &card in cards {
            if let Some(card) = self.cards.get_mut(usize::from(card)) {
                card.free_milli = card.free_milli.saturating_add(shape.milli).min(GPU_MILLI);
                card.free_memory_mib =
                    card.free_memory_mib.saturating_add(shape.card_memory_mib).min(card.memory_mib);
            }
        }
    }
}
