//! Which small objects share a blob, and in which order they lie in it. Pure: it is told what happens.
//!
//! ```text
//! nothing is written     ─> what comes is written at once, alone
//! something is written   ─> what comes waits, and goes together once that has ended, or has taken too long
//! enough waits           ─> it goes at once
//! ```
//!
//! Always: in the order in which they came; at most [`PACK_BYTES_MAX`] and [`PACK_OBJECTS_MAX`] in one pack; something waits only
//! as long as something else is under way.

use std::collections::VecDeque;

use makai_erasure::layout::PAGE_BYTES;
use makai_erasure::stripe::READ_WINDOW_BYTES;

/// Bytes of an object that may share a blob: a stripe of four data shards, of which nothing could be sent before it is whole. A blob
/// costs as much as some 128 KiB in it.
pub(super) const PACKED_BYTES_MAX: u64 = 4 * PAGE_BYTES;
/// Bytes of a pack: as much as is read at once.
pub(super) const PACK_BYTES_MAX: u64 = READ_WINDOW_BYTES;
pub(super) const PACK_OBJECTS_MAX: usize = 256;
/// Packs under way that others wait for.
const UNDER_WAY_MAX: usize = 1;

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// With its bytes.
    waiting: VecDeque<(u64, T)>,
    waiting_bytes: u64,
    under_way: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), waiting_bytes: 0, under_way: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, bytes: u64, object: T) {
        self.waiting.push_back((bytes, object));
        self.waiting_bytes += bytes;
    }

    /// The objects that go now as one pack, which is under way from now on.
    pub(super) fn begin(&mut self) -> Option<Vec<T>> {
        let is_full = self.waiting_bytes >= PACK_BYTES_MAX || self.waiting.len() >= PACK_OBJECTS_MAX;
        if self.under_way >= UNDER_WAY_MAX && !is_full {
            return None;
        }
        let (mut pack, mut pack_bytes) = (Vec::new(), 0);
        while let Some((bytes, _)) = self.waiting.front() {
            let fits = pack_bytes + bytes <= PACK_BYTES_MAX && pack.len() < PACK_OBJECTS_MAX;
            if !fits && !pack.is_empty() {
                break;
            }
            let Some((bytes, object)) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= bytes;
            pack_bytes += bytes;
            pack.push(object);
        }
        self.under_way += usize::from(!pack.is_empty());
        (!pack.is_empty()).then_some(pack)
    }

    /// A pack has ended, or takes so long that nothing waits for it any more: to be told once of each.
    pub(super) fn release(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Nothing waits, and nothing is waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }
}

/// In which order objects of these lengths lie in a pack, so that few of them reach over the end of a page: a page is read whole.
/// At a page's start comes the longest that is left, behind it what just fits in.
pub(super) fn order(lengths: &[u64]) -> Vec<usize> {
    let mut left: Vec<usize> = (0..lengths.len()).collect();
    left.sort_by_key(|at| lengths[*at]);
    let mut order = Vec::with_capacity(lengths.len());
    let mut end = 0;
    while let Some(last) = left.len().checked_sub(1) {
        let in_page = end % PAGE_BYTES;
        let fit = left.partition_point(|at| lengths[*at] <= PAGE_BYTES - in_page);
        let next = left.remove(if in_page == 0 || fit == 0 { last } else { fit - 1 });
        end += lengths[next];
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1024;

    #[test]
    fn one_that_comes_alone_goes_alone_and_those_that_come_meanwhile_go_together() {
        let mut queue = Queue::default();
        assert_eq!(queue.begin(), None::<Vec<u32>>);
        queue.push(8 * KIB, 1);
        assert_eq!(queue.begin(), Some(vec![1]));
        for object in 2..5 {
            queue.push(8 * KIB, object);
            assert_eq!(queue.begin(), None, "the first is being written");
        }
        queue.release();
        assert_eq!(queue.begin(), Some(vec![2, 3, 4]));
        queue.release();
        assert!(queue.is_idle());
    }

    #[test]
    fn a_full_pack_waits_for_nothing() {
        let mut queue = Queue::default();
        queue.push(8 * KIB, 0);
        assert_eq!(queue.begin(), Some(vec![0]));
        for object in 1..=PACK_BYTES_MAX / (512 * KIB) {
            assert_eq!(queue.begin(), None);
            queue.push(512 * KIB, object);
        }
        assert_eq!(queue.begin(), Some(vec![1, 2, 3, 4]));
        for object in 0..PACK_OBJECTS_MAX as u64 {
            assert_eq!(queue.begin(), None);
            queue.push(5 * KIB, object);
        }
        assert_eq!(queue.begin().map(|pack| pack.len()), Some(PACK_OBJECTS_MAX));
        assert!(!queue.is_idle());
    }

    #[test]
    fn objects_that_fill_pages_reach_over_none() {
        let lengths = [8, 64, 16, 8, 32, 128, 64, 8, 8, 16, 32].map(|kib| kib * KIB);
        let mut end = 0;
        for at in order(&lengths) {
            let (first, last) = (end / PAGE_BYTES, (end + lengths[at] - 1) / PAGE_BYTES);
            assert_eq!(last - first, (lengths[at] - 1) / PAGE_BYTES, "{at}");
            end += lengths[at];
        }
    }

    proptest! {
        /// Whatever comes and ends in whatever order: nothing is lost, doubled or overtaken, no pack is too large, and nothing waits
        /// while nothing is under way.
        #[test]
        fn all_go_in_their_order(events in prop::collection::vec(prop::option::of(1u64..=PACKED_BYTES_MAX), 0..300)) {
            let mut queue = Queue::default();
            let (mut pushed, mut begun, mut under_way) = (0u64, Vec::new(), 0usize);
            for event in events {
                match event {
                    Some(bytes) => {
                        queue.push(bytes, (pushed, bytes));
                        pushed += 1;
                    }
                    None if under_way > 0 => {
                        queue.release();
                        under_way -= 1;
                    }
                    None => {}
                }
                while let Some(pack) = queue.begin() {
                    under_way += 1;
                    prop_assert!(pack.iter().map(|(_, bytes)| bytes).sum::<u64>() <= PACK_BYTES_MAX);
                    prop_assert!((1..=PACK_OBJECTS_MAX).contains(&pack.len()));
                    begun.extend(pack.into_iter().map(|(number, _)| number));
                }
                prop_assert!(under_way > 0 || begun.len() as u64 == pushed);
                prop_assert_eq!(queue.is_idle(), under_way == 0);
            }
            prop_assert!(begun.iter().copied().eq(0..begun.len() as u64));
        }

        #[test]
        fn each_lies_in_a_pack_once(lengths in prop::collection::vec(1u64..200_000, 0..40)) {
            let mut found = order(&lengths);
            found.sort_unstable();
            prop_assert!(found.into_iter().eq(0..lengths.len()));
        }
    }
}
