//! Bytes that programs wrote and the pool does not have yet.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

/// Pieces of a file by offset; none overlaps another, none is empty. What was written last stands.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    pieces: BTreeMap<u64, BytesMut>,
    bytes: usize,
}

fn end_of(start: u64, length: usize) -> u64 {
    start.saturating_add(length as u64)
}

impl WriteBuffer {
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    #[must_use]
    pub fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// The first offset behind all pieces, 0 without any.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(start, piece)| end_of(*start, piece.len()))
    }

    /// Cost: the bytes written, and those of pieces that become one with them.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = end_of(offset, data.len());
        let before = self.pieces.range(..=offset).next_back();
        let home =
            before.filter(|(start, piece)| end_of(**start, piece.len()) >= offset).map(|(start, _)| *start);
        let home = home.unwrap_or(offset);
        let piece = self.pieces.entry(home).or_default();
        let at = (offset - home) as usize;
        let is_over = (piece.len() - at).min(data.len());
        piece[at..at + is_over].copy_from_slice(&data[..is_over]);
        piece.extend_from_slice(&data[is_over..]);
        self.bytes += data.len() - is_over;
        self.join(home, end);
    }

    /// Takes the pieces that begin below `end`, behind `home`, into `home`.
    fn join(&mut self, home: u64, end: u64) {
        loop {
            let next = self.pieces.range(home + 1..).next().map(|(start, _)| *start);
            let Some(next) = next.filter(|next| *next < end) else { return };
            let Some(piece) = self.pieces.remove(&next) else { return };
            let covered = ((end - next) as usize).min(piece.len());
            self.bytes -= covered;
            if let Some(home) = self.pieces.get_mut(&home) {
                home.extend_from_slice(&piece[covered..]);
            }
        }
    }

    /// Forgets what lies at `size` and behind it.
    pub fn truncate(&mut self, size: u64) {
        let behind = self.pieces.split_off(&size);
        self.bytes -= behind.values().map(BytesMut::len).sum::<usize>();
        if let Some((start, piece)) = self.pieces.iter_mut().next_back() {
            let keep = ((size - start) as usize).min(piece.len());
            self.bytes -= piece.len() - keep;
            piece.truncate(keep);
        }
    }

    /// All pieces in order; the buffer is empty afterwards.
    pub fn take(&mut self) -> Vec<(u64, Bytes)> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces).into_iter().map(|(start, piece)| (start, piece.freeze())).collect()
    }

    /// Writes what the buffer has of `offset..` over `out`.
    pub fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let end = end_of(offset, out.len());
        let first = self.pieces.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (start, piece) in self.pieces.range(first..end) {
            lay_piece_over(*start, piece, offset, out);
        }
    }

    /// Whether it has all of a range.
    #[must_use]
    pub fn covers(&self, offset: u64, length: usize) -> bool {
        let before = self.pieces.range(..=offset).next_back();
        before.is_some_and(|(start, piece)| end_of(*start, piece.len()) >= end_of(offset, length))
    }
}

/// Writes what a piece at `start` has of `offset..` over `out`.
pub fn lay_piece_over(start: u64, piece: &[u8], offset: u64, out: &mut [u8]) {
    let from = start.max(offset);
    let to = end_of(start, piece.len()).min(end_of(offset, out.len()));
    if from < to {
        let length = (to - from) as usize;
        let (source, target) = ((from - start) as usize, (from - offset) as usize);
        out[target..target + length].copy_from_slice(&piece[source..source + length]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..200, prop::collection::vec(1u8.., 0..60)).prop_map(|(at, data)| Step::Write(at, data)),
            2 => (0u64..260).prop_map(Step::Truncate),
            1 => Just(Step::Take),
        ]
    }

    proptest! {
        /// Against one byte of memory for each byte of the file: `None` where nothing is buffered.
        #[test]
        fn what_was_written_last_is_read(steps in prop::collection::vec(step(), 1..60)) {
            let mut buffer = WriteBuffer::default();
            let mut model: Vec<Option<u8>> = vec![None; 300];
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        buffer.write(at, &data);
                        for (target, byte) in model[at as usize..].iter_mut().zip(&data) {
                            *target = Some(*byte);
                        }
                    }
                    Step::Truncate(size) => {
                        buffer.truncate(size);
                        model[size as usize..].fill(None);
                    }
                    Step::Take => {
                        let mut taken = vec![None; 300];
                        let mut end = 0;
                        for (start, piece) in buffer.take() {
                            prop_assert!(start >= end && !piece.is_empty());
                            end = start + piece.len() as u64;
                            taken[start as usize..end as usize].iter_mut().zip(&piece).for_each(|(t, b)| *t = Some(*b));
                        }
                        prop_assert_eq!(&taken, &model);
                        model.fill(None);
                    }
                }
                let count = model.iter().flatten().count();
                prop_assert_eq!(buffer.bytes(), count);
                prop_assert_eq!(buffer.is_empty(), count == 0);
                prop_assert_eq!(buffer.end(), model.iter().rposition(Option::is_some).map_or(0, |at| at as u64 + 1));
                for (offset, length) in [(0, 300), (50, 10), (120, 100)] {
                    let mut out = vec![0; length];
                    buffer.lay_over(offset as u64, &mut out);
                    let expected: Vec<u8> = model[offset..offset + length].iter().map(|b| b.unwrap_or(0)).collect();
                    prop_assert_eq!(out, expected);
                    if buffer.covers(offset as u64, length) {
                        prop_assert!(model[offset..offset + length].iter().all(Option::is_some));
                    }
                }
            }
        }
    }
}
