//! The checksums of S3: what a client promises of its bytes, computed while they stream, compared at their end.
//!
//! At most one of CRC32, CRC32C, CRC64NVME, SHA1 and SHA256 is computed for a body. A client names the value in a
//! header, or in a trailer after the body, or names the algorithm alone, and then gets the value back.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use http::HeaderMap;
use makai_raft::facts::object::{Checksum, Part, Upload};
use ring::digest;
use s3s::dto::ChecksumType;
use s3s::{S3Error, S3ErrorCode, S3Result, TrailingHeaders, s3_error};

use super::errors::custom;

/// An algorithm, as S3 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(super) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    pub(super) fn parse(name: &str) -> S3Result<Self> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            s3_error!(
                InvalidRequest,
                "Checksum algorithm {shown:?} is not known: use CRC32, CRC32C, CRC64NVME, SHA1 or SHA256."
            )
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    fn digest_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    fn crc_base64(self, value: u64) -> String {
        let bytes = value.to_be_bytes();
        BASE64_STANDARD.encode(&bytes[bytes.len() - self.digest_bytes()..])
    }

    /// The bytes of a value as clients write it.
    fn decode(self, value: &str) -> S3Result<Vec<u8>> {
        let bytes = BASE64_STANDARD.decode(value).ok().filter(|bytes| bytes.len() == self.digest_bytes());
        // No bytes have a checksum that is none.
        bytes.ok_or_else(|| {
            s3_error!(
                BadDigest,
                "Value for {} header is invalid: send the Base64 of {} bytes.",
                self.header(),
                self.digest_bytes()
            )
        })
    }
}

/// A running checksum.
pub(super) enum Hasher {
    Crc(Algorithm, crc_fast::Digest),
    Sha(digest::Context),
}

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm.crc() {
            Some(crc) => Self::Crc(algorithm, crc_fast::Digest::new(crc)),
            None if algorithm == Algorithm::Sha1 => {
                Self::Sha(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY))
            }
            None => Self::Sha(digest::Context::new(&digest::SHA256)),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(bytes),
            Self::Sha(context) => context.update(bytes),
        }
    }

    /// In Base64.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Crc(algorithm, digest) => algorithm.crc_base64(digest.finalize()),
            Self::Sha(context) => BASE64_STANDARD.encode(context.finish()),
        }
    }
}

/// Where the value to compare with is.
#[derive(Debug, Clone)]
enum Claim {
    Value(String),
    Trailer(TrailingHeaders),
    /// The client named the algorithm alone: it gets the value back.
    None,
}

/// What a client promises of its body.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    md5: Option<[u8; 16]>,
    checksum: Option<(Algorithm, Claim)>,
}

