//! A lot that only its owner can draw and everybody can check: ECVRF-EDWARDS25519-SHA512-TAI.
//!
//! The owner of a key turns any input into 64 bytes that nobody else can foresee, and proves that they are the only ones its
//! key gives for that input. So verifiers stay secret until they speak, and nobody can draw twice.
//!
//! Source: RFC 9381, sections 5 and 5.5 (suite 3), with its vectors. Points and scalars are `curve25519-dalek`'s.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use curve25519_dalek::traits::IsIdentity as _;
use ring::digest::{Context, SHA512};
use serde::{Deserialize, Serialize};

const SUITE: u8 = 3;
const CHALLENGE_BYTES: usize = 16;
const POINT_BYTES: usize = 32;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = POINT_BYTES + CHALLENGE_BYTES + 32;
/// Inputs of the hash onto the curve: each fits with a probability of about a half.
const TRIES: u8 = u8::MAX;

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VrfPublic(pub [u8; POINT_BYTES]);

/// What was drawn: 64 bytes that look random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn(pub [u8; 64]);

impl Drawn {
    /// The first 128 bits as a number: a share of 2^128.
    #[must_use]
    pub fn lot(&self) -> u128 {
        self.0.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
    }
}

/// A secret key. Never printed.
#[derive(Clone)]
pub struct VrfKey {
    secret: Scalar,
    /// Of the hashed seed, what nonces are made of.
    prefix: [u8; 32],
    public: VrfPublic,
}

impl std::fmt::Debug for VrfKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VrfKey({:?})", self.public)
    }
}

fn sha512(parts: &[&[u8]]) -> [u8; 64] {
    let mut context = Context::new(&SHA512);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 64];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

fn halves(hash: &[u8; 64]) -> ([u8; 32], [u8; 32]) {
    let (mut low, mut high) = ([0; 32], [0; 32]);
    low.copy_from_slice(&hash[..32]);
    high.copy_from_slice(&hash[32..]);
    (low, high)
}

/// The point that an input stands for, by trying until a hash is one. `None`: in one of 2^255 cases.
fn encode_to_curve(public: &VrfPublic, input: &[u8]) -> Option<EdwardsPoint> {
    (0..=TRIES).find_map(|counter| {
        let hash = sha512(&[&[SUITE, 1], &public.0, input, &[counter, 0]]);
        let point = CompressedEdwardsY(halves(&hash).0).decompress()?.mul_by_cofactor();
        (!point.is_identity()).then_some(point)
    })
}

fn challenge(points: [&EdwardsPoint; 5]) -> [u8; CHALLENGE_BYTES] {
    let bytes = points.map(|point| point.compress().0);
    let hash = sha512(&[&[SUITE, 2], &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4], &[0]]);
    let mut challenge = [0; CHALLENGE_BYTES];
    challenge.copy_from_slice(&hash[..CHALLENGE_BYTES]);
    challenge
}

fn scalar_of(challenge: &[u8; CHALLENGE_BYTES]) -> Scalar {
    let mut bytes = [0; 32];
    bytes[..CHALLENGE_BYTES].copy_from_slice(challenge);
    Scalar::from_bytes_mod_order(bytes)
}

fn drawn_of(gamma: &EdwardsPoint) -> Drawn {
    Drawn(sha512(&[&[SUITE, 3], &gamma.mul_by_cofactor().compress().0, &[0]]))
}

impl VrfKey {
    /// As Ed25519 makes its keys of a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let (low, prefix) = halves(&sha512(&[seed]));
        let secret = Scalar::from_bytes_mod_order(clamp_integer(low));
        let public = VrfPublic(EdwardsPoint::mul_base_clamped(low).compress().0);
        Self { secret, prefix, public }
    }

    #[must_use]
    pub fn public(&self) -> VrfPublic {
        self.public
    }

    /// The one lot of this key for an input, and its proof. `None`: the input stands for no point, which never happens.
    #[must_use]
    pub fn prove(&self, input: &[u8]) -> Option<(Drawn, [u8; PROOF_BYTES])> {
        let point = encode_to_curve(&self.public, input)?;
        let own = CompressedEdwardsY(self.public.0).decompress()?;
        let gamma = self.secret * point;
        let nonce = Scalar::from_bytes_mod_order_wide(&sha512(&[&self.prefix, &point.compress().0]));
        let (base, other) = (EdwardsPoint::mul_base(&nonce), nonce * point);
        let challenge = challenge([&own, &point, &gamma, &base, &other]);
        let answer = nonce + scalar_of(&challenge) * self.secret;
        let mut proof = [0; PROOF_BYTES];
        proof[..POINT_BYTES].copy_from_slice(&gamma.compress().0);
        proof[POINT_BYTES..POINT_BYTES + CHALLENGE_BYTES].copy_from_slice(&challenge);
        proof[POINT_BYTES + CHALLENGE_BYTES..].copy_from_slice(answer.as_bytes());
        Some((drawn_of(&gamma), proof))
    }
}

