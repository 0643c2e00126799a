//! How fast stripes are coded on one core: `cargo bench -p makai-erasure --bench codec [-- FILTER]`.
//!
//! Every figure is CPU time of this thread, so that a busy machine changes it little; what is compared is
//! measured in turns, sample by sample, and each figure is the median of the faster half of its samples.
//! GB/s are 10^9 bytes of data (k cells) per second. "hot": one stripe over and over. "DRAM": a walk through
//! [`DRAM_BYTES`] of stripes. `oracle` is the crate `reed-solomon-erasure`; `read` adds up the data as words, the
//! speed at which this core merely reads it. FILTER keeps the cases whose line contains it.

use std::hint::black_box;

use makai_erasure::{
    Scheme,
    codec::{Codec, Kernel},
};
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Far more than any cache holds.
const DRAM_BYTES: usize = 1 << 30;
/// CPU time of one sample.
const SAMPLE_SECONDS: f64 = 0.004;
const SAMPLES: usize = 25;

/// CPU seconds of this thread.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Stripes of k + m cells, side by side.
struct Stripes {
    bytes: Vec<u8>,
    start: usize,
    scheme: Scheme,
    cell_len: usize,
    count: usize,
    next: usize,
}

impl Stripes {
    fn new(scheme: Scheme, cell_len: usize, count: usize) -> Self {
        const HUGE_PAGE: usize = 2 << 20;
        let len = count * scheme.shard_count() * cell_len;
        let mut bytes: Vec<u8> = Vec::with_capacity(len + HUGE_PAGE);
        let start = bytes.as_ptr().align_offset(HUGE_PAGE);
        let mut state = 1u64;
        bytes.resize_with(start + len, || {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (state >> 56) as u8
        });
        Self { bytes, start, scheme, cell_len, count, next: 0 }
    }

    fn next(&mut self) -> Vec<&mut [u8]> {
        let stripe_len = self.scheme.shard_count() * self.cell_len;
        let at = self.start + self.next * stripe_len;
        self.next = (self.next + 1) % self.count;
        self.bytes[at..at + stripe_len].chunks_exact_mut(self.cell_len).collect()
    }

    fn data_bytes(&self) -> usize {
        usize::from(self.scheme.data) * self.cell_len
    }
}

type Act<'a> = Box<dyn FnMut(&mut [&mut [u8]]) + 'a>;

/// GB/s of each act, all measured in turns.
fn measure(stripes: &mut Stripes, acts: &mut [(String, Act<'_>)]) -> Vec<f64> {
    let mut rounds = vec![1usize; acts.len()];
    let mut samples = vec![Vec::new(); acts.len()];
    // The first two turns warm up and find how many rounds fill a sample.
    for turn in 0..SAMPLES + 2 {
        for ((rounds, samples), (_, act)) in rounds.iter_mut().zip(&mut samples).zip(acts.iter_mut()) {
            let mut run = |rounds: usize| {
                let begin = cpu_seconds();
                for _ in 0..rounds {
                    act(black_box(&mut stripes.next()));
                }
                cpu_seconds() - begin
            };
            if turn < 2 {
                let mut seconds = run(*rounds);
                while seconds < SAMPLE_SECONDS / 2.0 {
                    *rounds *= 2;
                    seconds = run(*rounds);
                }
            } else {
                let seconds = run(*rounds);
                samples.push((*rounds * stripes.data_bytes()) as f64 / seconds / 1e9);
            }
        }
    }
    samples
        .iter_mut()
        .map(|samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() * 3 / 4]
        })
        .collect()
}

fn encode(stripe: &mut [&mut [u8]], codec: &Codec) {
    let (data, parity) = stripe.split_at_mut(codec.scheme().data.into());
    let mut inputs = [&[][..]; 64];
    for (input, cell) in inputs.iter_mut().zip(&*data) {
        *input = cell;
    }
    codec.encode(&inputs[..data.len()], parity).expect("the stripe is the scheme's");
}

