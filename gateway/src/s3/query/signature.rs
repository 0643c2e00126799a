//! SigV4 of a call whose body is at hand. `s3s` verifies what is signed for S3 alone.

use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use makai_raft::facts::Timestamp;
use ring::{digest, hmac};
use s3s::dto::TimestampFormat;
use s3s::{S3Result, s3_error};

use crate::s3::errors::custom;
use crate::s3::headers::unix_seconds;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICES: [&str; 3] = ["iam", "sts", "s3"];
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const SKEW_SECONDS_MAX: u64 = 15 * 60;

/// What a request says of its signature.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) access_key: &'a str,
    pub(super) service: &'a str,
    date: &'a str,
    region: &'a str,
    headers: &'a str,
    signature: &'a str,
    /// `YYYYMMDDTHHMMSSZ`
    stamp: &'a str,
}

impl<'a> Signed<'a> {
    /// `None`: the request is not signed.
    pub(super) fn read(head: &'a Parts) -> S3Result<Option<Self>> {
        let Some(header) = head.headers.get(AUTHORIZATION) else { return Ok(None) };
        let malformed = || {
            s3_error!(
                AuthorizationHeaderMalformed,
                "The authorization header is malformed: sign with {ALGORITHM}."
            )
        };
        let header =
            header.to_str().ok().and_then(|text| text.strip_prefix(ALGORITHM)).ok_or_else(malformed)?;
        let part = |name: &str| {
            let mut parts = header.split(',').map(str::trim);
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        let scope = part("Credential").ok_or_else(malformed)?;
        let mut scope = scope.rsplitn(5, '/');
        let mut next = || scope.next().filter(|text| !text.is_empty()).ok_or_else(malformed);
        let (end, service, region, date, access_key) = (next()?, next()?, next()?, next()?, next()?);
        if end != "aws4_request" {
            return Err(malformed());
        }
        if !SERVICES.contains(&service) {
            return Err(s3_error!(
                AuthorizationHeaderMalformed,
                "The authorization header is malformed: sign for one of {}.",
                SERVICES.join(", ")
            ));
        }
        let stamp = head.headers.get("x-amz-date").and_then(|stamp| stamp.to_str().ok());
        let stamp =
            stamp.ok_or_else(|| s3_error!(AccessDenied, "The request lacks the header x-amz-date."))?;
        let (headers, signature) =
            (part("SignedHeaders").ok_or_else(malformed)?, part("Signature").ok_or_else(malformed)?);
        if !stamp.starts_with(date) || date.len() != 8 {
            return Err(s3_error!(SignatureDoesNotMatch, "The credential's date is not that of x-amz-date."));
        }
        Ok(Some(Self { access_key, service, date, region, headers, signature, stamp }))
    }

    pub(super) fn check_time(&self, now: Timestamp) -> S3Result<()> {
        let wrong = || s3_error!(AccessDenied, "x-amz-date is not of the form YYYYMMDD'T'HHMMSS'Z'.");
        let digits = self.stamp.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
        if self.stamp.len() != 16 || !digits {
            return Err(wrong());
        }
        let part = |from: usize, to: usize| &self.stamp[from..to];
        let text = format!(
            "{}-{}-{}T{}:{}:{}Z",
            part(0, 4),
            part(4, 6),
            part(6, 8),
            part(9, 11),
            part(11, 13),
            part(13, 15)
        );
        let at = s3s::dto::Timestamp::parse(TimestampFormat::DateTime, &text).map_err(|_| wrong())?;
        let off = unix_seconds(&at).abs_diff(now.0 / 1000);
        if off > SKEW_SECONDS_MAX {
            return Err(s3_error!(
                RequestTimeTooSkewed,
                "The difference between the request time and the server's time is too large."
            ));
        }
        Ok(())
    }

    /// # Errors
    /// The signature is not made of this request with this secret.
    pub(super) fn verify(&self, head: &Parts, body: &[u8], secret: &str) -> S3Result<()> {
        let mismatch = || s3_error!(SignatureDoesNotMatch);
        let own_hash = hex::encode(digest::digest(&digest::SHA256, body));
        let payload = match head.headers.get("x-amz-content-sha256").map(|hash| hash.to_str()) {
            // The body of what changes users must be signed.
            Some(Ok(UNSIGNED)) if self.service == "s3" => UNSIGNED,
            Some(Ok(hash)) if hash == own_hash => &own_hash,
            Some(_) => {
                return Err(custom(
                    "XAmzContentSHA256Mismatch",
                    400,
                    "The provided 'x-amz-content-sha256' header does not match what was computed.",
                ));
            }
            None => &own_hash,
        };
        let mut canonical = format!("{}\n{}\n{}\n", head.method, head.uri.path(), sorted(head.uri.query()));
        for name in self.headers.split(';') {
            let mut values: Vec<String> = Vec::new();
            for value in head.headers.get_all(name) {
                let value = value.to_str().map_err(|_| mismatch())?;
                values.push(value.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
            }
            if values.is_empty() && name == HOST.as_str() {
                values.extend(head.uri.authority().map(ToString::to_string));
            }
            canonical += &format!("{name}:{}\n", values.join(","));
        }
        canonical += &format!("\n{}\n{payload}", self.headers);
        if !self.headers.split(';').any(|name| name == HOST.as_str()) {
            return Err(s3_error!(SignatureDoesNotMatch, "The signature must cover the header host."));
        }
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let (date, region, service) = (self.date, self.region, self.service);
        let text = format!("{ALGORITHM}\n{}\n{date}/{region}/{service}/aws4_request\n{hash}", self.stamp);
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [date, region, service, "aws4_request"] {
            let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let given = hex::decode(self.signature).map_err(|_| mismatch())?;
        hmac::verify(&key, text.as_bytes(), &given).map_err(|_| mismatch())
    }
}

/// A query in the order that is signed.
fn sorted(query: Option<&str>) -> String {
    let mut pairs: Vec<String> = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    pairs.sort();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// Made by botocore.
    #[test]
    fn a_signature_made_elsewhere_is_verified_and_a_changed_request_is_not() {
        let body = b"Action=ListUsers&Version=2010-05-08";
        let request = |signature: &str| {
            Request::post("/")
                .header("host", "iam.amazonaws.com")
                .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
                .header("x-amz-date", "20150830T123600Z")
                .header(
                    "authorization",
                    format!(
                        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                         SignedHeaders=content-type;host;x-amz-date, Signature={signature}"
                    ),
                )
                .body(())
                .unwrap()
                .into_parts()
                .0
        };
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let right = "5d76d0de3e0ffe5a7a23cfce21b99d6f4e5060aad86bd9dc7c617f224e5b492a";
        let head = request(right);
        let signed = Signed::read(&head).unwrap().unwrap();
        assert_eq!((signed.access_key, signed.service), ("AKIDEXAMPLE", "iam"));
        assert!(signed.verify(&head, body, secret).is_ok());
        assert!(signed.verify(&head, b"Action=DeleteUser", secret).is_err());
        assert!(signed.verify(&head, body, "another").is_err());
        let made_ms = 1_440_938_160_000;
        assert!(signed.check_time(Timestamp(made_ms + 14 * 60_000)).is_ok());
        assert!(signed.check_time(Timestamp(made_ms + 16 * 60_000)).is_err());
    }

    #[test]
    fn what_is_no_signature_is_said() {
        let read = |text: &str| {
            let head =
                Request::post("/").header("authorization", text).header("x-amz-date", "20150830T123600Z");
            let head = head.body(()).unwrap().into_parts().0;
            Signed::read(&head)
                .map(|signed| signed.is_some())
                .map_err(|error| error.code().as_str().to_owned())
        };
        let malformed = Err("AuthorizationHeaderMalformed".to_owned());
        for text in [
            "AWS AK:sig",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=AK/20150830/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=AK/iam/aws4_request, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=AK/20150830/us-east-1/iam/aws4_request, Signature=00",
        ] {
            assert_eq!(read(text), malformed, "{text}");
        }
        let plain = Request::post("/").body(()).unwrap().into_parts().0;
        assert!(Signed::read(&plain).unwrap().is_none());
    }
}