/// What a key draws for an input, if the proof holds. Any bytes may be given.
#[must_use]
pub fn verify(public: &VrfPublic, input: &[u8], proof: &[u8; PROOF_BYTES]) -> Option<Drawn> {
    let own = CompressedEdwardsY(public.0).decompress()?;
    if own.is_small_order() {
        return None;
    }
    let (gamma, rest) = proof.split_at(POINT_BYTES);
    let (told, answer) = rest.split_at(CHALLENGE_BYTES);
    let gamma = CompressedEdwardsY(gamma.try_into().ok()?).decompress()?;
    let told: [u8; CHALLENGE_BYTES] = told.try_into().ok()?;
    let answer: Scalar = Option::from(Scalar::from_canonical_bytes(answer.try_into().ok()?))?;
    let point = encode_to_curve(public, input)?;
    let scalar = scalar_of(&told);
    let base = EdwardsPoint::mul_base(&answer) - scalar * own;
    let other = answer * point - scalar * gamma;
    (challenge([&own, &point, &gamma, &base, &other]) == told).then(|| drawn_of(&gamma))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// RFC 9381, appendix B.3, examples 16 to 18.
    #[test]
    fn vectors_of_the_standard() {
        let vectors = [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f\
                 26f8a57ccaed74ee1b190bed1f479d9727d2d0f9b005a6e456a35d4fb0daab12\
                 68a1b0db10836d9826a528ca76567805",
                "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff\
                 66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed593\
                 3bf0864a62558b3ed7f2fea45c92a465301b3bbf5e3e54ddf2d935be3b67926d\
                 a3ef39226bbc355bdc9850112c8f4b02",
                "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb\
                 5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf80\
                 96bb474e53895c362d8628ee9f9ea3c0e52c7a5c691b6c18c9979866568add7a\
                 2d41b00b05081ed0f58ee5e31b3a970e",
                "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c45\
                 2118fec1219202a0edcf038bb6373241578be7217ba85a2687f7a0310b2df19f",
            ),
        ];
        for (seed, public, input, proof, drawn) in vectors {
            let (key, input) = (VrfKey::from_seed(&hex(seed)), hex::decode(input).unwrap());
            assert_eq!(key.public().0, hex::<32>(public));
            let (told, made) = key.prove(&input).unwrap();
            assert_eq!(hex::encode(made), proof);
            assert_eq!(hex::encode(told.0), drawn);
            assert_eq!(verify(&key.public(), &input, &made), Some(told));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// One changed bit anywhere: in the proof, the input or the key.
        #[test]
        fn nothing_else_verifies(seed: [u8; 32], input: [u8; 9], bit in 0usize..(PROOF_BYTES + 9 + 32) * 8) {
            let key = VrfKey::from_seed(&seed);
            let (_, mut proof) = key.prove(&input).unwrap();
            let (mut input, mut public) = (input, key.public());
            let (byte, mask) = (bit / 8, 1 << (bit % 8));
            match byte {
                0..PROOF_BYTES => proof[byte] ^= mask,
                byte if byte < PROOF_BYTES + 9 => input[byte - PROOF_BYTES] ^= mask,
                byte => public.0[byte - PROOF_BYTES - 9] ^= mask,
            }
            prop_assert_eq!(verify(&public, &input, &proof), None);
        }
    }

    /// The neutral point as a key would make every proof hold for every input.
    #[test]
    fn a_key_of_small_order_draws_nothing() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(verify(&VrfPublic(neutral), b"x", &[0; PROOF_BYTES]), None);
    }
}