impl Promise {
    /// Reads `Content-MD5`, `x-amz-checksum-*`, `x-amz-trailer` and `x-amz-sdk-checksum-algorithm`.
    pub(super) fn read(headers: &HeaderMap, trailers: Option<&TrailingHeaders>) -> S3Result<Self> {
        let mut promise = Self { md5: content_md5(headers)?, checksum: None };
        for algorithm in Algorithm::ALL {
            let Some(value) = headers.get(algorithm.header()) else { continue };
            let value = value.to_str().unwrap_or_default();
            algorithm.decode(value)?;
            promise.claim(algorithm, Claim::Value(value.to_owned()))?;
        }
        for name in headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok()) {
            for name in name.split(',').map(str::trim) {
                let Some(algorithm) =
                    Algorithm::ALL.into_iter().find(|a| a.header().eq_ignore_ascii_case(name))
                else {
                    continue;
                };
                let Some(trailers) = trailers else {
                    return Err(s3_error!(
                        InvalidRequest,
                        "x-amz-trailer announces {name}, but the body has no trailers: send it aws-chunked with \
                         x-amz-content-sha256 ending in -TRAILER."
                    ));
                };
                promise.claim(algorithm, Claim::Trailer(trailers.clone()))?;
            }
        }
        let named = ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"];
        let named = named.into_iter().find_map(|name| headers.get(name));
        if let (None, Some(name)) = (&promise.checksum, named) {
            let algorithm = Algorithm::parse(name.to_str().unwrap_or_default())?;
            promise.checksum = Some((algorithm, Claim::None));
        }
        Ok(promise)
    }

    fn claim(&mut self, algorithm: Algorithm, claim: Claim) -> S3Result<()> {
        if self.checksum.is_some() {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum types are not allowed."
            ));
        }
        self.checksum = Some((algorithm, claim));
        Ok(())
    }

    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        self.checksum.as_ref().map(|(algorithm, _)| *algorithm)
    }

    /// Computes `algorithm` where the client promises nothing.
    pub(super) fn or_compute(mut self, algorithm: Algorithm) -> Self {
        self.checksum.get_or_insert((algorithm, Claim::None));
        self
    }

    /// Compares with what was computed; returns what to keep.
    pub(super) fn check(self, md5: [u8; 16], computed: Option<String>) -> S3Result<Option<Checksum>> {
        if self.md5.is_some_and(|promised| promised != md5) {
            return Err(bad_digest("Content-MD5"));
        }
        let Some((algorithm, claim)) = self.checksum else { return Ok(None) };
        let computed = computed.ok_or_else(|| {
            s3_error!(InternalError, "The body was not read to its end before its checksum was asked for.")
        })?;
        let claimed = match claim {
            Claim::Value(value) => Some(value),
            Claim::Trailer(trailers) => {
                let value = trailers
                    .read(|map| map.get(algorithm.header()).and_then(|v| v.to_str().ok()?.parse().ok()));
                let value: String = value.flatten().ok_or_else(|| {
                    custom(
                        "MalformedTrailerError",
                        400,
                        format!("The trailer {} is missing.", algorithm.header()),
                    )
                })?;
                algorithm.decode(&value)?;
                Some(value)
            }
            Claim::None => None,
        };
        if claimed.is_some_and(|claimed| claimed != computed) {
            return Err(bad_digest(algorithm.name()));
        }
        Ok(Some(Checksum { algorithm: algorithm.name().into(), value: computed, is_composite: false }))
    }
}

pub(super) fn content_md5(headers: &HeaderMap) -> S3Result<Option<[u8; 16]>> {
    let Some(value) = headers.get("content-md5") else { return Ok(None) };
    let md5 =
        BASE64_STANDARD.decode(value.as_bytes()).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    match md5 {
        Some(md5) => Ok(Some(md5)),
        None => Err(s3_error!(InvalidDigest, "The Content-MD5 you specified is not the Base64 of 16 bytes.")),
    }
}

fn bad_digest(name: &str) -> S3Error {
    s3_error!(
        BadDigest,
        "The {name} you specified did not match the calculated checksum: the bytes changed on the way."
    )
}

/// How an upload's parts are summed up, from what its creator asked for.
pub(super) fn upload_checksum(
    algorithm: Option<&str>,
    kind: Option<&ChecksumType>,
) -> S3Result<(Option<Algorithm>, bool)> {
    let Some(algorithm) = algorithm else {
        return match kind {
            None => Ok((None, false)),
            Some(_) => Err(s3_error!(
                InvalidRequest,
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            )),
        };
    };
    let algorithm = Algorithm::parse(algorithm)?;
    let is_composite = match kind.map(ChecksumType::as_str) {
        None => algorithm != Algorithm::Crc64Nvme,
        Some(ChecksumType::COMPOSITE) => true,
        Some(ChecksumType::FULL_OBJECT) => false,
        Some(_) => {
            return Err(s3_error!(InvalidRequest, "x-amz-checksum-type must be COMPOSITE or FULL_OBJECT."));
        }
    };
    let is_possible = match algorithm {
        Algorithm::Crc64Nvme => !is_composite,
        Algorithm::Sha1 | Algorithm::Sha256 => is_composite,
        Algorithm::Crc32 | Algorithm::Crc32c => true,
    };
    if !is_possible {
        let kind = if is_composite { "COMPOSITE" } else { "FULL_OBJECT" };
        return Err(s3_error!(
            InvalidRequest,
            "The {kind} checksum type cannot be used with the {} checksum algorithm.",
            algorithm.name()
        ));
    }
    Ok((Some(algorithm), is_composite))
}

