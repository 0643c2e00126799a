//! Which bucket a request's host and path name.

use http::{Extensions, HeaderMap, Uri, header};
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

use super::access::Peer;

/// `bucket.domain` names a bucket; every other host is path-style.
#[derive(Clone)]
pub(super) struct Hosts {
    /// Each with its leading dot.
    pub(super) suffixes: Vec<String>,
}

impl Hosts {
    /// The bucket that a request names, by host or by path.
    pub(super) fn bucket(&self, headers: &HeaderMap, uri: &Uri) -> Option<String> {
        let named = self.bucket_of_host(headers, uri);
        let of_path = || uri.path().split('/').nth(1).filter(|name| !name.is_empty()).map(str::to_owned);
        named.or_else(of_path)
    }

    fn bucket_of_host(&self, headers: &HeaderMap, uri: &Uri) -> Option<String> {
        host_of(headers, uri).and_then(|host| self.parse_host_header(host).ok()?.bucket().map(str::to_owned))
    }

    /// Whether the host names the bucket, so that the path has but the key.
    pub(super) fn names_bucket(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        self.bucket_of_host(headers, uri).is_some()
    }

    /// Whether the path names a key in the bucket.
    pub(super) fn names_key(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let path = uri.path().trim_start_matches('/');
        let key = if self.names_bucket(headers, uri) {
            path
        } else {
            path.split_once('/').map_or("", |(_, key)| key)
        };
        !key.is_empty()
    }
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let bucket = self.suffixes.iter().find_map(|suffix| {
            let at =
                name.len().checked_sub(suffix.len()).filter(|&at| at > 0 && name.is_char_boundary(at))?;
            name[at..].eq_ignore_ascii_case(suffix).then(|| name[..at].to_ascii_lowercase())
        });
        let host = VirtualHost::new(host);
        Ok(match bucket {
            Some(bucket) => host.with_bucket(bucket),
            None => host,
        })
    }
}

/// The name under which a request came.
pub(super) fn host_of<'r>(headers: &'r HeaderMap, uri: &'r Uri) -> Option<&'r str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

/// Where an object is, as who sent the request would write it.
pub(super) fn location(
    headers: &HeaderMap,
    uri: &Uri,
    extensions: &Extensions,
    bucket: &str,
    key: &str,
) -> String {
    let host = host_of(headers, uri).unwrap_or_default();
    let scheme = if extensions.get::<Peer>().is_some_and(|peer| peer.is_tls) { "https" } else { "http" };
    let is_virtual = host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('.'));
    let bucket = if is_virtual { String::new() } else { format!("/{bucket}") };
    let key = key.split('/').map(|part| form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>());
    format!("{scheme}://{host}{bucket}/{}", key.collect::<Vec<_>>().join("/").replace('+', "%20"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_before_a_domain_is_a_bucket() {
        let hosts = Hosts { suffixes: vec![".s3.example.com".into(), ".pool.lan".into()] };
        let bucket = |host| hosts.parse_host_header(host).unwrap().bucket().map(str::to_owned);
        assert_eq!(bucket("photos.s3.example.com"), Some("photos".into()));
        assert_eq!(bucket("Photos.S3.example.com:9000"), Some("photos".into()));
        assert_eq!(bucket("my.photos.pool.lan"), Some("my.photos".into()));
        for path_style in
            ["s3.example.com", ".s3.example.com", "localhost:9000", "[::1]:9000", "gateway-3", "é.lan"]
        {
            assert_eq!(bucket(path_style), None, "{path_style}");
        }
    }
}
