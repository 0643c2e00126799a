//! The oracle is the crate `reed-solomon-erasure`, whose code shares nothing with this one.

use proptest::{collection::vec, prelude::*, sample::Index};
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::*;

const SCHEMES: [(u8, u8); 12] =
    [(2, 2), (4, 3), (6, 4), (10, 6), (16, 8), (16, 12), (4, 2), (8, 3), (10, 4), (20, 10), (1, 2), (29, 11)];

/// Empty, shorter than a vector, around every vector and step, several chunks, and a rest.
const LENS: [usize; 14] = [0, 1, 15, 17, 63, 64, 65, 127, 128, 129, 192, 2048, 2049, 4096 + 128 + 31];

fn scheme(data: u8, parity: u8) -> Scheme {
    Scheme::new(data, parity).unwrap()
}

/// Bytes without a pattern, the same for the same seed.
fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.wrapping_mul(0xD6E8_FEB8_6659_FD93).to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// All shards of a stripe, by the oracle.
fn stripe(scheme: Scheme, len: usize, seed: usize) -> Vec<Vec<u8>> {
    let data = usize::from(scheme.data);
    let mut shards: Vec<Vec<u8>> = (0..scheme.shard_count())
        .map(|shard| if shard < data { noise(len, seed * 64 + shard) } else { vec![0; len] })
        .collect();
    // The oracle refuses empty shards and codes without parity.
    if len > 0 && scheme.parity > 0 {
        ReedSolomon::new(data, scheme.parity.into()).unwrap().encode(&mut shards).unwrap();
    }
    shards
}

/// A slice of `len` bytes that lies `offset` bytes after an aligned address.
struct Placed {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Placed {
    fn new(len: usize, offset: usize) -> Self {
        let bytes = vec![0xA5; len + 256];
        let start = bytes.as_ptr().align_offset(64) + offset;
        Self { bytes, start, len }
    }