/// The checksum of a completed upload from those of its parts, in order; `None` where a part has none.
pub(super) fn combine<'a>(
    algorithm: Algorithm,
    is_composite: bool,
    parts: impl Iterator<Item = &'a Part>,
) -> Option<Checksum> {
    let mut whole = Hasher::new(algorithm);
    let mut crc = None;
    let mut count = 0_usize;
    for part in parts {
        let checksum = part.checksum.as_ref().filter(|checksum| checksum.algorithm == algorithm.name())?;
        let bytes = algorithm.decode(&checksum.value).ok()?;
        count += 1;
        if is_composite {
            whole.update(&bytes);
        } else {
            let value = bytes.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
            let kind = algorithm.crc()?;
            crc = Some(match crc {
                None => value,
                Some(before) => crc_fast::checksum_combine(kind, before, value, part.size),
            });
        }
    }
    let value = if is_composite { format!("{}-{count}", whole.finish()) } else { algorithm.crc_base64(crc?) };
    Some(Checksum { algorithm: algorithm.name().into(), value, is_composite })
}

/// The checksum to keep with a completed upload.
///
/// `claimed`: what the client says it is. Refused where it differs, or cannot be compared.
pub(super) fn complete<'a>(
    upload: &Upload,
    parts: impl Iterator<Item = &'a Part>,
    claimed: Option<(Algorithm, String)>,
) -> S3Result<Option<Checksum>> {
    let algorithm = upload.checksum_algorithm.as_deref().map(Algorithm::parse).transpose()?;
    let Some((claimed_algorithm, claimed)) = claimed else {
        let mut parts = parts.peekable();
        let is_composite = algorithm.is_some() && upload.checksum_is_composite;
        // Of an upload that announced none: what its parts have, where that can be told of the whole.
        let of_parts = parts.peek().and_then(|part| part.checksum.as_ref());
        let algorithm =
            algorithm.or_else(|| of_parts.and_then(|checksum| Algorithm::parse(&checksum.algorithm).ok()));
        return Ok(algorithm.and_then(|algorithm| combine(algorithm, is_composite, parts)));
    };
    if algorithm.is_some_and(|algorithm| algorithm != claimed_algorithm) {
        return Err(s3_error!(
            InvalidRequest,
            "The upload was created with the checksum algorithm {}, not {}.",
            algorithm.map_or("none", Algorithm::name),
            claimed_algorithm.name()
        ));
    }
    let is_composite = if algorithm.is_some() { upload.checksum_is_composite } else { claimed.contains('-') };
    let Some(computed) = combine(claimed_algorithm, is_composite, parts) else {
        return Err(s3_error!(
            InvalidRequest,
            "The object's {} cannot be verified, since not every part was uploaded with it: leave it out.",
            claimed_algorithm.name()
        ));
    };
    // A composite value is sent with or without its number of parts.
    let bare = computed.value.split('-').next();
    if claimed != computed.value && !(is_composite && bare == Some(claimed.as_str())) {
        return Err(bad_digest(claimed_algorithm.name()));
    }
    Ok(Some(computed))
}

/// Finds the one checksum among the five fields that S3's messages have.
pub(super) fn one_of(fields: [(Algorithm, Option<&String>); 5]) -> S3Result<Option<(Algorithm, String)>> {
    let mut given = fields.into_iter().filter_map(|(algorithm, value)| Some((algorithm, value?.clone())));
    let first = given.next();
    if given.next().is_some() {
        return Err(S3Error::with_message(
            S3ErrorCode::InvalidRequest,
            "Expecting a single checksum. Multiple checksum types are not allowed.",
        ));
    }
    Ok(first)
}

/// The five checksum fields of an S3 message, as an array for [`one_of`].
macro_rules! checksum_fields {
    ($message:expr) => {{
        use $crate::s3::checksums::Algorithm;
        [
            (Algorithm::Crc32, $message.checksum_crc32.as_ref()),
            (Algorithm::Crc32c, $message.checksum_crc32c.as_ref()),
            (Algorithm::Crc64Nvme, $message.checksum_crc64nvme.as_ref()),
            (Algorithm::Sha1, $message.checksum_sha1.as_ref()),
            (Algorithm::Sha256, $message.checksum_sha256.as_ref()),
        ]
    }};
}
pub(super) use checksum_fields;

/// Sets the field of an S3 message that belongs to a checksum.
macro_rules! set_checksum {
    ($message:expr, $checksum:expr) => {
        if let Some(checksum) = $checksum {
            let value = Some(checksum.value.clone());
            match checksum.algorithm.as_str() {
                "CRC32" => $message.checksum_crc32 = value,
                "CRC32C" => $message.checksum_crc32c = value,
                "CRC64NVME" => $message.checksum_crc64nvme = value,
                "SHA1" => $message.checksum_sha1 = value,
                "SHA256" => $message.checksum_sha256 = value,
                _ => {}
            }
        }
    };
}
pub(super) use set_checksum;

