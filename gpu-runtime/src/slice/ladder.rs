//! How strictly a slice's limits are enforced, and which way is chosen for a job: the ladder.
//!
//! | level       | limits are kept by                                             | chosen when                          |
//! |-------------|----------------------------------------------------------------|--------------------------------------|
//! | `Exclusive` | the slice is the whole card                                    | asked for, or nothing weaker will do |
//! | `Hardware`  | a MIG instance                                                 | the card is cut, or may be cut       |
//! | `Kernel`    | driver and kernel: MPS with the dmem cgroup                    | all of one tenant: faults are shared |
//! | `OwnedHost` | our own process, which alone allocates and launches            | the job is a module                  |
//! | `Shadow`    | a library in front of the driver's, with a watchdog            | containers whose owners agree to it  |
//! | `Advisory`  | nothing but placement                                          | asked for by name                    |
//!
//! A tenant can find ways around `Shadow` and `Advisory`; they are fair among the honest and no wall. So a container of a tenant
//! that does not share willingly gets a whole card.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What keeps a slice within its limits; higher is stricter. The number is part of quotes, receipts and usage records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    #[default]
    Advisory = 0,
    Shadow = 1,
    OwnedHost = 2,
    Kernel = 3,
    Hardware = 4,
    Exclusive = 5,
}

impl Level {
    /// Strictest first.
    pub const LADDER: [Self; 6] =
        [Self::Exclusive, Self::Hardware, Self::Kernel, Self::OwnedHost, Self::Shadow, Self::Advisory];

    /// `None`: no level has this number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        Self::LADDER.into_iter().find(|level| level.number() == number)
    }

    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Hardware => "hardware",
            Self::Kernel => "kernel",
            Self::OwnedHost => "owned-host",
            Self::Shadow => "shadow",
            Self::Advisory => "advisory",
        })
    }
}

/// What a card and its machine can do, as probed at start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Major version of the driver; 0: none.
    pub driver_major: u32,
    /// The card is in MIG mode now.
    pub is_mig_on: bool,
    /// A MIG instance of a fitting size exists and is free.
    pub has_free_mig_instance: bool,
    /// The node's owner lets us create instances.
    pub may_create_mig_instances: bool,
    pub has_cgroup_v2: bool,
    /// The kernel's device-memory controller.
    pub has_dmem_cgroup: bool,
    /// The shadow library passed its self-test against this driver.
    pub has_shadow: bool,
}

/// First driver whose MPS keeps memory limits by the dmem cgroup.
pub const MPS_DMEM_DRIVER_MAJOR: u32 = 615;
/// First driver that the worker's interface needs.
pub const DRIVER_MAJOR_MIN: u32 = 450;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Device code only: our worker owns the host side.
    Module,
    Container,
}

/// What a job asks of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub program: Program,
    /// The whole card is asked for.
    pub is_whole: bool,
    pub level_min: Level,
    /// Its tenant agrees to share a card with strangers under [`Level::Shadow`].
    pub shares_under_shadow: bool,
    /// All other slices of the card are its own tenant's.
    pub is_among_own: bool,
    /// No other slice is on the card.
    pub is_card_free: bool,
}

/// A rung, and why it was taken or passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    pub level: Level,
    /// `Ok`: it will do.
    pub verdict: Result<&'static str, &'static str>,
}

/// The chosen level with the reason, and all rungs that were looked at, in the order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub level: Level,
    pub rungs: Vec<Rung>,
}

/// No rung will do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no way to run this job here: {}", explain(.rungs))]
pub struct NoLevel {
    pub rungs: Vec<Rung>,
}

