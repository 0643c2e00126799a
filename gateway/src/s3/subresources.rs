//! S3's subresources: which a method has, so that none is taken for the bucket or the object itself.

use std::borrow::Cow;

use http::Method;
use s3s::{S3Error, s3_error};

/// Query parameters of PUT whose body is XML.
pub(super) const WITH_XML: [&str; 17] = [
    "acl",
    "cors",
    "delete",
    "encryption",
    "legal-hold",
    "lifecycle",
    "logging",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "publicAccessBlock",
    "requestPayment",
    "retention",
    "tagging",
    "versioning",
    "website",
];

/// Methods by their first letter; PUT is `U`. Of buckets, then of objects.
const METHODS: [(&str, &str, &str); 34] = [
    ("accelerate", "GU", ""),
    ("acl", "GU", "GU"),
    ("analytics", "GUD", ""),
    ("attributes", "", "G"),
    ("cors", "GUD", ""),
    ("delete", "P", ""),
    ("encryption", "GUD", ""),
    ("intelligent-tiering", "GUD", ""),
    ("inventory", "GUD", ""),
    ("legal-hold", "", "GU"),
    ("lifecycle", "GUD", ""),
    ("location", "G", ""),
    ("logging", "GU", ""),
    ("metadataTable", "GPD", ""),
    ("metrics", "GUD", ""),
    ("notification", "GU", ""),
    ("object-lock", "GU", ""),
    ("ownershipControls", "GUD", ""),
    ("policy", "GUD", ""),
    ("policyStatus", "G", ""),
    ("publicAccessBlock", "GUD", ""),
    ("replication", "GUD", ""),
    ("requestPayment", "GU", ""),
    ("restore", "", "P"),
    ("retention", "", "GU"),
    ("select", "", "P"),
    ("session", "G", ""),
    ("tagging", "GUD", "GUD"),
    ("torrent", "", "G"),
    ("uploadId", "", "GUPD"),
    ("uploads", "G", "P"),
    ("versioning", "GU", ""),
    ("versions", "G", ""),
    ("website", "GUD", ""),
];
/// What S3 has of buckets and objects that this door has not.
const MISSING: [&str; 6] = [
    "abac",
    "annotation",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "renameObject",
];

/// Names of a query's parameters, as they are meant: `%61cl` is `acl`.
pub(super) fn names(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name)
}

/// Why a request's query is not one of its method's.
pub(super) fn misplaced(method: &Method, query: &str, is_object: bool) -> Option<S3Error> {
    let letter = match *method {
        Method::GET => 'G',
        Method::PUT => 'U',
        Method::POST => 'P',
        Method::DELETE => 'D',
        _ => return None,
    };
    let names = || names(query);
    let has = |wanted: &str| names().any(|name| name == wanted);
    if names().any(|name| MISSING.contains(&&*name)) || (is_object && letter == 'U' && has("encryption")) {
        return Some(s3_error!(
            NotImplemented,
            "A header or query you provided implies functionality that is not implemented."
        ));
    }
    if is_object && letter == 'U' && has("partNumber") && !has("uploadId") {
        return Some(s3_error!(
            InvalidArgument,
            "This operation does not accept a partNumber without an uploadId."
        ));
    }
    let is_known = |name: &str| {
        let known = METHODS.iter().find(|(known, ..)| *known == name);
        known.is_none_or(|(_, bucket, object)| if is_object { object } else { bucket }.contains(letter))
    };
    let lacks_number = is_object && letter == 'U' && has("uploadId") && !has("partNumber");
    (lacks_number || !names().all(|name| is_known(&name)))
        .then(|| s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subresource_is_never_taken_for_what_it_is_of() {
        let code = |method: Method, query: &str, is_object| {
            misplaced(&method, query, is_object).map(|error| error.code().as_str().to_owned())
        };
        for (method, query, is_object) in [
            (Method::DELETE, "logging", false),
            (Method::DELETE, "acl", true),
            (Method::PUT, "torrent", true),
            (Method::PUT, "uploadId=1", true),
            (Method::PUT, "location=", false),
            (Method::GET, "uploads", true),
            (Method::DELETE, "%6c%6Fgging", false),
            (Method::PUT, "upload%49d=1", true),
            (Method::POST, "versions", false),
        ] {
            assert_eq!(code(method, query, is_object).as_deref(), Some("MethodNotAllowed"), "{query}");
        }
        for (method, query, is_object) in [
            (Method::DELETE, "annotation&versionId=1", true),
            (Method::PUT, "renameObject", true),
            (Method::PUT, "encryption", true),
            (Method::DELETE, "metadataConfiguration", false),
        ] {
            assert_eq!(code(method, query, is_object).as_deref(), Some("NotImplemented"), "{query}");
        }
        assert_eq!(code(Method::PUT, "partNumber=1", true).as_deref(), Some("InvalidArgument"));
        for (method, query, is_object) in [
            (Method::GET, "", false),
            (Method::GET, "list-type=2&prefix=acl", false),
            (Method::GET, "versions&prefix=", false),
            (Method::PUT, "encryption", false),
            (Method::PUT, "partNumber=1&uploadId=2", true),
            (Method::DELETE, "uploadId=2", true),
            (Method::POST, "uploads=", true),
            (Method::GET, "partNumber=1&versionId=2&response-expires=3", true),
            (Method::HEAD, "acl", true),
        ] {
            assert_eq!(code(method, query, is_object), None, "{query}");
        }
    }
}