/// `COMPOSITE` or `FULL_OBJECT`.
pub(super) fn kind(checksum: &Checksum) -> ChecksumType {
    kind_of(checksum.is_composite)
}

pub(super) fn kind_of(is_composite: bool) -> ChecksumType {
    ChecksumType::from_static(if is_composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT })
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::object::ObjectHeaders;

    use super::*;

    fn sum(algorithm: Algorithm, bytes: &[u8]) -> String {
        let mut hasher = Hasher::new(algorithm);
        bytes.chunks(3).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    }

    fn parts(algorithm: Algorithm, bodies: &[&[u8]]) -> Vec<Part> {
        let part = |(number, body): (usize, &&[u8])| Part {
            number: u16::try_from(number + 1).unwrap(),
            size: body.len() as u64,
            etag: String::new(),
            modified_at: Timestamp(0),
            checksum: Some(Checksum {
                algorithm: algorithm.name().into(),
                value: sum(algorithm, body),
                is_composite: false,
            }),
        };
        bodies.iter().enumerate().map(part).collect()
    }

    fn upload(algorithm: Option<Algorithm>, is_composite: bool) -> Upload {
        Upload {
            id: "u".into(),
            key: "k".into(),
            started_at: Timestamp(0),
            headers: ObjectHeaders::default(),
            checksum_algorithm: algorithm.map(|a| a.name().into()),
            checksum_is_composite: is_composite,
        }
    }

    /// The check values that the algorithms' definitions give for "123456789".
    #[test]
    fn published_check_values() {
        let input = b"123456789";
        let hex = |value: String| hex::encode(BASE64_STANDARD.decode(value).unwrap());
        assert_eq!(hex(sum(Algorithm::Crc32, input)), "cbf43926");
        assert_eq!(hex(sum(Algorithm::Crc32c, input)), "e3069283");
        assert_eq!(hex(sum(Algorithm::Crc64Nvme, input)), "ae8b14860a799888");
        assert_eq!(hex(sum(Algorithm::Sha1, input)), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        assert_eq!(
            hex(sum(Algorithm::Sha256, input)),
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"
        );
    }

    #[test]
    fn the_crc_of_a_whole_is_the_crc_of_its_bytes() {
        let whole: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let bodies = [&whole[..1], &whole[1..65_536], &whole[65_536..65_536], &whole[65_536..]];
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let combined = combine(algorithm, false, parts(algorithm, &bodies).iter()).unwrap();
            assert_eq!(combined.value, sum(algorithm, &whole), "{algorithm:?}");
            assert!(!combined.is_composite);
        }
    }

    #[test]
    fn a_composite_is_the_hash_of_the_parts_hashes_and_their_number() {
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Sha1, Algorithm::Sha256] {
            let parts = parts(algorithm, &[b"one", b"two"]);
            let digests = [sum(algorithm, b"one"), sum(algorithm, b"two")];
            let digests: Vec<u8> = digests.iter().flat_map(|d| BASE64_STANDARD.decode(d).unwrap()).collect();
            let combined = combine(algorithm, true, parts.iter()).unwrap();
            assert_eq!(combined.value, format!("{}-2", sum(algorithm, &digests)));
        }
    }

    #[test]
    fn a_part_without_the_checksum_leaves_the_whole_without() {
        let mut parts = parts(Algorithm::Crc32, &[b"one", b"two"]);
        parts[1].checksum = None;
        assert_eq!(combine(Algorithm::Crc32, false, parts.iter()), None);
        let upload = upload(Some(Algorithm::Crc32), false);
        assert_eq!(complete(&upload, parts.iter(), None).unwrap(), None);
        let claimed = Some((Algorithm::Crc32, sum(Algorithm::Crc32, b"onetwo")));
        assert_eq!(
            *complete(&upload, parts.iter(), claimed).unwrap_err().code(),
            S3ErrorCode::InvalidRequest
        );
    }

    #[test]
    fn an_upload_that_announced_none_has_what_its_parts_share() {
        let whole = |algorithm| {
            let parts = parts(algorithm, &[b"one", b"two"]);
            complete(&upload(None, false), parts.iter(), None).unwrap().map(|kept| kept.value)
        };
        for algorithm in [Algorithm::Crc32, Algorithm::Crc64Nvme] {
            assert_eq!(whole(algorithm), Some(sum(algorithm, b"onetwo")));
        }
        assert_eq!(whole(Algorithm::Sha256), None, "of hashes none can be told");
    }

    #[test]
    fn a_wrong_claim_at_completion_is_a_bad_digest() {
        let parts = parts(Algorithm::Crc64Nvme, &[b"one", b"two"]);
        let upload = upload(Some(Algorithm::Crc64Nvme), false);
        let right = sum(Algorithm::Crc64Nvme, b"onetwo");
        let kept = complete(&upload, parts.iter(), Some((Algorithm::Crc64Nvme, right.clone()))).unwrap();
        assert_eq!(kept.unwrap().value, right);
        let wrong = Some((Algorithm::Crc64Nvme, sum(Algorithm::Crc64Nvme, b"onetwO")));
        assert_eq!(*complete(&upload, parts.iter(), wrong).unwrap_err().code(), S3ErrorCode::BadDigest);
    }

    #[test]
    fn only_the_pairs_that_s3_allows_are_allowed() {
        let kinds = [None, Some("COMPOSITE"), Some("FULL_OBJECT")];
        let allowed = |algorithm: Algorithm| {
            kinds.map(|kind| {
                let kind = kind.map(|kind| ChecksumType::from(kind.to_owned()));
                upload_checksum(Some(algorithm.name()), kind.as_ref())
                    .ok()
                    .map(|(_, is_composite)| is_composite)
            })
        };
        assert_eq!(allowed(Algorithm::Crc32), [Some(true), Some(true), Some(false)]);
        assert_eq!(allowed(Algorithm::Crc32c), [Some(true), Some(true), Some(false)]);
        assert_eq!(allowed(Algorithm::Crc64Nvme), [Some(false), None, Some(false)]);
        assert_eq!(allowed(Algorithm::Sha1), [Some(true), Some(true), None]);
        assert_eq!(allowed(Algorithm::Sha256), [Some(true), Some(true), None]);
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).try_into().unwrap(), (*value).parse().unwrap())).collect()
    }

    #[test]
    fn promises_are_kept_or_refused_with_the_code_that_s3_documents() {
        let md5 = [1; 16];
        let right_md5 = BASE64_STANDARD.encode(md5);
        let crc = sum(Algorithm::Crc32, b"x");
        let read = |pairs: &[(&'static str, &str)]| Promise::read(&headers(pairs), None);

        assert_eq!(read(&[]).unwrap().check(md5, None).unwrap(), None);
        assert_eq!(read(&[("content-md5", &right_md5)]).unwrap().check(md5, None).unwrap(), None);
        let wrong = read(&[("content-md5", &right_md5)]).unwrap().check([2; 16], None);
        assert_eq!(*wrong.unwrap_err().code(), S3ErrorCode::BadDigest);
        for bad in ["x", "", "AAAA"] {
            assert_eq!(
                *read(&[("content-md5", bad)]).unwrap_err().code(),
                S3ErrorCode::InvalidDigest,
                "{bad:?}"
            );
        }

        let promise = read(&[("x-amz-checksum-crc32", &crc)]).unwrap();
        assert_eq!(promise.clone().check(md5, Some(crc.clone())).unwrap().unwrap().value, crc);
        let wrong = promise.check(md5, Some(sum(Algorithm::Crc32, b"y")));
        assert_eq!(*wrong.unwrap_err().code(), S3ErrorCode::BadDigest);

        for none in ["not base64", "AAAAAAAA"] {
            let refused = read(&[("x-amz-checksum-crc32", none), ("a", "")]).unwrap_err();
            assert_eq!(*refused.code(), S3ErrorCode::BadDigest, "{none}");
        }
        for bad in [
            [("x-amz-checksum-crc32", crc.as_str()), ("x-amz-checksum-sha1", "2jmj7l5rSw0yVb/vlWAYkK/YBwk=")],
            [("x-amz-trailer", "x-amz-checksum-crc32"), ("a", "")],
            [("x-amz-sdk-checksum-algorithm", "MD4"), ("a", "")],
        ] {
            assert_eq!(*read(&bad).unwrap_err().code(), S3ErrorCode::InvalidRequest, "{bad:?}");
        }

        let named = read(&[("x-amz-sdk-checksum-algorithm", "crc32")]).unwrap();
        assert_eq!(named.check(md5, Some(crc.clone())).unwrap().unwrap().value, crc);
    }
}
