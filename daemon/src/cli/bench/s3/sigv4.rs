//! AWS Signature Version 4 in the `Authorization` header: a pure function of the request and the time.
//!
//! Source: *Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk*,
//! Amazon S3 API Reference; its examples are this file's tests.

use std::fmt::Write as _;

use ring::{digest, hmac};

/// What stands for the payload's hash when it is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
const DAY_SECS: u64 = 24 * 60 * 60;

/// A moment as SigV4 writes it: `20130524T000000Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmzTime(String);

impl AmzTime {
    /// `unix_secs`: seconds since 1970, up to the year 9999.
    ///
    /// Source of the calendar: Howard Hinnant, *chrono-Compatible Low-Level Date Algorithms*, civil_from_days.
    #[must_use]
    pub fn new(unix_secs: u64) -> Self {
        let (days, secs) = (unix_secs / DAY_SECS, unix_secs % DAY_SECS);
        let shifted = days + 719_468; // Days since 1 March of the year 0.
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
        Self(format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn date(&self) -> &str {
        self.0.split('T').next().unwrap_or_default()
    }
}

/// Who signs, for which region.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// What of a request is signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    pub method: &'a str,
    /// As sent: each segment by [`encode_path`].
    pub path: &'a str,
    /// As sent: by [`encode_query`], or empty.
    pub query: &'a str,
    /// Names in lower case, sorted; `host`, `x-amz-content-sha256` and `x-amz-date` among them.
    pub headers: &'a [(&'a str, &'a str)],
    /// SHA-256 in hex, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
}

/// A key that is good for one day, made of four HMACs: make it once, sign often.
#[derive(Clone)]
pub struct DayKey {
    date: String,
    scope: String,
    access_key: String,
    key: hmac::Key,
}

impl DayKey {
    #[must_use]
    pub fn new(credentials: &Credentials, time: &AmzTime) -> Self {
        let date = time.date();
        let region = &credentials.region;
        let mut key = format!("AWS4{}", credentials.secret_key).into_bytes();
        for part in [date, region.as_str(), SERVICE, "aws4_request"] {
            let next = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes());
            key = next.as_ref().to_vec();
        }
        Self {
            date: date.to_owned(),
            scope: format!("{date}/{region}/{SERVICE}/aws4_request"),
            access_key: credentials.access_key.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        }
    }

    #[must_use]
    pub fn is_for(&self, time: &AmzTime) -> bool {
        self.date == time.date()
    }

    /// The value of the `Authorization` header.
    #[must_use]
    pub fn authorization(&self, request: &Signed<'_>, time: &AmzTime) -> String {
        let Signed { method, path, query, headers, payload_hash } = request;
        let mut canonical = format!("{method}\n{path}\n{query}\n");
        for (name, value) in *headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let _ = write!(canonical, "\n{names}\n{payload_hash}");
        let to_sign =
            format!("{ALGORITHM}\n{}\n{}\n{}", time.as_str(), self.scope, sha256_hex(canonical.as_bytes()));
        let signature = hex::encode(hmac::sign(&self.key, to_sign.as_bytes()));
        format!(
            "{ALGORITHM} Credential={}/{}, SignedHeaders={names}, Signature={signature}",
            self.access_key, self.scope
        )
    }
}

#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// A path of `/`-separated segments, each percent-encoded as S3 wants it.
#[must_use]
pub fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// A query in canonical order.
#[must_use]
pub fn encode_query(pairs: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.sort();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
    const TIME: (&str, &str) = ("x-amz-date", "20130524T000000Z");

    /// The signature of a request of the published examples, all made at one moment with one key.
    fn signature_of(request: &Signed<'_>) -> String {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            region: "us-east-1".to_owned(),
        };
        let time = AmzTime::new(1_369_353_600);
        assert_eq!(time.as_str(), TIME.1);
        let header = DayKey::new(&credentials, &time).authorization(request, &time);
        let start = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, ";
        let (names, signature) =
            header.strip_prefix(start).and_then(|rest| rest.split_once(", Signature=")).expect("four parts");
        let expected: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, format!("SignedHeaders={}", expected.join(";")));
        signature.to_owned()
    }

    #[test]
    fn published_example_get_object() {
        let headers = [HOST, ("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY_HASH), TIME];
        let request = Signed {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &headers,
            payload_hash: &sha256_hex(b""),
        };
        let expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert_eq!(signature_of(&request), expected);
    }

    #[test]
    fn published_example_put_object() {
        let hash = sha256_hex(b"Welcome to Amazon S3.");
        let headers = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            HOST,
            ("x-amz-content-sha256", &hash),
            TIME,
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        let path = encode_path("/test$file.text");
        let request =
            Signed { method: "PUT", path: &path, query: "", headers: &headers, payload_hash: &hash };
        let expected = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd";
        assert_eq!(signature_of(&request), expected);
    }

    #[test]
    fn published_examples_get_lifecycle_and_list_objects() {
        let headers = [HOST, ("x-amz-content-sha256", EMPTY_HASH), TIME];
        let signature = |query: &str| {
            let payload_hash = EMPTY_HASH;
            signature_of(&Signed { method: "GET", path: "/", query, headers: &headers, payload_hash })
        };
        let lifecycle = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
        assert_eq!(signature(&encode_query(&[("lifecycle", "")])), lifecycle);
        let list = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
        assert_eq!(signature(&encode_query(&[("prefix", "J"), ("max-keys", "2")])), list);
    }

    #[test]
    fn days_around_leap_years_are_written_as_calendars_do() {
        let days = [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_709_251_200, "20240301T000000Z"),
            (4_107_542_400, "21000301T000000Z"),
        ];
        for (unix_secs, written) in days {
            assert_eq!(AmzTime::new(unix_secs).as_str(), written);
        }
    }
}
