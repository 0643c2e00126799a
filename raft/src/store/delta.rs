//! Changes that the database does not hold yet.
//!
//! A database pays for each commit by the pages it touches, whatever the commit brings; most of what one batch of
//! commands writes the next ones write again (counters, replies, what tenants use). So changes gather here, and go to
//! the database many batches at a time. Nothing is lost by that: a commit that is not synced is no safer than memory,
//! and the log holds what is not synced.
//!
//! A delta is layers, from old to new, none of which ever changes. A new layer is merged with those before it that are
//! not much larger, so that there are few; who holds a delta sees it unchanged.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

/// What keys are to hold; `None`: to be deleted.
pub type Layer = BTreeMap<Vec<u8>, Option<Bytes>>;

/// What a scan hands pairs to.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

#[derive(Clone, Default)]
pub struct Delta {
    layers: Vec<Arc<Layer>>,
    /// Layers at the front that are on their way to the database: nothing is merged with them.
    folding: usize,
    /// Keys and values pushed since the last fold began.
    bytes: usize,
}

impl Delta {
    /// What is said of the key, if anything is.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.layers.iter().rev().find_map(|layer| layer.get(key)).map(Option::as_ref)
    }

    /// Layers, the newest first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().rev().map(|layer| &**layer)
    }

    /// Bytes of keys and values pushed since the last fold began.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, mut layer: Layer) {
        if layer.is_empty() {
            return;
        }
        let bytes =
            |(key, change): (&Vec<u8>, &Option<Bytes>)| key.len() + change.as_ref().map_or(0, Bytes::len);
        self.bytes += layer.iter().map(bytes).sum::<usize>();
        while self.layers.len() > self.folding
            && let Some(older) = self.layers.pop_if(|older| older.len() <= 2 * layer.len())
        {
            let mut older = Arc::unwrap_or_clone(older);
            older.append(&mut layer);
            layer = older;
        }
        self.layers.push(Arc::new(layer));
    }

    /// All there is, to be written to the database, after which [`end_fold`](Self::end_fold) forgets it here. One
    /// fold at a time.
    pub fn begin_fold(&mut self) -> Self {
        self.folding = self.layers.len();
        self.bytes = 0;
        self.clone()
    }

    pub fn end_fold(&mut self) {
        self.layers.drain(..self.folding);
        self.folding = 0;
    }
}

/// What layers, the newest first, say of the keys of `from..to`: in order, each key once, from the newest that names it.
pub struct Merged<'a> {
    ranges: Vec<Peekable<Range<'a, Vec<u8>, Option<Bytes>>>>,
}

impl<'a> Merged<'a> {
    pub fn new(layers: impl Iterator<Item = &'a Layer>, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Self {
        let ranges = layers.map(|layer| layer.range::<[u8], _>((from, to)).peekable());
        Self { ranges: ranges.filter_map(|mut range| range.peek().is_some().then_some(range)).collect() }
    }

    pub fn peek(&mut self) -> Option<(&'a [u8], Option<&'a Bytes>)> {
        let mut least: Option<(&'a [u8], Option<&'a Bytes>)> = None;
        for range in &mut self.ranges {
            if let Some(&(key, change)) = range.peek()
                && least.is_none_or(|(least, _)| key.as_slice() < least)
            {
                least = Some((key, change.as_ref()));
            }
        }
        least
    }

    /// Passes `key`, the one that [`peek`](Self::peek) gave.
    pub fn pass(&mut self, key: &[u8]) {
        for range in &mut self.ranges {
            range.next_if(|(next, _)| next.as_slice() == key);
        }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a [u8], Option<&'a Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, change) = self.peek()?;
        self.pass(key);
        Some((key, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(Vec<(u8, Option<u8>)>),
        BeginFold,
        EndFold,
        Hold,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let changes = prop::collection::vec((0u8..20, any::<Option<u8>>()), 0..8);
        let step = prop_oneof![
            6 => changes.prop_map(Step::Push),
            1 => Just(Step::BeginFold),
            1 => Just(Step::EndFold),
            1 => Just(Step::Hold),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// What a database and a delta over it hold together.
    fn seen(database: &BTreeMap<Vec<u8>, Bytes>, delta: &Delta) -> BTreeMap<Vec<u8>, Bytes> {
        let mut all = database.clone();
        for (key, change) in Merged::new(delta.layers(), Bound::Unbounded, Bound::Unbounded) {
            match change {
                Some(value) => _ = all.insert(key.to_vec(), value.clone()),
                None => _ = all.remove(key),
            }
        }
        all
    }

    proptest! {
        /// Whatever is pushed and folded when: all that was ever pushed is seen, the latest of each key, by reading one
        /// key and by walking; who holds a delta goes on seeing what it saw; layers stay few.
        #[test]
        fn pushes_are_seen_whenever_they_are_folded(steps in steps()) {
            let (mut delta, mut database, mut model) = (Delta::default(), BTreeMap::new(), BTreeMap::new());
            let mut folding: Option<Delta> = None;
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Step::Push(changes) => {
                        let mut layer = Layer::new();
                        for (key, value) in changes {
                            let value = value.map(|value| Bytes::from(vec![value]));
                            match &value {
                                Some(value) => _ = model.insert(vec![key], value.clone()),
                                None => _ = model.remove(&vec![key]),
                            }
                            layer.insert(vec![key], value);
                        }
                        delta.push(layer);
                    }
                    Step::BeginFold if folding.is_none() => folding = Some(delta.begin_fold()),
                    Step::EndFold => if let Some(folded) = folding.take() {
                        database = seen(&database, &folded);
                        prop_assert_eq!(&seen(&database, &delta), &model, "between the commit and the forgetting");
                        delta.end_fold();
                    },
                    Step::Hold => held.push((database.clone(), delta.clone(), model.clone())),
                    Step::BeginFold => {}
                }
                prop_assert_eq!(&seen(&database, &delta), &model);
                for key in 0u8..20 {
                    let got = match delta.get(&[key]) {
                        Some(change) => change.cloned(),
                        None => database.get(&vec![key]).cloned(),
                    };
                    prop_assert_eq!(got.as_ref(), model.get(&vec![key]));
                }
                prop_assert!(delta.layers.len() <= 2 * 20usize.ilog2() as usize + 2);
            }
            for (database, delta, model) in held {
                prop_assert_eq!(seen(&database, &delta), model);
            }
        }
    }
}
