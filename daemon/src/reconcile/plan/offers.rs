//! What an attempt asks of a machine, what machines offer, and what fits.
//!
//! ```text
//! resources of a task ─ demand ─┐
//!                               ├─ fits, level, never ─> so many at once, kept apart so well, or why on no machine ever
//! inventory of a machine ───────┴─ place ─> the scheduler's node
//! ```
//!
//! Pure. Always: a card that is closed offers nothing now, and counts where it is asked what could ever run.

use std::collections::BTreeSet;

use makai_gpu_runtime::inventory::{self, Inventory};
use makai_gpu_runtime::scheduler::{Demand, Gpu, GpuDemand, Node as Place, NodeNumber};
use makai_gpu_runtime::slice::Level;
use makai_raft::facts::jobs::Resources;

use super::NODE_ATTEMPTS_MAX;

const MIB: u64 = 1 << 20;

/// A number for a model of cards, as predictions are grouped.
pub(super) fn model_number(model: &str) -> u64 {
    blake3::hash(model.as_bytes()).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// What one attempt holds of a node.
pub fn demand(resources: &Resources, site: &str, is_module: bool) -> Demand {
    let gpu = resources.gpu.as_ref().map(|share| GpuDemand {
        cards: share.cards.max(1),
        milli: if share.cards > 0 { 1000 } else { share.sm_millis },
        memory_mib: share.memory_mib,
        models: if share.model.is_empty() { Vec::new() } else { vec![share.model.clone()] },
        // A closed card gives 0. A container brings host code of its own: it gets a card, or an instance of one, to itself, or
        // what keeps it to a share.
        level_min: share.level_min.max(match (is_module, share.cards > 0) {
            (true, _) | (false, false) => Level::Shadow.number(),
            (false, true) => Level::Hardware.number(),
        }),
        needs_shadow: !is_module && share.cards == 0,
    });
    Demand {
        cpu_milli: resources.cpu_millis.into(),
        memory_mib: resources.memory_bytes.div_ceil(MIB),
        scratch_mib: resources.scratch_bytes.div_ceil(MIB),
        gpu,
        site: site.to_owned(),
        trust_min_milli: 0,
    }
}

/// What a node offers, in the scheduler's words.
pub fn place(number: u64, site: &str, offer: &Inventory, is_open: bool) -> Place {
    // A closed card stays in its place, so that what runs on others keeps its number, but offers nothing.
    let card = |gpu: &makai_gpu_runtime::inventory::Gpu| match gpu.closed.is_empty() {
        true => Gpu {
            model: gpu.model.clone(),
            memory_mib: gpu.memory_mib,
            level_max: gpu.level_max,
            has_shadow: gpu.has_shadow,
        },
        false => Gpu { model: "\u{0}closed".into(), memory_mib: 0, level_max: 0, has_shadow: false },
    };
    Place {
        number: NodeNumber(number),
        site: site.to_owned(),
        cpu_milli: offer.cpu_millis,
        memory_mib: offer.memory_bytes / MIB,
        scratch_mib: offer.scratch_bytes / MIB,
        gpus: offer.gpus.iter().map(card).collect(),
        is_open,
        ..Place::default()
    }
}

/// How many such attempts an idle node could run at once.
#[must_use]
pub fn fits(offer: &Inventory, demand: &Demand) -> u32 {
    let place = place(0, &demand.site, offer, true);
    let times = |has: u64, wanted: u64| has.checked_div(wanted).unwrap_or(u64::MAX);
    let cards = demand.gpu.as_ref().map_or(u64::MAX, |gpu| {
        let is_fit = |card: &&Gpu| {
            card.level_max >= gpu.level_min
                && (card.has_shadow || !gpu.needs_shadow)
                && card.memory_mib >= gpu.memory_mib
                && (gpu.models.is_empty() || gpu.models.iter().any(|model| card.model.contains(model)))
        };
        let fit = place.gpus.iter().filter(is_fit);
        if gpu.milli >= 1000 {
            return times(fit.count() as u64, gpu.cards.into());
        }
        fit.map(|card| times(1000, gpu.milli.into()).min(times(card.memory_mib, gpu.memory_mib))).sum()
    });
    let least = times(place.cpu_milli, demand.cpu_milli)
        .min(times(place.memory_mib, demand.memory_mib))
        .min(times(place.scratch_mib, demand.scratch_mib))
        .min(cards)
        .min(NODE_ATTEMPTS_MAX as u64);
    u32::try_from(least).unwrap_or(u32::MAX)
}

/// Why no machine could ever run such an attempt, even if it were idle; `None`: one could. `machines`: all that run jobs, with
/// their sites. Pure.
#[must_use]
pub fn never(machines: &[(&str, &Inventory)], demand: &Demand) -> Option<String> {
    const WHO: &str = "no machine of this cluster could ever run a task of it";
    if machines.is_empty() {
        return Some(format!("{WHO}: none has the role compute"));
    }
    let of_site = |(site, _): &&(&str, &Inventory)| demand.site.is_empty() || *site == demand.site;
    // A card that its owner has taken back may be given again.
    let open = |gpu: &inventory::Gpu| inventory::Gpu { closed: String::new(), ..gpu.clone() };
    let offers: Vec<Inventory> = machines
        .iter()
        .filter(of_site)
        .map(|(_, offer)| Inventory { gpus: offer.gpus.iter().map(open).collect(), ..(*offer).clone() })
        .collect();
    if offers.is_empty() {
        let sites: BTreeSet<&str> =
            machines.iter().map(|(site, _)| *site).filter(|site| !site.is_empty()).collect();
        let sites = match sites.is_empty() {
            true => "none says of which site it is".to_owned(),
            false => format!("there are {}", sites.into_iter().collect::<Vec<_>>().join(", ")),
        };
        return Some(format!("{WHO}: none is of site {:?}; {sites}", demand.site));
    }
    if offers.iter().any(|offer| fits(offer, demand) > 0) {
        return None;
    }
    let cores = |millis: u64| format!("{} cores", millis as f64 / 1000.0);
    let gib = |mib: u64| format!("{:.1} GiB", mib as f64 / 1024.0);
    let most = |of: fn(&Inventory) -> u64| offers.iter().map(of).max().unwrap_or(0);
    let cpu = most(|offer| offer.cpu_millis);
    let memory = most(|offer| offer.memory_bytes / MIB);
    let scratch = most(|offer| offer.scratch_bytes / MIB);
    let mut too_much = Vec::new();
    if demand.cpu_milli > cpu {
        too_much.push(format!(
            "it asks for {}, the largest machine offers {}",
            cores(demand.cpu_milli),
            cores(cpu)
        ));
    }
    if demand.memory_mib > memory {
        let asked = gib(demand.memory_mib);
        too_much.push(format!("it asks for {asked} of memory, the largest machine offers {}", gib(memory)));
    }
    if demand.scratch_mib > scratch {
        let asked = gib(demand.scratch_mib);
        too_much
            .push(format!("it asks for {asked} of scratch, the largest machine offers {} now", gib(scratch)));
    }
    too_much.extend(demand.gpu.as_ref().and_then(|gpu| lacking_gpu(&offers, gpu)));
    if too_much.is_empty() {
        too_much.push(format!(
            "none has all that it asks for together; the most of each is {}, {} of memory, {} of scratch",
            cores(cpu),
            gib(memory),
            gib(scratch)
        ));
    }
    Some(format!("{WHO}: {}", too_much.join("; ")))
}

/// What of a demand for cards no machine has.
fn lacking_gpu(offers: &[Inventory], wanted: &GpuDemand) -> Option<String> {
    let cards = || offers.iter().flat_map(|offer| &offer.gpus);
    if cards().next().is_none() {
        return Some("it asks for a GPU, and no machine has one".into());
    }
    let is_model =
        |model: &str| wanted.models.is_empty() || wanted.models.iter().any(|part| model.contains(part));
    let of_model = || cards().filter(|card| is_model(&card.model));
    if of_model().next().is_none() {
        let models: BTreeSet<&str> = cards().map(|card| card.model.as_str()).collect();
        let models = models.into_iter().collect::<Vec<_>>().join(", ");
        return Some(format!("it asks for a GPU {:?}, and there are: {models}", wanted.models.join(", ")));
    }
    let largest = of_model().map(|card| card.memory_mib).max().unwrap_or(0);
    if wanted.memory_mib > largest {
        return Some(format!(
            "it asks for {} MiB of a GPU's memory, the largest such card has {largest}",
            wanted.memory_mib
        ));
    }
    let at_once = |offer: &Inventory| offer.gpus.iter().filter(|card| is_model(&card.model)).count();
    let most = offers.iter().map(at_once).max().unwrap_or(0);
    if wanted.milli >= 1000 && wanted.cards as usize > most {
        return Some(format!("it asks for {} GPUs, the largest machine has {most} such", wanted.cards));
    }
    let is_kept = |card: &&inventory::Gpu| {
        card.level_max >= wanted.level_min && (card.has_shadow || !wanted.needs_shadow)
    };
    (!of_model().any(|card| is_kept(&card)))
        .then(|| "no GPU there keeps a task to its share as strictly as it asks".to_owned())
}

/// What would keep such an attempt to its card or its share of one, on a node on which it fits: by its number.
#[must_use]
pub fn level(offer: &Inventory, demand: &Demand, share_level: u8) -> Option<u8> {
    let gpu = demand.gpu.as_ref()?;
    if gpu.milli < 1000 {
        return Some(share_level);
    }
    let strong = offer.gpus.iter().filter(|card| card.closed.is_empty() && card.level_max >= gpu.level_min);
    strong.map(|card| card.level_max).min()
}
