//! Looks at who uses this machine's cards: whether somebody else wants one back, and whether a task takes more memory than its slice.
//!
//! ```text
//! driver's list of processes ─ whose is each (by its parents) ─> observe ─> a card is wanted, is free again | an attempt has too much
//! ```
//!
//! Pure but for [`whose`], which reads `/proc`. What always holds: a task is blamed only after two looks in a row; a card that its
//! owner uses stays his until nobody of his was seen on it for [`QUIET_MS`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A card that was in use is free again when it was not for so long.
pub const QUIET_MS: u64 = 30_000;
/// Looks in a row at which an attempt has too much before it is ended.
const LOOKS: u32 = 2;
/// Memory of a slice beyond which an attempt is ended: a twentieth, and what contexts take that nobody asked for.
const ALLOWED_PART: u64 = 20;
const ALLOWED_MIB: u64 = 64;
/// Of each process: its context, with the code and the stacks of its kernels.
const CONTEXT_MIB: u64 = 768;
/// Parents that are looked at: containers nest a few processes deep, and a tenant's own may go on.
const PARENTS_MAX: usize = 256;

/// A process that uses a card, as the driver lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardProcess {
    /// The card's, or the whole card's of an instance.
    pub uuid: String,
    pub pid: u32,
    /// `None`: the driver does not say.
    pub memory_mib: Option<u64>,
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// An attempt's, by its name.
    Attempt(String),
    /// Somebody else's, by its program's name.
    Other(String),
    /// It is gone.
    Nobody,
}

/// Finds whose a process is by its parents. `workers`: attempts by the process that looks after each.
#[must_use]
pub fn whose(pid: u32, workers: &BTreeMap<u32, String>) -> Owner {
    let mut at = pid;
    for _ in 0..PARENTS_MAX {
        if let Some(attempt) = workers.get(&at) {
            return Owner::Attempt(attempt.clone());
        }
        match parent_of(at) {
            Some(parent) if parent > 1 => at = parent,
            Some(_) => break,
            None if at == pid => return Owner::Nobody,
            None => break,
        }
    }
    let name = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"));
    name.map_or(Owner::Nobody, |name| Owner::Other(name.trim().to_owned()))
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may hold anything; the parent is the second field behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Somebody of the machine's own uses the card.
    Wanted { uuid: String, program: String },
    /// Nobody does any more.
    Free { uuid: String },
    /// An attempt takes more memory of its cards than it was given.
    TooMuch { attempt: String, used_mib: u64, slice_mib: u64 },
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Guard {
    /// Cards that are wanted, and when somebody of the machine's own was seen last.
    wanted: BTreeMap<String, u64>,
    /// Attempts that had too much, and how often in a row.
    too_much: BTreeMap<String, u32>,
}

impl Guard {
    /// Judges one look. `ignored`: programs that may use cards beside tasks, the desktop's own; `slices`: what attempts were given, in
    /// MiB, those with a card to themselves left out.
    pub fn observe(
        &mut self,
        seen: &[(CardProcess, Owner)],
        ignored: &[String],
        slices: &BTreeMap<String, u64>,
        now_ms: u64,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (process, owner) in seen {
            let Owner::Other(program) = owner else { continue };
            if ignored.contains(program) {
                continue;
            }
            if self.wanted.insert(process.uuid.clone(), now_ms).is_none() {
                findings.push(Finding::Wanted { uuid: process.uuid.clone(), program: program.clone() });
            }
        }
        let free = self.wanted.extract_if(.., |_, at| now_ms.saturating_sub(*at) >= QUIET_MS);
        findings.extend(free.map(|(uuid, _)| Finding::Free { uuid }));
        let mut used: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (process, owner) in seen {
            if let (Owner::Attempt(attempt), Some(mib)) = (owner, process.memory_mib) {
                let sum = used.entry(attempt).or_default();
                *sum = (sum.0.saturating_add(mib), sum.1 + 1);
            }
        }
        let mut above = BTreeSet::new();
        for (attempt, (used_mib, processes)) in used {
            let Some(&slice_mib) = slices.get(attempt) else { continue };
            let allowed =
                slice_mib + slice_mib / ALLOWED_PART + ALLOWED_MIB + processes.saturating_mul(CONTEXT_MIB);
            if used_mib > allowed {
                above.insert(attempt.to_owned());
                let looks = self.too_much.entry(attempt.to_owned()).or_default();
                *looks += 1;
                if *looks == LOOKS {
                    findings.push(Finding::TooMuch { attempt: attempt.to_owned(), used_mib, slice_mib });
                }
            }
        }
        self.too_much.retain(|attempt, _| above.contains(attempt));
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(uuid: &str, memory_mib: u64, owner: Owner) -> (CardProcess, Owner) {
        (CardProcess { uuid: uuid.into(), pid: 1, memory_mib: Some(memory_mib) }, owner)
    }

    fn other(name: &str) -> Owner {
        Owner::Other(name.into())
    }

    /// A game takes the card at its first look and gives it back only when it has been gone for a while; the desktop takes nothing.
    #[test]
    fn an_owners_program_takes_the_card_until_it_is_quiet() {
        let (mut guard, ignored, none) = (Guard::default(), ["Xorg".to_owned()], BTreeMap::new());
        let mut look =
            |processes: &[(CardProcess, Owner)], now| guard.observe(processes, &ignored, &none, now);
        assert_eq!(look(&[seen("A", 1, other("Xorg")), seen("A", 1, Owner::Nobody)], 0), []);
        let game = [seen("A", 1, other("game"))];
        assert_eq!(look(&game, 1), [Finding::Wanted { uuid: "A".into(), program: "game".into() }]);
        assert_eq!(look(&game, 20_000), []);
        assert_eq!(look(&[], 49_999), []);
        assert_eq!(look(&[], 50_000), [Finding::Free { uuid: "A".into() }]);
        assert_eq!(look(&[], 90_000), []);
    }

    /// Too much is too much in sum, twice in a row, beyond what contexts take; what has a card to itself is not looked at.
    #[test]
    fn an_attempt_is_ended_when_it_has_too_much_twice() {
        let slices = BTreeMap::from([("one".to_owned(), 1000)]);
        let mut guard = Guard::default();
        let mut look = |mib: u64| {
            let of = |name: &str| Owner::Attempt(name.into());
            let processes =
                [seen("A", mib, of("one")), seen("A", mib, of("one")), seen("A", 90_000, of("whole"))];
            guard.observe(&processes, &[], &slices, 0)
        };
        assert_eq!(look(1325), [], "1000 and a twentieth, 64, and two contexts");
        assert_eq!(look(1326), []);
        assert_eq!(look(1000), [], "once is nothing");
        assert_eq!(look(1326), []);
        assert_eq!(look(1326), [Finding::TooMuch { attempt: "one".into(), used_mib: 2652, slice_mib: 1000 }]);
        assert_eq!(look(1326), [], "it is told once");
    }

    #[test]
    fn a_process_is_its_workers() {
        let own = std::process::id();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let workers = BTreeMap::from([(own, "job-1".to_owned())]);
        assert_eq!(whose(child.id(), &workers), Owner::Attempt("job-1".into()));
        assert!(matches!(whose(child.id(), &BTreeMap::new()), Owner::Other(_)));
        let pid = child.id();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(whose(pid, &workers), Owner::Nobody);
    }
}
