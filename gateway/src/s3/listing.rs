//! Listing keys: versions 1 and 2.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use makai_raft::facts::object::{KEY_BYTES_MAX, ObjectHead, ObjectHeaders};
use makai_raft::facts::query::{ENTRIES_PER_ANSWER_MAX, ListObjects, Listed};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::checksums::kind;
use super::errors::refused;
use super::headers::{account_of, etag, length, owner, timestamp};
use super::operations::Operations;
use crate::identity::Caller;
use crate::policy::principal::canonical_id;

/// An opaque continuation token that says after which name to go on.
pub(super) fn encode_token(after: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(after)
}

pub(super) fn decode_token(token: &str) -> S3Result<String> {
    let after = BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    after.ok_or_else(|| {
        s3_error!(
            InvalidArgument,
            "The continuation token provided is incorrect: send it as the last answer gave it."
        )
    })
}

/// Percent-encodes what is not unreserved; slashes stay, as S3 leaves them.
fn url_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/*".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&hex::encode_upper([byte]));
        }
    }
    encoded
}

/// How names are written into an answer.
#[derive(Clone, Copy)]
pub(super) struct Names {
    is_encoded: bool,
}

impl Names {
    pub(super) fn new(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Self { is_encoded: false }),
            Some(EncodingType::URL) => Ok(Self { is_encoded: true }),
            Some(_) => {
                Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request: use url."))
            }
        }
    }

    /// Of a field that clients do not decode: encoded only where XML could not hold it.
    fn write_plain(self, name: &str) -> String {
        let is_held = |char: char| !char.is_control() || matches!(char, '\t' | '\n' | '\r');
        if name.chars().all(is_held) { name.to_owned() } else { self.write(name) }
    }

    pub(super) fn write(self, name: &str) -> String {
        if self.is_encoded { url_encode(name) } else { name.to_owned() }
    }
}

/// How many entries an answer may have: what the client asks for, at most [`ENTRIES_PER_ANSWER_MAX`].
pub(super) fn entries_max(asked: Option<i32>, name: &str) -> S3Result<u32> {
    match asked.map(u32::try_from) {
        None => Ok(ENTRIES_PER_ANSWER_MAX),
        Some(Ok(count)) => Ok(count.min(ENTRIES_PER_ANSWER_MAX)),
        Some(Err(_)) => {
            Err(s3_error!(InvalidArgument, "Argument {name} must be an integer between 0 and {}.", i32::MAX))
        }
    }
}

/// A page of a bucket.
struct Page {
    heads: Vec<ObjectHead>,
    prefixes: Vec<String>,
    /// The last name, where more follow.
    next: Option<String>,
}

impl Page {
    fn key_count(&self) -> i32 {
        i32::try_from(self.heads.len() + self.prefixes.len()).unwrap_or(i32::MAX)
    }

    fn common_prefixes(&self, names: Names) -> Option<Vec<CommonPrefix>> {
        let prefixes = self.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(names.write(prefix)) });
        (!self.prefixes.is_empty()).then(|| prefixes.collect())
    }

    fn contents(&self, names: Names, owners: Option<(&Owners, &Caller)>) -> Option<Vec<Object>> {
        let object = |head: &ObjectHead| Object {
            checksum_algorithm: head
                .checksum
                .as_ref()
                .map(|sum| vec![ChecksumAlgorithm::from(sum.algorithm.clone())]),
            checksum_type: head.checksum.as_ref().map(kind),
            e_tag: Some(etag(head)),
            key: Some(names.write(&head.key)),
            last_modified: Some(timestamp(head.modified_at)),
            owner: owners
                .and_then(|(owners, caller)| owners.get(&account_of(&head.headers, caller)).cloned()),
            restore_status: None,
            size: Some(length(head.size)),
            storage_class: Some(ObjectStorageClass::from(storage_class(head))),
        };
        (!self.heads.is_empty()).then(|| self.heads.iter().map(object).collect())
    }
}

/// Owners by account.
pub(super) type Owners = BTreeMap<u64, Owner>;

pub(super) fn storage_class(head: &ObjectHead) -> String {
    head.headers.storage_class.clone().unwrap_or_else(|| StorageClass::STANDARD.to_owned())
}

impl Operations {
    /// Those who have what is listed, each asked for once.
    pub(super) async fn owners(
        &self,
        bucket_owner: &Caller,
        listed: impl Iterator<Item = &ObjectHeaders>,
    ) -> S3Result<Owners> {
        let mut owners = Owners::from([(bucket_owner.tenant.0, owner(bucket_owner))]);
        for headers in listed {
            let account = account_of(headers, bucket_owner);
            if let Entry::Vacant(unknown) = owners.entry(account) {
                let display_name = self.objects.tenant_name(account).await.map_err(refused)?;
                unknown.insert(Owner { display_name, id: Some(canonical_id(account)) });
            }
        }
        Ok(owners)
    }

    async fn page(&self, caller: &Caller, list: ListObjects) -> S3Result<Page> {
        let too_long = [&list.prefix, &list.after].iter().any(|name| name.len() > KEY_BYTES_MAX);
        if too_long || list.delimiter.len() > KEY_BYTES_MAX {
            return Err(s3_error!(KeyTooLongError, "No key has more than {KEY_BYTES_MAX} bytes."));
        }
        let mut page = Page { heads: Vec::new(), prefixes: Vec::new(), next: None };
        if list.entries_max == 0 {
            self.objects.bucket(caller, &list.bucket).await.map_err(refused)?;
            return Ok(page);
        }
        let (entries, is_truncated) = self.objects.list(caller, list).await.map_err(refused)?;
        if is_truncated {
            page.next = entries.last().map(|last| match last {
                Listed::Object(head) => head.key.clone(),
                Listed::CommonPrefix(prefix) => prefix.clone(),
            });
        }
        for entry in entries {
            match entry {
                Listed::Object(head) => page.heads.push(head),
                Listed::CommonPrefix(prefix) => page.prefixes.push(prefix),
            }
        }
        Ok(page)
    }

    pub(super) async fn list_objects(
        &self,
        caller: &Caller,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = request.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let entries_max = entries_max(input.max_keys, "max-keys")?;
        let list = ListObjects {
            bucket: input.bucket.clone(),
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: input.marker.clone().unwrap_or_default(),
            entries_max,
        };
        let page = self.page(caller, list).await?;
        let owners = self.owners(caller, page.heads.iter().map(|head| &head.headers)).await?;
        let has_delimiter = input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty());
        Ok(S3Response::new(ListObjectsOutput {
            contents: page.contents(names, Some((&owners, caller))),
            common_prefixes: page.common_prefixes(names),
            is_truncated: Some(page.next.is_some()),
            // Without a delimiter, the last key is the marker.
            next_marker: page.next.as_deref().filter(|_| has_delimiter).map(|next| names.write(next)),
            name: Some(input.bucket),
            prefix: Some(names.write_plain(&input.prefix.unwrap_or_default())),
            marker: Some(names.write(&input.marker.unwrap_or_default())),
            max_keys: Some(entries_max.cast_signed()),
            delimiter: input.delimiter.filter(|_| has_delimiter).map(|delimiter| names.write(&delimiter)),
            encoding_type: input.encoding_type,
            request_charged: None,
        }))
    }

    pub(super) async fn list_objects_v2(
        &self,
        caller: &Caller,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let entries_max = entries_max(input.max_keys, "max-keys")?;
        let after = match input.continuation_token.as_deref() {
            Some(token) => decode_token(token)?,
            None => input.start_after.clone().unwrap_or_default(),
        };
        let list = ListObjects {
            bucket: input.bucket.clone(),
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after,
            entries_max,
        };
        let page = self.page(caller, list).await?;
        let fetches_owner = input.fetch_owner == Some(true);
        let listed = page.heads.iter().filter(|_| fetches_owner).map(|head| &head.headers);
        let owners = self.owners(caller, listed).await?;
        Ok(S3Response::new(ListObjectsV2Output {
            contents: page.contents(names, fetches_owner.then_some((&owners, caller))),
            common_prefixes: page.common_prefixes(names),
            is_truncated: Some(page.next.is_some()),
            key_count: Some(page.key_count()),
            next_continuation_token: page.next.as_deref().map(encode_token),
            continuation_token: input.continuation_token,
            name: Some(input.bucket),
            prefix: Some(names.write(&input.prefix.unwrap_or_default())),
            max_keys: Some(entries_max.cast_signed()),
            delimiter: input.delimiter.filter(|text| !text.is_empty()).map(|text| names.write(&text)),
            encoding_type: input.encoding_type,
            start_after: input.start_after.map(|after| names.write(&after)),
            request_charged: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use s3s::S3ErrorCode;

    use super::*;

    #[test]
    fn tokens_come_back_and_other_text_is_refused() {
        for name in ["", "a", "photos/2024/", "ключ/é\n\u{1}", &"k".repeat(1024)] {
            assert_eq!(decode_token(&encode_token(name)).unwrap(), name);
        }
        for bad in ["*", "a", "_w", "YQ=="] {
            assert_eq!(*decode_token(bad).unwrap_err().code(), S3ErrorCode::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn encoded_names_are_what_s3_documents() {
        assert_eq!(url_encode("test_file(3).png"), "test_file%283%29.png");
        assert_eq!(url_encode("a/b c+d&é"), "a/b%20c%2Bd%26%C3%A9");
        assert_eq!(url_encode("\u{1}\n"), "%01%0A");
    }

    #[test]
    fn any_number_of_entries_may_be_asked_for_but_a_negative_one() {
        assert_eq!(entries_max(None, "max-keys").unwrap(), 1000);
        assert_eq!(entries_max(Some(0), "max-keys").unwrap(), 0);
        assert_eq!(entries_max(Some(7), "max-keys").unwrap(), 7);
        assert_eq!(entries_max(Some(5000), "max-keys").unwrap(), 1000);
        assert_eq!(*entries_max(Some(-1), "max-keys").unwrap_err().code(), S3ErrorCode::InvalidArgument);
    }

    #[test]
    fn only_the_encoding_that_s3_has_is_known() {
        assert_eq!(Names::new(None).unwrap().write("a b"), "a b");
        assert_eq!(Names::new(Some(&EncodingType::from_static("url"))).unwrap().write("a b"), "a%20b");
        assert!(Names::new(Some(&EncodingType::from_static("utf-7"))).is_err());
    }
}
