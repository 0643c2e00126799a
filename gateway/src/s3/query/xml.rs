//! Answers in XML.

use makai_raft::facts::Timestamp;
use s3s::dto::TimestampFormat;

use crate::s3::headers::timestamp;

pub(super) const STS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
pub(super) const IAM: &str = "https://iam.amazonaws.com/doc/2010-05-08/";

/// One element with text.
pub(super) fn leaf(name: &str, text: impl AsRef<str>) -> String {
    format!("<{name}>{}</{name}>", escape(text.as_ref()))
}

/// One element with others.
pub(super) fn node(name: &str, inside: impl AsRef<str>) -> String {
    format!("<{name}>{}</{name}>", inside.as_ref())
}

/// A list as these APIs write it.
pub(super) fn list(name: &str, members: impl IntoIterator<Item = String>) -> String {
    let members: String = members.into_iter().map(|member| node("member", member)).collect();
    node(name, members)
}

/// `2024-01-31T12:00:00Z`
pub(super) fn time(at: Timestamp) -> String {
    let mut text = Vec::new();
    // A time that cannot be written is left out.
    let _ = timestamp(Timestamp(at.0 / 1000 * 1000)).format(TimestampFormat::DateTime, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A whole answer.
pub(super) fn answer(action: &str, namespace: &str, result: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"{namespace}\">\
         <{action}Result>{result}</{action}Result></{action}Response>"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // XML has no way to write the other control characters.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(one))),
            one if one.is_control() => escaped.push('\u{FFFD}'),
            one => escaped.push(one),
        }
    }
    escaped
}