/// One line for a person.
#[must_use]
pub fn explain(rungs: &[Rung]) -> String {
    let line = |rung: &Rung| {
        let (Ok(text) | Err(text)) = rung.verdict;
        format!("{}: {text}", rung.level)
    };
    rungs.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// Chooses the rung for a job: of those that will do the strictest that does not take more of the card than was asked for,
/// and the whole card only when asked for or when nothing else will do.
///
/// # Errors
/// Nothing will do; each rung says why.
pub fn choose(abilities: &Abilities, wanted: &Wanted) -> Result<Choice, NoLevel> {
    let shared = Level::LADDER.into_iter().filter(|level| *level != Level::Exclusive);
    let order: Vec<Level> = match wanted.is_whole {
        true => vec![Level::Exclusive],
        false => shared.chain([Level::Exclusive]).collect(),
    };
    let mut rungs = Vec::new();
    for level in order {
        let verdict = if level < wanted.level_min {
            Err("weaker than the customer accepts")
        } else {
            judge(level, abilities, wanted)
        };
        rungs.push(Rung { level, verdict });
        if verdict.is_ok() {
            return Ok(Choice { level, rungs });
        }
    }
    Err(NoLevel { rungs })
}

fn judge(level: Level, abilities: &Abilities, wanted: &Wanted) -> Result<&'static str, &'static str> {
    if abilities.driver_major < DRIVER_MAJOR_MIN {
        return Err("no driver, or one older than 450");
    }
    match level {
        Level::Exclusive if abilities.is_mig_on => Err("the card is cut into MIG instances"),
        Level::Exclusive if !wanted.is_card_free => Err("other slices are on the card"),
        Level::Exclusive if wanted.is_whole => Ok("the whole card was asked for"),
        Level::Exclusive => Ok("no weaker way keeps this job from strangers"),
        Level::Hardware if !abilities.is_mig_on => Err("the card is not in MIG mode"),
        Level::Hardware if abilities.has_free_mig_instance => Ok("a free MIG instance fits"),
        Level::Hardware if abilities.may_create_mig_instances => Ok("a MIG instance may be created"),
        Level::Hardware => Err("no free MIG instance fits, and the owner does not let us create one"),
        _ if abilities.is_mig_on => Err("the card is cut into MIG instances"),
        Level::Kernel if abilities.driver_major < MPS_DMEM_DRIVER_MAJOR => Err("needs driver 615"),
        Level::Kernel if !(abilities.has_cgroup_v2 && abilities.has_dmem_cgroup) => {
            Err("needs cgroup v2 with the dmem controller")
        }
        Level::Kernel if !wanted.is_among_own => Err("one tenant's fault would end another's work"),
        Level::Kernel => Ok("limits are kept by driver and kernel, among one tenant's own jobs"),
        Level::OwnedHost if wanted.program == Program::Module => {
            Ok("our worker allocates and launches for it")
        }
        Level::OwnedHost => Err("a container brings its own host code"),
        Level::Shadow if !abilities.has_shadow => Err("the shadow library did not pass its self-test here"),
        Level::Shadow if wanted.is_among_own => Ok("the card is its tenant's alone"),
        Level::Shadow if wanted.shares_under_shadow => Ok("its tenant agreed to share under the shadow"),
        Level::Shadow => Err("its tenant does not share a card under limits that can be got around"),
        Level::Advisory if wanted.is_among_own => Ok("the card is its tenant's alone"),
        Level::Advisory => Err("nothing would keep its limits among strangers"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_abilities() -> impl Strategy<Value = Abilities> {
        (prop_oneof![Just(0), Just(449), Just(580), Just(620)], any::<[bool; 6]>()).prop_map(
            |(driver_major, [is_mig_on, has_instance, may_create, v2, dmem, has_shadow])| Abilities {
                driver_major,
                is_mig_on,
                has_free_mig_instance: has_instance,
                may_create_mig_instances: may_create,
                has_cgroup_v2: v2,
                has_dmem_cgroup: dmem,
                has_shadow,
            },
        )
    }

    fn any_wanted() -> impl Strategy<Value = Wanted> {
        (any::<[bool; 5]>(), 0_usize..6).prop_map(|([module, whole, shares, own, free], level)| Wanted {
            program: if module { Program::Module } else { Program::Container },
            is_whole: whole,
            level_min: Level::LADDER[level],
            shares_under_shadow: shares,
            is_among_own: own || free,
            is_card_free: free,
        })
    }

    proptest! {
        /// Never weaker than asked for, never a stranger's container beside others without a wall or consent, and every rung that was
        /// passed over says why.
        #[test]
        fn a_choice_keeps_its_promises(abilities in any_abilities(), wanted in any_wanted()) {
            match choose(&abilities, &wanted) {
                Ok(Choice { level, rungs }) => {
                    prop_assert!(level >= wanted.level_min);
                    prop_assert!(!wanted.is_whole || level == Level::Exclusive);
                    prop_assert!(abilities.driver_major >= 450);
                    if !wanted.is_among_own && wanted.program == Program::Container {
                        let is_wall = level == Level::Hardware || level == Level::Exclusive;
                        prop_assert!(is_wall || (level == Level::Shadow && wanted.shares_under_shadow));
                    }
                    let (last, passed) = rungs.split_last().expect("the chosen rung is there");
                    prop_assert!(last.level == level && last.verdict.is_ok());
                    prop_assert!(passed.iter().all(|rung| rung.verdict.is_err()));
                }
                Err(NoLevel { rungs }) => {
                    prop_assert!(rungs.iter().all(|rung| rung.verdict.is_err()));
                    prop_assert_eq!(rungs.len(), if wanted.is_whole { 1 } else { 6 });
                }
            }
        }
    }

    const PLAIN: Abilities = Abilities {
        driver_major: 580,
        is_mig_on: false,
        has_free_mig_instance: false,
        may_create_mig_instances: false,
        has_cgroup_v2: true,
        has_dmem_cgroup: false,
        has_shadow: true,
    };

    /// What a consumer card does: modules share, a stranger's container gets the card or goes elsewhere.
    #[test]
    fn a_consumer_card_shares_modules_and_isolates_containers() {
        let module = Wanted {
            program: Program::Module,
            is_whole: false,
            level_min: Level::Advisory,
            shares_under_shadow: false,
            is_among_own: false,
            is_card_free: false,
        };
        let container = Wanted { program: Program::Container, ..module };
        let level = |wanted: &Wanted| choose(&PLAIN, wanted).map(|choice| choice.level);
        assert_eq!(level(&module), Ok(Level::OwnedHost));
        assert_eq!(level(&Wanted { shares_under_shadow: true, ..container }), Ok(Level::Shadow));
        let refused = choose(&PLAIN, &container).expect_err("strangers are on the card");
        assert!(refused.to_string().contains("shadow: its tenant does not share"), "{refused}");
        assert!(refused.to_string().contains("exclusive: other slices are on the card"), "{refused}");
        let strict = Wanted { level_min: Level::Shadow, is_card_free: true, ..container };
        assert_eq!(level(&strict), Ok(Level::Exclusive));
    }
}