/// Rebuilds the first `lost` data cells from the last k cells.
fn rebuild(stripe: &mut [&mut [u8]], codec: &Codec, lost: usize) {
    let (wanted, present) = stripe.split_at_mut(lost);
    let present: Vec<(usize, &[u8])> =
        present.iter().enumerate().map(|(index, cell)| (index + lost, &**cell)).collect();
    let mut wanted: Vec<(usize, &mut [u8])> =
        wanted.iter_mut().enumerate().map(|(index, cell)| (index, &mut **cell)).collect();
    codec.rebuild(&present, &mut wanted).expect("k cells are present");
}

fn read(cells: &[&mut [u8]]) -> u64 {
    let mut sums = [0u64; 16];
    for cell in cells {
        for words in cell.chunks_exact(128) {
            for (sum, word) in sums.iter_mut().zip(words.chunks_exact(8)) {
                *sum ^= u64::from_le_bytes(word.try_into().expect("8 bytes"));
            }
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

fn main() {
    // `cargo bench` passes it; `cargo test --all-targets` only wants to know that this compiles.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("{:<26} {:<12} {:>9} {:>16}", "case", "by", "GB/s data", "times the oracle");
    for (data, parity) in [(10, 4), (16, 8), (16, 12), (4, 2)] {
        let scheme = Scheme::new(data, parity).expect("a valid scheme");
        for (cell_len, count, place) in [
            (4 << 10, 1, "hot"),
            (64 << 10, 1, "hot"),
            (64 << 10, DRAM_BYTES / (scheme.shard_count() * (64 << 10)), "DRAM"),
            (1 << 20, DRAM_BYTES / (scheme.shard_count() * (1 << 20)), "DRAM"),
        ] {
            let case = |what: &str| format!("{scheme} {} KiB {place} {what}", cell_len >> 10);
            let cases = [case("encode"), case("rebuild 1"), case("rebuild m")];
            if !cases.iter().any(|case| case.contains(&filter)) {
                continue;
            }
            let mut stripes = Stripes::new(scheme, cell_len, count);
            let oracle = ReedSolomon::new(data.into(), parity.into()).expect("a valid scheme");
            let codecs: Vec<Codec> = Kernel::available()
                .map(|kernel| Codec::with_kernel(scheme, kernel).expect("the kernel is available"))
                .collect();
            for (lost, case) in [0, 1, usize::from(parity)].into_iter().zip(cases) {
                if !case.contains(&filter) {
                    continue;
                }
                let mut acts: Vec<(String, Act<'_>)> = vec![(
                    "oracle".into(),
                    Box::new(|stripe: &mut [&mut [u8]]| {
                        if lost == 0 {
                            oracle.encode(stripe).expect("the stripe is the scheme's");
                        } else {
                            let mut cells: Vec<(&mut [u8], bool)> = stripe
                                .iter_mut()
                                .enumerate()
                                .map(|(index, cell)| (&mut **cell, index >= lost))
                                .collect();
                            oracle.reconstruct_data(&mut cells).expect("k cells are present");
                        }
                    }),
                )];
                for codec in &codecs {
                    acts.push((
                        codec.kernel().name().into(),
                        Box::new(move |stripe: &mut [&mut [u8]]| match lost {
                            0 => encode(stripe, codec),
                            _ => rebuild(stripe, codec, lost),
                        }),
                    ));
                }
                acts.push((
                    "read".into(),
                    Box::new(|stripe: &mut [&mut [u8]]| {
                        black_box(read(&stripe[..data.into()]));
                    }),
                ));
                let speeds = measure(&mut stripes, &mut acts);
                for ((by, _), speed) in acts.iter().zip(&speeds) {
                    println!("{case:<26} {by:<12} {speed:>9.2} {:>16.1}", speed / speeds[0]);
                }
            }
        }
    }
}