    fn of(content: &[u8], offset: usize) -> Self {
        let mut placed = Self::new(content.len(), offset);
        placed.slice().copy_from_slice(content);
        placed
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    /// Nothing was written beside the slice.
    fn is_intact(&self) -> bool {
        self.bytes[..self.start].iter().chain(&self.bytes[self.start + self.len..]).all(|byte| *byte == 0xA5)
    }
}

/// Rebuilds `wanted` from `present`, given in this order, and compares.
fn check_rebuild(
    codec: &Codec,
    shards: &[Vec<u8>],
    present: &[usize],
    wanted: &[usize],
    access: Option<Access>,
) {
    let given: Vec<(usize, &[u8])> =
        present.iter().map(|index| (*index, shards[*index].as_slice())).collect();
    let mut rebuilt: Vec<Vec<u8>> = wanted.iter().map(|_| vec![0xA5; shards[0].len()]).collect();
    let mut outputs: Vec<(usize, &mut [u8])> =
        wanted.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
    codec.rebuild_by(&given, &mut outputs, access).unwrap();
    for (index, bytes) in wanted.iter().zip(&rebuilt) {
        assert!(*bytes == shards[*index], "{codec:?}: shard {index} from {present:?}");
    }
}

/// Every kernel of this CPU makes the oracle's parity, aligned or not, cached or streaming, and writes nothing
/// beside it.
#[test]
fn parity_is_the_oracles() {
    for kernel in Kernel::available() {
        for (data, parity) in SCHEMES {
            let scheme = scheme(data, parity);
            let codec = Codec::with_kernel(scheme, kernel).unwrap();
            for len in LENS {
                let shards = stripe(scheme, len, len);
                for (access, input_offset, output_offset) in [
                    (None, 0, 0),
                    (Some(Access::Cached), 1, 3),
                    (Some(Access::Streaming), 5, 0),
                    (Some(Access::Streaming), 0, 16),
                ] {
                    let inputs: Vec<Placed> = shards[..data.into()]
                        .iter()
                        .enumerate()
                        .map(|(index, shard)| Placed::of(shard, input_offset * (index + 1)))
                        .collect();
                    let inputs: Vec<&[u8]> = inputs.iter().map(Placed::get).collect();
                    let mut outputs: Vec<Placed> =
                        (0..parity).map(|_| Placed::new(len, output_offset)).collect();
                    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Placed::slice).collect();
                    codec.encode_by(&inputs, &mut slices, access).unwrap();
                    for (output, expected) in outputs.iter().zip(&shards[data.into()..]) {
                        assert!(output.get() == expected, "{codec:?} {len} bytes, {access:?}");
                        assert!(output.is_intact(), "{codec:?} {len} bytes, {access:?}");
                    }
                }
            }
        }
    }
}

/// Above the limit of a cached stripe, without a hint.
#[test]
fn a_large_stripe_is_the_oracles() {
    for kernel in Kernel::available() {
        for (data, parity) in [(4, 2), (16, 12)] {
            let scheme = scheme(data, parity);
            let shards = stripe(scheme, 300_001, 7);
            let codec = Codec::with_kernel(scheme, kernel).unwrap();
            let inputs: Vec<&[u8]> = shards[..data.into()].iter().map(Vec::as_slice).collect();
            let mut outputs = vec![vec![0; shards[0].len()]; parity.into()];
            let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            codec.encode(&inputs, &mut slices).unwrap();
            assert!(outputs == shards[data.into()..], "{codec:?}");
        }
    }
}

/// Any k shards give every other shard, for all sets of k of the small schemes.
#[test]
fn every_loss_pattern_of_small_schemes_is_rebuilt() {
    for kernel in Kernel::available() {
        for (data, parity) in [(2, 2), (4, 2), (4, 3), (6, 4)] {
            let scheme = scheme(data, parity);
            let codec = Codec::with_kernel(scheme, kernel).unwrap();
            let shards = stripe(scheme, 141, 3);
            let count = scheme.shard_count();
            for set in (0u32..1 << count).filter(|set| set.count_ones() == u32::from(data)) {
                let (present, lost): (Vec<usize>, Vec<usize>) =
                    (0..count).partition(|shard| set >> shard & 1 == 1);
                check_rebuild(&codec, &shards, &present, &lost, None);
                for shard in lost {
                    check_rebuild(&codec, &shards, &present, &[shard], None);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Any k shards in any order give any others, whatever the scheme, length and kernel.
    #[test]
    fn any_k_shards_give_the_others(
        (data, parity) in prop_oneof![
            prop::sample::select(&SCHEMES[..]),
            (1u8..=40, 0u8..=24),
        ],
        len in prop_oneof![0usize..300, 2000usize..5000],
        order in vec(any::<Index>(), 64),
        wanted in 1usize..=24,
        kernel in any::<Index>(),
        is_streaming: bool,
        seed in 0usize..1000,
    ) {
        let scheme = scheme(data, parity);
        let kernels: Vec<Kernel> = Kernel::available().collect();
        let codec = Codec::with_kernel(scheme, *kernel.get(&kernels)).unwrap();
        let shards = stripe(scheme, len, seed);
        let mut rest: Vec<usize> = (0..scheme.shard_count()).collect();
        let mut shuffled: Vec<usize> = Vec::new();
        for pick in &order[..rest.len()] {
            shuffled.push(rest.swap_remove(pick.index(rest.len())));
        }
        let (present, lost) = shuffled.split_at(data.into());
        let access = if is_streaming { Access::Streaming } else { Access::Cached };
        check_rebuild(&codec, &shards, present, &lost[..wanted.min(lost.len())], Some(access));
        // Once more, by the plan in the cache, the k in another order, and one of them asked for again.
        let turned: Vec<usize> = present.iter().rev().copied().collect();
        check_rebuild(&codec, &shards, &turned, &lost[..wanted.min(lost.len())], Some(access));
        check_rebuild(&codec, &shards, &turned, &[present[0]], Some(access));
    }

    /// A plan is the product that the whole inverse of the k rows gives.
    #[test]
    fn a_plan_is_the_product_by_the_whole_inverse(
        (data, parity) in (1usize..=20, 0usize..=12),
        order in vec(any::<Index>(), 32),
    ) {
        let generator = Matrix::generator(data, data + parity);
        let mut rest: Vec<usize> = (0..data + parity).collect();
        let mut present: Vec<usize> =
            order[..data].iter().map(|pick| rest.swap_remove(pick.index(rest.len()))).collect();
        present.sort_unstable();
        rest.sort_unstable();
        let set = |shards: &[usize]| shards.iter().fold(0u64, |set, shard| set | 1 << shard);
        let rows = |shards: &[usize]| Matrix::from_fn(shards.len(), data, |row, column| generator.at(shards[row], column));
        let whole = rows(&rest).times(&rows(&present).inverse().unwrap());
        let pattern = Pattern { present: set(&present), wanted: set(&rest) };
        prop_assert_eq!(plan::decode_matrix(&generator, pattern), whole);
    }
}

/// More patterns than the cache holds: plans replace each other, and every rebuild is still right.
#[test]
fn a_full_cache_of_plans_replaces_the_old_ones() {
    let scheme = scheme(10, 6);
    let codec = Codec::new(scheme).unwrap();
    let shards = stripe(scheme, 130, 11);
    for _ in 0..2 {
        for lost in 0..16 {
            for also in lost + 1..16 {
                let present: Vec<usize> =
                    (0..16).filter(|shard| *shard != lost && *shard != also).take(10).collect();
                for wanted in [vec![lost], vec![also], vec![lost, also]] {
                    check_rebuild(&codec, &shards, &present, &wanted, None);
                }
            }
        }
    }
}

/// Threads that share a codec, its cache too small for their patterns, disturb each other in nothing.
#[test]
fn threads_share_a_codec() {
    let scheme = scheme(6, 4);
    let codec = Codec::new(scheme).unwrap();
    let shards = stripe(scheme, 100, 5);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (codec, shards) = (codec.clone(), &shards);
            scope.spawn(move || {
                for set in (0u32..1 << 10).map(|set| set ^ thread << 3).filter(|set| set.count_ones() == 6) {
                    let (present, lost): (Vec<usize>, Vec<usize>) =
                        (0..10).partition(|shard| set >> shard & 1 == 1);
                    check_rebuild(&codec, shards, &present, &lost, None);
                }
            });
        }
    });
}

#[test]
fn one_data_shard_means_copies_and_no_parity_means_no_work() {
    let copies = Codec::new(scheme(1, 3)).unwrap();
    let bytes = noise(1000, 1);
    let mut parity = vec![vec![0; 1000]; 3];
    copies.encode(&[&bytes], &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
    assert_eq!(parity, [bytes.clone(), bytes.clone(), bytes.clone()]);
    check_rebuild(
        &copies,
        &[bytes.clone(), bytes.clone(), bytes.clone(), bytes.clone()],
        &[2],
        &[0, 3],
        None,
    );

    let bare = Codec::new(scheme(3, 0)).unwrap();
    bare.encode(&[&bytes, &bytes, &bytes], &mut []).unwrap();
    check_rebuild(&bare, &[bytes.clone(), bytes.clone(), bytes], &[2, 0, 1], &[1], None);
}

#[test]
fn bad_calls_are_refused_and_write_nothing() {
    let scheme = scheme(3, 2);
    let codec = Codec::new(scheme).unwrap();
    let bytes = noise(64, 2);
    let encode = |data_lens: &[usize], parity_lens: &[usize]| {
        let data: Vec<&[u8]> = data_lens.iter().map(|len| &bytes[..*len]).collect();
        let mut parity: Vec<Vec<u8>> = parity_lens.iter().map(|len| vec![0xA5; *len]).collect();
        let result = codec.encode(&data, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        assert!(parity.concat().iter().all(|byte| *byte == 0xA5));
        result.unwrap_err()
    };
    assert_eq!(
        encode(&[9, 9], &[9, 9]),
        CodecError::SliceCount { scheme, kind: "data", got: 2, expected: 3 }
    );
    assert_eq!(
        encode(&[9, 9, 9], &[9]),
        CodecError::SliceCount { scheme, kind: "parity", got: 1, expected: 2 }
    );
    assert_eq!(encode(&[9, 8, 9], &[9, 9]), CodecError::UnequalLength { index: 1, got: 8, expected: 9 });
    assert_eq!(encode(&[9, 9, 9], &[9, 10]), CodecError::UnequalLength { index: 4, got: 10, expected: 9 });

    let rebuild = |present: &[(usize, usize)], wanted: &[(usize, usize)]| {
        let present: Vec<(usize, &[u8])> =
            present.iter().map(|(index, len)| (*index, &bytes[..*len])).collect();
        let mut outputs: Vec<Vec<u8>> = wanted.iter().map(|(_, len)| vec![0xA5; *len]).collect();
        let mut slices: Vec<(usize, &mut [u8])> =
            wanted.iter().map(|(index, _)| *index).zip(outputs.iter_mut().map(Vec::as_mut_slice)).collect();
        let result = codec.rebuild(&present, &mut slices);
        assert!(outputs.concat().iter().all(|byte| *byte == 0xA5));
        result.unwrap_err()
    };
    let good = [(0, 9), (1, 9), (3, 9)];
    assert_eq!(rebuild(&good[..2], &[(2, 9)]), CodecError::TooFewShards { scheme, have: 2, need: 3 });
    assert_eq!(rebuild(&[], &[(2, 9)]), CodecError::TooFewShards { scheme, have: 0, need: 3 });
    assert_eq!(rebuild(&[(0, 9), (1, 9), (0, 9)], &[(2, 9)]), CodecError::Repeated { index: 0 });
    assert_eq!(rebuild(&[(0, 9), (1, 9), (5, 9)], &[(2, 9)]), CodecError::NoSuchShard { scheme, index: 5 });
    assert_eq!(
        rebuild(&[(0, 9), (usize::MAX, 9), (1, 9)], &[(2, 9)]),
        CodecError::NoSuchShard { scheme, index: usize::MAX }
    );
    assert_eq!(rebuild(&good, &[(2, 9), (2, 9)]), CodecError::Repeated { index: 2 });
    assert_eq!(rebuild(&good, &[(2, 9), (64, 9)]), CodecError::NoSuchShard { scheme, index: 64 });
    assert_eq!(rebuild(&good, &[(2, 8)]), CodecError::UnequalLength { index: 2, got: 8, expected: 9 });
    assert_eq!(
        rebuild(&[(0, 9), (1, 9), (3, 7)], &[(2, 9)]),
        CodecError::UnequalLength { index: 3, got: 7, expected: 9 }
    );
}

#[test]
fn schemes_of_no_stripe_are_refused() {
    for (data, parity) in [(0, 0), (0, 4), (60, 5), (255, 255)] {
        assert!(matches!(Codec::new(Scheme { data, parity }), Err(CodecError::Scheme(_))), "{data}+{parity}");
    }
    for (data, parity) in [(64, 0), (1, 63), (32, 32), (63, 1)] {
        let scheme = scheme(data, parity);
        let shards = stripe(scheme, 200, 1);
        let last: Vec<usize> = (usize::from(parity)..scheme.shard_count()).collect();
        let lost: Vec<usize> = (0..parity.into()).collect();
        check_rebuild(&Codec::new(scheme).unwrap(), &shards, &last, &lost, None);
    }
}

/// Shards of 4 + 2 as they were first stored: a change of field, matrix or order of rows would show here even if
/// the oracle changed with it.
#[test]
fn the_format_of_parity_never_changes() {
    let data: [&[u8]; 4] =
        [&[1, 0, 0, 0, 0x53], &[0, 1, 0, 0, 0xCA], &[0, 0, 1, 0, 0x01], &[0, 0, 0, 1, 0xFF]];
    let mut parity = [[0; 5]; 2];
    let [first, second] = &mut parity;
    Codec::new(scheme(4, 2)).unwrap().encode(&data, &mut [first, second]).unwrap();
    assert_eq!(parity, [[0x1B, 0x1C, 0x12, 0x14, 0xa1], [0x1C, 0x1B, 0x14, 0x12, 0x77]]);
}

#[test]
fn every_kernel_passes_the_self_test_and_the_best_is_named() {
    self_test().unwrap();
    for kernel in Kernel::available() {
        self_test_of(kernel).unwrap();
    }
    assert!(Kernel::available().any(|kernel| kernel.name() == kernel_name()));
    assert!(Kernel::available().last() == Some(Kernel::Portable));
}
